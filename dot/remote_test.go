package dot

import (
	"context"
	"slices"
	"testing"

	"dm/internal/errs"
	"dm/object"
	"dm/store"
)

// tipOf returns where a branch is.
func (h *home) tipOf(n Name, branch string) object.ID {
	h.t.Helper()
	tips, err := h.Tips(context.Background(), n)
	if err != nil {
		h.t.Fatal(err)
	}
	return tips.Heads[branch]
}

func (h *home) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *home) wantKind(err error, k errs.Kind) {
	h.t.Helper()
	if errs.KindOf(err) != k {
		h.t.Error("an error of kind ", k, ", not ", err)
	}
}

// history makes a dot with three commits and returns their ids.
func history(t *testing.T, h *home, dot string) (n Name, ids []object.ID) {
	t.Helper()
	n = name(t, dot)
	_, err := h.Create(t.Context(), n, CreateOptions{Subdots: []string{"db"}})
	h.must(err)
	for _, text := range []string{"one", "two", "three"} {
		h.fs(n).write("db/file", []byte(text))
		res, err := h.Commit(t.Context(), n, CommitRequest{Message: text})
		h.must(err)
		ids = append(ids, res.ID)
	}
	return n, ids
}

// What has arrived becomes a dot; its branches are moved forward, and the working copy follows.
func TestArrivals(t *testing.T) {
	ctx := t.Context()
	h := newHome(t)
	_, ids := history(t, h, "origin")
	up := Upstream{Remote: "hub", Name: "alice/origin"}
	n := name(t, "clone")
	_, err := h.CreateAt(ctx, n, Arrival{
		Heads: map[string]object.ID{"master": ids[0], "other": ids[1]}, Tags: map[string]object.ID{"v1": ids[0]},
		Branch: "master", From: up, Seen: map[string]object.ID{"heads/master": ids[0]},
	})
	h.must(err)
	if got := string(h.fs(n).read("db/file")); got != "one" {
		t.Errorf("the clone holds %q", got)
	}
	info, err := h.Info(ctx, n)
	h.must(err)
	if u, ok := info.Upstream("hub"); !ok || u != up || info.Branch != "master" || len(info.Branches) != 2 || len(info.Tags) != 1 {
		t.Errorf("the clone is %+v", info)
	}
	_, err = h.CreateAt(ctx, n, Arrival{Heads: map[string]object.ID{"master": ids[0]}, Branch: "master"})
	h.wantKind(err, errs.Conflict)
	_, err = h.CreateAt(ctx, name(t, "bad"), Arrival{Heads: map[string]object.ID{"a/b": ids[0]}, Branch: "a/b"})
	h.wantKind(err, errs.Usage)
	_, err = h.CreateAt(ctx, name(t, "bad"), Arrival{Heads: map[string]object.ID{"master": {1}}, Branch: "master"})
	h.wantKind(err, errs.NotFound)

	h.wantKind(h.Forward(ctx, n, ids[1], ids[2], false), errs.Conflict) // it is not there
	h.fs(n).write("db/new", []byte("unsaved"))
	h.wantKind(h.Forward(ctx, n, ids[0], ids[2], false), errs.Conflict)
	h.wantKind(h.CheckClean(ctx, n), errs.Conflict)
	_, err = h.Reset(ctx, n, "HEAD", true)
	h.must(err)
	h.must(h.CheckClean(ctx, n))
	h.must(h.Forward(ctx, n, ids[0], ids[2], false))
	if got := string(h.fs(n).read("db/file")); got != "three" || h.tipOf(n, "master") != ids[2] {
		t.Errorf("after it was moved forward the branch is at %s and holds %q", h.tipOf(n, "master").Short(), got)
	}
	if count, err := h.Log(ctx, n, "", 0); err != nil || len(count) != 3 {
		t.Errorf("%d commits, %v", len(count), err)
	}
	h.must(h.AddBranch(ctx, n, "third", ids[1]))
	h.wantKind(h.AddBranch(ctx, n, "third", ids[1]), errs.Conflict)
	made, clash, err := h.TakeTags(ctx, n, map[string]object.ID{"v1": ids[2], "v2": ids[1]})
	h.must(err)
	if !slices.Equal(made, []string{"v2"}) || !slices.Equal(clash, []string{"v1"}) {
		t.Errorf("tags made: %v, left alone: %v", made, clash)
	}

	// A dot that has no commit yet is moved, too.
	fresh := name(t, "fresh")
	_, err = h.Create(ctx, fresh, CreateOptions{})
	h.must(err)
	h.must(h.Forward(ctx, fresh, object.ID{}, ids[1], false))
	if got := string(h.fs(fresh).read("db/file")); got != "two" {
		t.Errorf("the fresh dot holds %q", got)
	}
	h.reopen()
	if got := string(h.fs(fresh).read("db/file")); got != "two" {
		t.Errorf("after a restart the fresh dot holds %q", got)
	}
}

