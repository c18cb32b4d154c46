package dot

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"dm/internal/errs"
	"dm/store"
	"dm/workcopy"
)

// The whole story of a dot, in the order a user lives it.
func TestStory(t *testing.T) {
	ctx := t.Context()
	h := newHome(t)
	n := h.create("shop", "db", "www")
	f := h.fs(n)
	page := make([]byte, 1<<20)
	random(page, 1)
	f.write("db/data", page)
	f.write("www/index", []byte("hello"))

	if log, err := h.Log(ctx, n, "", 0); err != nil || len(log) != 0 {
		t.Fatalf("log before the first commit: %v, %v", log, err)
	}
	if _, _, err := h.Resolve(ctx, n, "HEAD"); errs.KindOf(err) != errs.NotFound {
		t.Fatalf("HEAD before the first commit: %v", err)
	}
	if err := h.branchOut(ctx, n, "early"); errs.KindOf(err) != errs.Conflict {
		t.Fatalf("branching off nothing: %v", err)
	}
	first := h.commit(n, "first")
	if first.DirtyBytes < 1<<20 || first.ReadBytes < 1<<20 || first.NewObjects < 17 || first.Files != 2 || first.Branch != "master" {
		t.Errorf("the first commit says %+v", first)
	}
	if st, err := h.Status(ctx, n); err != nil || st.Dirty != 0 || st.Changed != 0 || st.Size != 1<<20+5 || len(st.Subdots) != 2 || st.Commit != first.Commit {
		t.Errorf("after the commit: %+v, %v", st, err)
	}

	f.writeAt("db/data", 500_000, []byte("changed"))
	st, err := h.Status(ctx, n)
	if err != nil || st.Dirty != workcopy.BlockSize || st.Subdots[0].Name != "db" || st.Subdots[0].Dirty != workcopy.BlockSize {
		t.Errorf("after a write of 7 bytes: %+v, %v", st, err)
	}
	second := h.commit(n, "second")
	if second.ReadBytes != 64<<10 || second.DirtyBytes != workcopy.BlockSize || second.StoredBytes > 4<<10 {
		t.Errorf("a commit of 7 bytes says %+v", second)
	}
	third := h.commit(n, "nothing changed")
	if third.ReadBytes != 0 || third.ID == second.ID {
		t.Errorf("a commit of nothing says %+v", third)
	}
	log, err := h.Log(ctx, n, "", 0)
	if err != nil || len(log) != 3 || log[0].ID != first.Commit || log[2].ID != third.Commit || log[0].Message != "first" || log[0].Author != "ann" {
		t.Fatalf("log: %+v, %v", log, err)
	}
	if log, err = h.Log(ctx, n, "", 2); err != nil || len(log) != 2 || log[0].ID != second.Commit {
		t.Errorf("the newest two: %+v, %v", log, err)
	}
	var got bytes.Buffer
	if err := h.Cat(ctx, n, "HEAD~2", "db/data", &got); err != nil || !bytes.Equal(got.Bytes(), page) {
		t.Errorf("the first commit's file has changed: %v", err)
	}
	show, err := h.Show(ctx, n, second.Commit[:12])
	if err != nil || len(show.Changes) != 1 || show.Changes[0] != (Change{Kind: Modified, Path: "db/data", Bytes: 64 << 10}) || len(show.Subdots) != 1 {
		t.Errorf("show: %+v, %v", show, err)
	}

	f.write("www/new", []byte("uncommitted"))
	if _, err := h.Reset(ctx, n, "HEAD^^", false); errs.KindOf(err) != errs.Conflict || !strings.HasPrefix(err.Error(), "there are uncommitted changes: ") {
		t.Fatalf("a reset over changes: %v", err)
	}
	if r, err := h.Reset(ctx, n, "HEAD^^", true); err != nil || r.From != third.Commit || r.To != first.Commit || r.Discarded == 0 {
		t.Fatalf("reset: %+v, %v", r, err)
	}
	if got := f.all(); !bytes.Equal(got["db/data"], page) || got["www/new"] != nil || len(got) != 4 {
		t.Error("after the reset the working copy is not the first commit")
	}
	if l, err := h.List(ctx); err != nil || len(l) != 1 || l[0].Commits != 1 || l[0].Dirty != 0 || l[0].Size != 1<<20+5 || l[0].Branch != "master" {
		t.Errorf("list: %+v, %v", l, err)
	}
	// What the reset left is still found by its id.
	if _, err := h.Reset(ctx, n, third.Commit[:16], false); err != nil {
		t.Errorf("back to an abandoned commit: %v", err)
	}
}

