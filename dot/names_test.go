package dot

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"dm/internal/errs"
	"dm/object"
	"dm/store"
)

func TestParseName(t *testing.T) {
	for s, want := range map[string]Name{
		"d":                     {"admin", "d", "", ""},
		"admin/d":               {"admin", "d", "", ""},
		"ann/d":                 {"ann", "d", "", ""},
		"d@b":                   {"admin", "d", "b", ""},
		"d.s":                   {"admin", "d", "", "s"},
		"ann/d_1-2@b.s":         {"ann", "d_1-2", "b", "s"},
		"d.__root__":            {"admin", "d", "", RootSubdot},
		strings.Repeat("x", 64): {"admin", strings.Repeat("x", 64), "", ""},
	} {
		got, err := ParseName(s)
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v", s, got, err)
		}
		if back, err := ParseName(got.String()); err != nil || back != got {
			t.Errorf("%s: written as %s, read as %+v, %v", s, got, back, err)
		}
	}
	for s, part := range map[string]string{
		"": "dot", "/": "namespace", "a/": "dot", "a//b": "dot", "d@": "branch", "d@.s": "branch", "d.": "subdot", "@b": "dot",
		"d@b@c": "branch", "d.s.t": "subdot", "d s": "dot", "a/b/c": "dot", "..": "dot", "d.s@b": "subdot", "d\x00": "dot",
		"dé": "dot", strings.Repeat("x", 65): "dot", "-\n": "dot",
	} {
		_, err := ParseName(s)
		if errs.KindOf(err) != errs.Usage || !strings.HasPrefix(err.Error(), "invalid "+part+" name '") {
			t.Errorf("%q: %v", s, err)
		}
	}
	if _, err := ParseDotName("x@y"); err == nil || err.Error() != "invalid dot name 'x@y': use letters, digits, '_' and '-', at most 64" {
		t.Error(err)
	}
	if n, err := ParseDotName("ann/y"); err != nil || n != (Name{"ann", "y", "", ""}) {
		t.Error(n, err)
	}
}

func TestCheckMeta(t *testing.T) {
	if err := checkMeta(map[string]string{"a": "", "éa": "B"}); err != nil {
		t.Error(err)
	}
	for _, key := range []string{"K", "1", "", "=v"} {
		want := "Metadata field names must start with lowercase characters: " + key
		if err := checkMeta(map[string]string{key: "v"}); errs.KindOf(err) != errs.Usage || err.Error() != want {
			t.Errorf("%q: %v", key, err)
		}
	}
}

// addCommits makes commits of an empty tree, straight into the store: a chain on top of what the branch is at.
func (h *home) addCommits(n Name, count int) (ids []object.ID) {
	h.t.Helper()
	ctx := context.Background()
	b := mustBranch(h, n)
	batch, err := h.store.Begin(ctx)
	if err != nil {
		h.t.Fatal(err)
	}
	defer batch.Abort()
	tip := b.tip
	for i := range count {
		c := &object.Commit{Root: emptyState(nil).root, NextIno: 2, Message: fmt.Sprint(i), Time: time.Unix(int64(i), 0)}
		if !tip.IsZero() {
			c.Parents = []object.ID{tip}
		}
		if tip, err = batch.Put(ctx, object.KindCommit, c.Encode()); err != nil {
			h.t.Fatal(err)
		}
		ids = append(ids, tip)
	}
	if _, err := batch.Commit(ctx, func(tx *store.Tx) error { return tx.SetRef(b.ref(), b.tip, tip) }); err != nil {
		h.t.Fatal(err)
	}
	return ids
}