// What was seen at a remote is remembered and kept, and forgotten with the dot.
func TestSeen(t *testing.T) {
	ctx := t.Context()
	h := newHome(t)
	n, ids := history(t, h, "app")
	up := Upstream{Remote: "hub", Name: "alice/app"}
	h.must(h.NoteSeen(ctx, n, up, map[string]object.ID{"heads/master": ids[2], "heads/gone": ids[0]}))
	h.must(h.NoteSeen(ctx, n, up, map[string]object.ID{"heads/gone": {}}))
	seen, err := h.Seen(ctx, n, up)
	h.must(err)
	if len(seen) != 1 || seen["heads/master"] != ids[2] {
		t.Errorf("seen: %v", seen)
	}
	if other, err := h.Seen(ctx, n, Upstream{Remote: "hub", Name: "alice/other"}); err != nil || len(other) > 0 {
		t.Errorf("seen of another dot: %v, %v", other, err)
	}
	_, err = h.Reset(ctx, n, ids[0].String(), true)
	h.must(err)
	_, err = h.store.GC(ctx, store.GCOptions{})
	h.must(err)
	if has, err := h.store.Has(ids[2]); err != nil || !has {
		t.Errorf("what was seen is kept: %v, %v", has, err)
	}
	h.must(h.Delete(ctx, n))
	_, err = h.store.GC(ctx, store.GCOptions{})
	h.must(err)
	if has, err := h.store.Has(ids[2]); err != nil || has {
		t.Errorf("what was seen of a dot that is gone is kept: %v, %v", has, err)
	}
}

// A lazy dot reads what is not here from its source, what is committed on top is partial, and in the end all is whole.
func TestLazyDot(t *testing.T) {
	ctx := t.Context()
	far := newHome(t)
	_, ids := history(t, far, "app")
	near := newHome(t)
	near.shut()
	near.open()
	near.src = behind{near.store, far.store}
	near.trees = object.NewTreeCache(near.src, treeCache)
	var records [][]byte
	for _, id := range ids {
		plain, err := far.store.Get(ctx, object.KindCommit, id)
		near.must(err)
		records = append(records, plain)
	}
	release, err := near.AddRecords(ctx, records)
	near.must(err)
	n := name(t, "app")
	origin := Origin{Upstream: Upstream{Remote: "hub", Name: "alice/app"}, URL: "https://alice@hub", Key: "secret"}
	_, err = near.CreateAt(ctx, n, Arrival{
		Heads: map[string]object.ID{"master": ids[2]}, Branch: "master", From: origin.Upstream, Lazy: &origin,
	})
	near.must(err)
	release()
	if got := string(near.fs(n).read("db/file")); got != "three" {
		t.Errorf("the lazy dot holds %q", got)
	}
	near.fs(n).write("db/more", []byte("here"))
	res, err := near.Commit(ctx, n, CommitRequest{Message: "on top"})
	near.must(err)
	partial, err := near.Partial(ctx, n)
	near.must(err)
	if len(partial) != 4 || !slices.Contains(partial, res.ID) {
		t.Errorf("%d partial commits", len(partial))
	}
	if list, err := Origins(near.store); err != nil || len(list) != 1 || list[0] != origin {
		t.Errorf("origins: %v, %v", list, err)
	}
	for _, id := range append(slices.Clone(ids), res.ID) {
		if ok, err := near.HasRecord(ctx, id); err != nil || !ok {
			t.Errorf("record of %s: %v, %v", id.Short(), ok, err)
		}
	}
	if info, err := near.Info(ctx, n); err != nil || !info.Lazy {
		t.Errorf("%+v, %v", info, err)
	}
	near.wantKind(near.Complete(ctx, n, ids), errs.Conflict)
	near.must(near.Complete(ctx, n, partial))
	if list, err := Origins(near.store); err != nil || len(list) > 0 {
		t.Errorf("origins of no lazy dot: %v, %v", list, err)
	}
	next, err := near.Commit(ctx, n, CommitRequest{Message: "on a whole one"})
	near.must(err)
	if has, err := near.store.Has(next.ID); err != nil || !has {
		t.Errorf("a commit on a whole one is partial: %v", err)
	}
}

// behind is a store with another one behind it.
type behind struct{ near, far *store.Store }

func (b behind) Get(ctx context.Context, kind object.Kind, id object.ID) ([]byte, error) {
	plain, err := b.near.Get(ctx, kind, id)
	if errs.KindOf(err) == errs.NotFound {
		return b.far.Get(ctx, kind, id)
	}
	return plain, err
}