func TestBranchesKeepTheirOwnState(t *testing.T) {
	ctx := t.Context()
	h := newHome(t)
	n := h.create("d", "s")
	h.fs(n).write("s/f", []byte("one"))
	h.commit(n, "1")
	h.fs(n).write("s/f", []byte("dirty on master"))
	if err := h.branchOut(ctx, n, "next"); err != nil {
		t.Fatal(err)
	}
	if got := string(h.fs(n).read("s/f")); got != "one" {
		t.Errorf("a new branch begins with %q", got)
	}
	h.fs(n).write("s/f", []byte("two"))
	h.commit(n, "2")
	h.fs(n).write("s/f", []byte("dirty on next"))
	h.cfg.Detach = func(_ context.Context, id string) error { t.Errorf("%s was unmounted", id); return nil }
	for _, c := range []struct {
		err  error
		kind errs.Kind
		msg  string
	}{
		{h.branchOut(ctx, n, "next"), errs.Conflict, "Branch already exists: next"},
		{h.Checkout(ctx, n, "none"), errs.NotFound, "Branch does not exist: none"},
		{h.branchOut(ctx, n, "a b"), errs.Usage, "invalid branch name 'a b': use letters, digits, '_' and '-', at most 64"},
		{h.DeleteBranch(ctx, n, "next"), errs.Conflict, "branch next is the current one"},
		{h.DeleteBranch(ctx, n, "master"), errs.Conflict, "delete branch master: there are uncommitted changes: 4096 bytes (4.0 KiB) in 1 files"},
	} {
		if errs.KindOf(c.err) != c.kind || c.err.Error() != c.msg {
			t.Errorf("got %v (%v), want %s (%v)", c.err, errs.KindOf(c.err), c.msg, c.kind)
		}
	}
	h.reopen()
	h.cfg.Detach = nil
	if got := string(h.fs(n).read("s/f")); got != "dirty on next" {
		t.Errorf("after a restart next has %q", got)
	}
	master := n
	master.Branch = "master"
	if got := string(h.fs(master).read("s/f")); got != "dirty on master" {
		t.Errorf("after a restart master has %q", got)
	}
	if l, err := h.List(ctx); err != nil || l[0].Commits != 2 {
		t.Errorf("list: %+v, %v", l, err)
	}
	if _, err := h.Reset(ctx, master, "HEAD", true); err != nil {
		t.Fatal(err)
	}
	wc, err := h.WorkingCopy(ctx, master)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.DeleteBranch(ctx, n, "master"); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(h.dir, "work", wc.ID)); len(left) != 0 {
		t.Errorf("the deleted branch left %v", left)
	}
	if b, err := h.Branches(ctx, n); err != nil || len(b) != 1 || b[0].Name != "next" || !b[0].Current {
		t.Errorf("branches: %+v, %v", b, err)
	}
}