func TestRevisions(t *testing.T) {
	ctx := t.Context()
	h := newHome(t)
	n := h.create("d")
	ids := h.addCommits(n, 2000)
	tip := ids[len(ids)-1]
	if _, err := h.CreateTag(ctx, n, "v1", ids[10].String()); err != nil {
		t.Fatal(err)
	}
	if err := h.branchOut(ctx, n, "feed"); err != nil {
		t.Fatal(err)
	}
	for rev, want := range map[string]object.ID{
		"": tip, "HEAD": tip, "HEAD^": ids[1998], "HEAD~": ids[1998], "HEAD~3": ids[1996], "HEAD^^~2^": ids[1994], "~1": ids[1998],
		"HEAD~0": tip, "HEAD~1999": ids[0], "master": tip, "feed^": ids[1998], "v1": ids[10], "v1~10": ids[0],
		ids[7].String(): ids[7], strings.ToUpper(ids[7].String()): ids[7], ids[7].String()[:20]: ids[7],
	} {
		if got, c, err := h.Resolve(ctx, n, rev); err != nil || got != want || c == nil {
			t.Errorf("%q: %s, %v; want %s", rev, got.Short(), err, want.Short())
		}
	}
	for rev, kind := range map[string]errs.Kind{
		"HEAD~2000": errs.NotFound, "none": errs.NotFound, "abc": errs.NotFound, "HEAD^2": errs.Usage, "HEAD~x": errs.Usage, "a b": errs.Usage,
		"HEAD~99999999999999999999": errs.Usage, "..": errs.Usage, strings.Repeat("0", 64): errs.NotFound, "v1:x": errs.Usage,
	} {
		if _, _, err := h.Resolve(ctx, n, rev); errs.KindOf(err) != kind || errs.HintOf(err) == "" && rev != "HEAD~2000" {
			t.Errorf("%q: %v (%v), hint %q", rev, err, errs.KindOf(err), errs.HintOf(err))
		}
	}
	// Of 2000 ids some begin with the same 4 digits.
	seen := map[string]object.ID{}
	for _, id := range ids {
		p := id.String()[:4]
		other, ok := seen[p]
		seen[p] = id
		if !ok {
			continue
		}
		_, _, err := h.Resolve(ctx, n, p)
		if errs.KindOf(err) != errs.Usage || !strings.Contains(err.Error(), id.String()[:16]) || !strings.Contains(err.Error(), other.String()[:16]) {
			t.Errorf("the ambiguous %s: %v", p, err)
		}
		break
	}
	if l, err := h.List(ctx); err != nil || l[0].Commits != 2000 {
		t.Errorf("counted: %+v, %v", l, err)
	}
}

// A commit may have several parents if it comes from elsewhere; its log has each commit once and before its children.
func TestLogOfMerges(t *testing.T) {
	ctx := t.Context()
	h := newHome(t)
	n := h.create("d")
	root := h.addCommits(n, 1)[0]
	b := mustBranch(h, n)
	batch, err := h.store.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	put := func(msg string, parents ...object.ID) object.ID {
		c := &object.Commit{Root: emptyState(nil).root, NextIno: 2, Message: msg, Parents: parents}
		id, err := batch.Put(ctx, object.KindCommit, c.Encode())
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	left, right := put("left", root), put("right", put("right 1", root))
	tip := put("top", put("merge", left, right))
	if _, err := batch.Commit(ctx, func(tx *store.Tx) error { return tx.SetRef(b.ref(), b.tip, tip) }); err != nil {
		t.Fatal(err)
	}
	log, err := h.Log(ctx, n, "", 0)
	if err != nil || len(log) != 6 {
		t.Fatalf("%+v, %v", log, err)
	}
	at := map[string]int{}
	for i, c := range log {
		at[c.ID] = i
		for _, p := range c.Parents {
			if j, ok := at[p]; !ok || j >= i {
				t.Errorf("%s comes before its parent", c.Message)
			}
		}
	}
	if newest, err := h.Log(ctx, n, "", 2); err != nil || len(newest) != 2 || newest[1].Message != "top" || newest[0].Message != "merge" {
		t.Errorf("the newest two: %+v, %v", newest, err)
	}
	if c, err := h.countTo(ctx, tip); err != nil || c != 6 {
		t.Errorf("%d commits, %v", c, err)
	}
}

// TestNamesOfOld: what must not be made any more can still be used, and got rid of.
func TestNamesOfOld(t *testing.T) {
	h := newHome(t)
	ctx := t.Context()
	n := h.create("d")
	ids := h.addCommits(n, 1)
	r := mustBranch(h, n).dot
	err := h.store.Update(func(tx *store.Tx) error {
		if err := tx.SetRef(tagRef(r.ID, "-t"), object.ID{}, ids[0]); err != nil {
			return err
		}
		return addBranch(tx, r.ID, "-b", ids[0], 1)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Checkout(ctx, n, "-b"); err != nil {
		t.Error(err)
	}
	if err := h.Checkout(ctx, n, DefaultBranch); err != nil {
		t.Error(err)
	}
	for _, rev := range []string{"-b", "-t"} {
		if id, _, err := h.Resolve(ctx, n, rev); err != nil || id != ids[0] {
			t.Errorf("%s: %v, %v", rev, id, err)
		}
	}
	if err := errors.Join(h.DeleteTag(ctx, n, "-t"), h.DeleteBranch(ctx, n, "-b")); err != nil {
		t.Error(err)
	}
	for what, err := range map[string]error{
		"a branch": h.branchOut(ctx, n, "-b"), "HEAD": h.branchOut(ctx, n, "HEAD"),
	} {
		if errs.KindOf(err) != errs.Usage {
			t.Errorf("%s was made: %v", what, err)
		}
	}
}