func TestDotsComeAndGo(t *testing.T) {
	ctx := t.Context()
	h := newHome(t)
	n := h.create("a", "s")
	h.create("bob/z")
	_, err := h.Create(ctx, n, CreateOptions{})
	if errs.KindOf(err) != errs.Conflict || err.Error() != "Error: a exists already" {
		t.Errorf("made twice: %v", err)
	}
	_, err = h.Create(ctx, Name{Namespace: "admin", Dot: "x@y"}, CreateOptions{})
	if errs.KindOf(err) != errs.Usage || err.Error() != "invalid dot name 'x@y': use letters, digits, '_' and '-', at most 64" {
		t.Errorf("bad name: %v", err)
	}
	if _, err := h.Create(ctx, name(t, "c"), CreateOptions{Cache: "fast"}); errs.KindOf(err) != errs.Usage {
		t.Errorf("bad cache mode: %v", err)
	}
	before, err := h.Info(ctx, n)
	if err != nil {
		t.Fatal(err)
	}
	h.fs(n).write("s/f", []byte("kept"))
	h.commit(n, "1")
	if _, err := h.CreateTag(ctx, n, "v1", ""); err != nil {
		t.Fatal(err)
	}
	if err := h.Rename(ctx, n, name(t, "bob/z")); errs.KindOf(err) != errs.Conflict {
		t.Errorf("renamed over another dot: %v", err)
	}
	b := name(t, "b")
	if err := h.Rename(ctx, n, b); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Info(ctx, n); errs.KindOf(err) != errs.NotFound || err.Error() != "Dot a does not exist." {
		t.Errorf("the old name: %v", err)
	}
	after, err := h.Info(ctx, b)
	if err != nil || after.ID != before.ID || len(after.Tags) != 1 || string(h.fs(b).read("s/f")) != "kept" {
		t.Errorf("after the rename: %+v, %v", after, err)
	}
	if err := h.SetUpstream(ctx, b, Upstream{Remote: "hub", Name: "ann/b"}); err != nil {
		t.Fatal(err)
	}
	if err := h.SetUpstream(ctx, b, Upstream{Remote: "hub", Name: "ann/c"}); err != nil {
		t.Fatal(err)
	}
	if i, err := h.Info(ctx, b); err != nil || len(i.Upstreams) != 1 || i.Upstreams[0].Name != "ann/c" {
		t.Errorf("upstreams: %+v, %v", i, err)
	}
	if names, err := h.Names(ctx); err != nil || len(names) != 2 || names[0] != b || names[1].String() != "bob/z" {
		t.Errorf("names: %v, %v", names, err)
	}
	var detached []string
	h.cfg.Detach = func(_ context.Context, id string) error { detached = append(detached, id); return nil }
	if err := h.Delete(ctx, b); err != nil || len(detached) != 1 {
		t.Fatalf("delete: %v, detached %v", err, detached)
	}
	if err := h.store.View(func(tx *store.Tx) error {
		for key := range tx.Metas("") {
			if strings.Contains(key, before.ID) || strings.HasPrefix(key, "trash/") {
				t.Errorf("the deleted dot left %s", key)
			}
		}
		for ref := range tx.Refs("dots/" + before.ID) {
			t.Errorf("the deleted dot left %s", ref)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	h.cfg.Detach = func(context.Context, string) error { return errs.New(errs.Conflict, "in use by 17") }
	z := name(t, "bob/z")
	if err := h.Delete(ctx, z); errs.KindOf(err) != errs.Conflict {
		t.Errorf("deleted what is in use: %v", err)
	}
	if _, err := h.EnsureSubdot(ctx, z); err != nil {
		t.Errorf("after a refused delete: %v", err)
	}
}

// A deletion that a crash cut short after its transaction is finished by the next start.
func TestTrashIsEmptied(t *testing.T) {
	h := newHome(t)
	n := h.create("a", "s")
	wc, err := h.WorkingCopy(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.store.Update(func(tx *store.Tx) error {
		r, err := getDot(tx, n)
		if err != nil {
			return err
		}
		b, err := getBranch(tx, n)
		if err != nil {
			return err
		}
		return errors.Join(tx.SetMeta(trashKey(wc.ID), []byte{}), b.remove(tx), r.remove(tx))
	}); err != nil {
		t.Fatal(err)
	}
	h.reopen()
	if left, _ := filepath.Glob(filepath.Join(h.dir, "work", "*")); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	h.create("a", "s")
}

// A commit that is cancelled, wherever, has not happened: same branch, same dirty bytes, and the next one has everything.
func TestCancelledCommitHasNotHappened(t *testing.T) {
	h := newHome(t)
	n := h.create("d", "s")
	f := h.fs(n)
	data := make([]byte, 30<<20)
	random(data, 5)
	f.write("s/f", data)
	first := h.commit(n, "1")
	random(data, 6)
	f.writeAt("s/f", 0, data)
	before, err := h.Status(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	cancelled := 0
	for i := range 12 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i*i)*time.Millisecond)
		_, err := h.Commit(ctx, n, CommitRequest{Message: "cut short", Progress: func(p Progress) {
			if i%2 == 1 && p.BytesDone > 0 {
				cancel()
			}
		}})
		cancel()
		if err == nil {
			break
		}
		cancelled++
		if !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		if st, err := h.Status(t.Context(), n); err != nil || st.Commit != first.Commit || st.Dirty != before.Dirty {
			t.Fatalf("after a cancelled commit: %+v, %v; before %+v", st, err, before)
		}
	}
	if cancelled == 0 {
		t.Fatal("no commit was cancelled")
	}
	h.commit(n, "2")
	var got bytes.Buffer
	if err := h.Cat(t.Context(), n, "HEAD", "s/f", &got); err != nil || !bytes.Equal(got.Bytes(), data) {
		t.Errorf("the commit after is not the file: %v", err)
	}
	if c, err := h.countOf(t.Context(), mustBranch(h, n)); err != nil || c > 3 {
		t.Errorf("%d commits, %v", c, err)
	}
}

func mustBranch(h *home, n Name) *branchState {
	b, err := h.branch(context.Background(), n)
	if err != nil {
		h.t.Fatal(err)
	}
	return b
}

func TestRestore(t *testing.T) {
	ctx := t.Context()
	h := newHome(t)
	n := h.create("d", "s", "u")
	f := h.fs(n)
	f.mkdir("s/dir")
	f.write("s/dir/a", []byte("a1"))
	f.write("s/dir/b", []byte("b1"))
	f.write("u/x", []byte("x1"))
	h.commit(n, "1")
	f.write("s/dir/a", []byte("a2"))
	f.write("u/x", []byte("x2"))
	h.commit(n, "2")
	f.remove("s/dir")
	if err := h.Restore(ctx, n, "HEAD^", "s/dir/a"); err != nil {
		t.Fatal(err)
	}
	if got := f.all(); string(got["s/dir/a"]) != "a1" || got["s/dir/b"] != nil || string(got["u/x"]) != "x2" {
		t.Errorf("after restoring one file: %q", got)
	}
	if err := h.Restore(ctx, n, "HEAD^", "/u/"); err != nil {
		t.Fatal(err)
	}
	if got := string(f.read("u/x")); got != "x1" {
		t.Errorf("the restored subdot has %q", got)
	}
	for p, kind := range map[string]errs.Kind{"": errs.Usage, "../x": errs.Usage, "s/none": errs.NotFound, "u/x/y": errs.NotFound} {
		if err := h.Restore(ctx, n, "HEAD", p); errs.KindOf(err) != kind {
			t.Errorf("restore %q: %v", p, err)
		}
	}
	h.commit(n, "3")
	var got bytes.Buffer
	if err := h.Cat(ctx, n, "HEAD", "s/dir/a", &got); err != nil || got.String() != "a1" {
		t.Errorf("committed after the restore: %q, %v", got.String(), err)
	}
}

// Commits, listings and readers run beside writers; every commit is the file at some moment.
func TestCommitsBesideWriters(t *testing.T) {
	ctx := t.Context()
	h := newHome(t)
	n := h.create("d", "s")
	f := h.fs(n)
	const size = 3 << 20
	f.write("s/f", make([]byte, size))
	stop, done := make(chan struct{}), make(chan error, 3)
	go func() {
		for i := byte(1); ; i++ {
			select {
			case <-stop:
				done <- nil
				return
			default:
				f.writeAt("s/f", 0, bytes.Repeat([]byte{i}, 64<<10))
				f.writeAt("s/f", size-64<<10, bytes.Repeat([]byte{i}, 64<<10))
			}
		}
	}()
	go func() {
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			_, err1 := h.List(ctx)
			_, err2 := h.Diff(ctx, n, "", "")
			if err := errors.Join(err1, err2); err != nil {
				done <- err
				return
			}
		}
	}()
	go func() {
		for range 15 {
			if _, err := h.Commit(ctx, n, CommitRequest{Message: "beside"}); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	for range 15 {
		h.commit(n, "x")
	}
	close(stop)
	for range 3 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	log, err := h.Log(ctx, n, "", 0)
	if err != nil || len(log) != 30 {
		t.Fatalf("%d commits, %v", len(log), err)
	}
	for _, c := range log {
		var b bytes.Buffer
		if err := h.Cat(ctx, n, c.ID, "s/f", &b); err != nil {
			t.Fatal(err)
		}
		head, tail := b.Bytes()[0], b.Bytes()[size-1]
		if head != tail && head != tail+1 || !bytes.Equal(b.Bytes()[:64<<10], bytes.Repeat([]byte{head}, 64<<10)) {
			t.Errorf("commit %s: begins with %d, ends with %d", c.ID[:8], head, tail)
		}
	}
}

// A file committed while it was empty and written since keeps its bytes over a restart.
func TestFileCommittedEmptyThenWritten(t *testing.T) {
	h := newHome(t)
	n := h.create("d", "s")
	f := h.fs(n)
	f.write("s/a", nil)
	h.commit(n, "1")
	f.write("s/a", []byte("x"))
	h.reopen()
	if got := string(h.fs(n).read("s/a")); got != "x" {
		t.Errorf("%q", got)
	}
}

// What a directory listed before a reset is not what it lists after.
func TestResetOfFreshBranch(t *testing.T) {
	h := newHome(t)
	n := h.create("d", "s")
	f := h.fs(n)
	f.write("s/a", []byte("1"))
	h.commit(n, "1")
	f.mkdir("s/d")
	f.write("s/d/x", []byte("2"))
	h.commit(n, "2")
	if err := h.branchOut(t.Context(), n, "b"); err != nil {
		t.Fatal(err)
	}
	if got := h.fs(n).all(); len(got) != 4 {
		t.Errorf("the new branch holds %q", describe(got))
	}
	for _, rev := range []string{"HEAD^", "HEAD"} {
		if _, err := h.Reset(t.Context(), n, rev, true); err != nil {
			t.Fatal(err)
		}
		if got := h.fs(n).all(); len(got) != 2 {
			t.Errorf("after a reset to %s the branch holds %q", rev, describe(got))
		}
	}
}

// A hard-linked file is committed once under all its names; what is written through one name shows in the diff under all.
func TestHardLinks(t *testing.T) {
	ctx := t.Context()
	h := newHome(t)
	n := h.create("d", "s", "u")
	f := h.fs(n)
	f.write("s/a", []byte("one"))
	f.link("s/a", "u/b")
	h.commit(n, "1")
	f.writeAt("u/b", 0, []byte("two"))
	h.commit(n, "2")
	changes, err := h.Diff(ctx, n, "HEAD^", "HEAD")
	if got := lines(changes); err != nil || len(got) != 2 || got[0] != "M s/a 3" || got[1] != "M u/b 3" {
		t.Errorf("diff: %q, %v", got, err)
	}
	if l, err := h.List(ctx); err != nil || l[0].Size != 3 {
		t.Errorf("a file with two names counts as %d bytes, %v", l[0].Size, err)
	}
	if _, err := h.Reset(ctx, n, "HEAD^", true); err != nil {
		t.Fatal(err)
	}
	f = h.fs(n)
	f.writeAt("s/a", 0, []byte("six"))
	if got := string(f.read("u/b")); got != "six" {
		t.Errorf("after a reset the names are apart: %q", got)
	}
	f.remove("s/a")
	h.commit(n, "3")
	changes, err = h.Diff(ctx, n, "HEAD^", "HEAD")
	if got := lines(changes); err != nil || len(got) != 2 || got[0] != "- s/a 3" || got[1] != "M u/b 3" {
		t.Errorf("diff after losing a name: %q, %v", got, err)
	}
}

// A file that a program replaced by renaming a new one over it has changed; it has neither gone nor come.
func TestDiffOfReplacedFiles(t *testing.T) {
	ctx := t.Context()
	h := newHome(t)
	n := h.create("d", "s")
	f := h.fs(n)
	f.write("s/config", []byte("old"))
	f.write("s/gone", []byte("gone"))
	f.mkdir("s/was a directory")
	h.commit(n, "1")
	f.write("s/config.new", []byte("newer"))
	f.rename("s/config.new", "s/config")
	f.remove("s/gone")
	f.remove("s/was a directory")
	f.write("s/was a directory", []byte("x"))
	want := []string{"M s/config 5", "- s/gone 4", "- s/was a directory 0", "+ s/was a directory 1"}
	changes, err := h.Diff(ctx, n, "", "")
	changes = slices.DeleteFunc(changes, func(c Change) bool { return c.Path == "s" }) // its time changed with its names
	if got := lines(changes); err != nil || !slices.Equal(got, want) {
		t.Errorf("uncommitted: %q, %v; want %q", got, err, want)
	}
	h.commit(n, "2")
	changes, err = h.Diff(ctx, n, "HEAD^", "HEAD")
	got := lines(changes)
	slices.Sort(got)
	slices.Sort(want)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("of two commits: %q, %v; want %q", got, err, want)
	}
}

// A branch that was moved by someone else is not moved back: the commit fails with nothing lost, and a reset follows it.
func TestCommitAfterTheBranchWasMoved(t *testing.T) {
	ctx := t.Context()
	h := newHome(t)
	n := h.create("d", "s")
	f := h.fs(n)
	f.write("s/f", []byte("one"))
	h.commit(n, "1")
	f.write("s/f", []byte("two"))
	moved := h.addCommits(n, 1)[0]
	for range 2 {
		_, err := h.Commit(ctx, n, CommitRequest{Message: "2"})
		if errs.KindOf(err) != errs.Conflict || errs.HintOf(err) == "" {
			t.Fatalf("commit: %v", err)
		}
		if st, err := h.Status(ctx, n); err != nil || st.Dirty == 0 || st.Commit != moved.String() || string(f.read("s/f")) != "two" {
			t.Fatalf("after the refused commit: %+v, %v", st, err)
		}
		h.reopen()
		f = h.fs(n)
	}
	if _, err := h.Reset(ctx, n, "HEAD", true); err != nil {
		t.Fatal(err)
	}
	if got := h.fs(n).all(); len(got) != 0 {
		t.Errorf("the reset shows %q", describe(got))
	}
	h.fs(n).mkdir("s")
	if r := h.commit(n, "3"); mustBranch(h, n).tip != r.ID {
		t.Error("the branch is not at the new commit")
	}
}

// Deleting, releasing, listing and committing at the same time ends, and leaves either a whole dot or none.
func TestDeleteBesideEverything(t *testing.T) {
	ctx := t.Context()
	h := newHome(t)
	for range 10 {
		n := h.create("d", "s")
		h.fs(n).write("s/f", make([]byte, 100_000))
		done := make(chan error, 4)
		wc, err := h.WorkingCopy(ctx, n)
		if err != nil {
			t.Fatal(err)
		}
		go func() { done <- h.Delete(ctx, n) }()
		go func() { _, err := h.Commit(ctx, n, CommitRequest{Message: "x"}); done <- err }()
		go func() { done <- h.Release(ctx, wc.ID) }()
		go func() { _, err := h.List(ctx); done <- err }()
		for range 4 {
			if err := <-done; err != nil && errs.KindOf(err) != errs.NotFound {
				t.Fatal(err)
			}
		}
		if _, err := h.Info(ctx, n); errs.KindOf(err) != errs.NotFound {
			t.Fatalf("after the delete: %v", err)
		}
		if left, _ := filepath.Glob(filepath.Join(h.dir, "work", "*")); len(left) != 0 {
			t.Fatalf("left: %v", left)
		}
	}
}

// kernelStub tells when a freeze is behind the gate.
type kernelStub struct{ frozen chan struct{} }

func (k kernelStub) Flush(context.Context) error                          { return nil }
func (k kernelStub) Recall(context.Context) error                         { return nil }
func (k kernelStub) Invalidate(dir workcopy.NodeID, names []string) error { return nil }
func (k kernelStub) FlushRecent(context.Context) error {
	k.frozen <- struct{}{}
	return nil
}

// TestCommitsOverlap: a commit that begins while another is being chunked holds what was there when it began, and follows
// the other.
func TestCommitsOverlap(t *testing.T) {
	ctx := t.Context()
	h := newHome(t)
	n := h.create("d", "a")
	f := h.fs(n)
	wc, err := h.WorkingCopy(ctx, n)
	f.must(err)
	k := kernelStub{make(chan struct{}, 1)}
	defer wc.Copy.Attach(k)()
	f.write("a/f", []byte("first"))

	chunking, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	results := make(chan *CommitResult, 2)
	var g errgroup.Group
	frozen := make(chan string, 2)
	commit := func(message string, progress func(Progress)) {
		g.Go(func() error {
			res, err := h.Commit(ctx, n, CommitRequest{
				Author: "t", Message: message, Progress: progress, Frozen: func() { frozen <- message },
			})
			results <- res
			return err
		})
	}
	commit("one", func(Progress) {
		once.Do(func() {
			close(chunking)
			<-release
		})
	})
	<-k.frozen
	<-chunking
	f.write("a/f", []byte("second"))
	commit("two", nil)
	<-k.frozen
	f.write("a/f", []byte("third")) // waits at the gate until the cut
	for _, want := range []string{"one", "two"} {
		select {
		case got := <-frozen:
			if got != want {
				t.Errorf("commit %s is frozen before %s", got, want)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("nobody hears that the instant of commit %s is over while another is being made", want)
		}
	}
	select {
	case <-results:
		t.Fatal("a commit ended before the one before it")
	case <-time.After(50 * time.Millisecond):
	}
	close(release)
	f.must(g.Wait())

	log, err := h.Log(ctx, n, "", 0)
	f.must(err)
	if len(log) != 2 || log[0].Message != "one" || log[1].Message != "two" {
		t.Fatalf("log: %+v", log)
	}
	for i, want := range []string{"first", "second"} {
		var got bytes.Buffer
		f.must(h.Cat(ctx, n, log[i].ID, "a/f", &got))
		if got.String() != want {
			t.Errorf("commit %d holds %q, want %q", i, got.String(), want)
		}
	}
	list, err := h.List(ctx)
	f.must(err)
	if list[0].Commits != 2 {
		t.Errorf("the branch counts %d commits", list[0].Commits)
	}
	if got := f.read("a/f"); string(got) != "third" {
		t.Errorf("the volume holds %q", got)
	}
}
