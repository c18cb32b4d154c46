package dot

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
)

// diffed lists what differs from HEAD, and how many bytes of it.
func (h *home) diffed(n Name) []string {
	changes, err := h.Diff(h.t.(*testing.T).Context(), n, "", "")
	if err != nil {
		h.t.Fatal(err)
	}
	return lines(changes)
}

// wantState compares the diff against HEAD, and the changed files and dirty bytes of the status.
func (h *home) wantState(n Name, what string, changed, dirty uint64, diff ...string) {
	h.t.Helper()
	if got := h.diffed(n); !slices.Equal(got, diff) {
		h.t.Error(fmt.Sprintf("%s: diff says %q, want %q", what, got, diff))
	}
	st, err := h.Status(h.t.(*testing.T).Context(), n)
	if err != nil || st.Changed != changed || st.Dirty != dirty {
		h.t.Error(fmt.Sprintf("%s: status says %d changed, %d dirty, %v; want %d and %d", what, st.Changed, st.Dirty, err, changed, dirty))
	}
}

// TestChangedByRestore: whoever asks what differs from HEAD after a restore is told of paths and content, not of inodes, and
// by each command the same.
func TestChangedByRestore(t *testing.T) {
	h := newHome(t)
	ctx := t.Context()
	n := h.create("d", "a")
	f := h.fs(n)
	const block = 4096
	old := bytes.Repeat([]byte("old "), 1000)
	f.write("a/f", old)
	f.write("a/g", []byte("g"))
	f.mkdir("a/d")
	f.write("a/d/x", []byte("x"))
	f.link("a/g", "a/d/g")
	first := h.commit(n, "first")
	f.write("a/f", []byte("new"))
	f.write("a/h", []byte("h"))
	second := h.commit(n, "second")
	restore := func(rev, p string) {
		t.Helper()
		if err := h.Restore(ctx, n, rev, p); err != nil {
			t.Fatal(err)
		}
	}
	h.wantState(n, "clean", 0, 0)
	restore("HEAD", "a")
	h.wantState(n, "HEAD onto itself", 0, 0)
	restore("HEAD", "a/d/x")
	h.wantState(n, "a file of HEAD onto itself", 0, 0)
	restore(first.Commit, "a")
	changes := []string{"M a/f 4000", "- a/h 1"}
	h.wantState(n, "the first commit", 2, 2*block, changes...)
	h.reopen()
	f = h.fs(n)
	h.wantState(n, "reopened", 2, 2*block, changes...)
	if err := h.MayReset(ctx, n, "HEAD", false); err == nil {
		t.Error("a reset would take away what was restored")
	}
	f.rename("a/g", "a/renamed")
	h.wantState(n, "renamed after it was restored", 4, 3*block, "M a/f 4000", "- a/g 1", "- a/h 1", "+ a/renamed 1")
	f.rename("a/renamed", "a/g")
	f.writeAt("a/d/x", 0, []byte("X"))
	h.wantState(n, "written after it was restored", 3, 3*block, "M a/d/x 1", "M a/f 4000", "- a/h 1")
	third := h.commit(n, "third")
	if third.DirtyBytes != 4001 || third.Files != 2 {
		t.Errorf("committed %d bytes in %d files", third.DirtyBytes, third.Files)
	}
	h.wantState(n, "committed", 0, 0)
	restore(second.Commit, "a/h")
	h.wantState(n, "a file that HEAD has not", 1, block, "+ a/h 1")
	if r := h.commit(n, "fourth"); r.DirtyBytes != 1 || r.Files != 1 {
		t.Errorf("committed %d bytes in %d files", r.DirtyBytes, r.Files)
	}
	f.rename("a/d", "a/e")
	restore("HEAD", "a/d")
	if got := h.diffed(n); !slices.Contains(got, "R a/e 0 from a/d") || !slices.Contains(got, "+ a/d 0") {
		t.Errorf("a directory was renamed and brought back: %q", got)
	}
}

// TestSwappedIsDirty: nothing was written, made or removed, and yet there is something to commit.
func TestSwappedIsDirty(t *testing.T) {
	h := newHome(t)
	n := h.create("d", "a")
	f := h.fs(n)
	f.write("a/f", []byte("f"))
	f.write("a/g", []byte("g"))
	h.commit(n, "first")
	f.rename("a/f", "a/x")
	f.rename("a/g", "a/f")
	f.rename("a/x", "a/g")
	if st, err := h.Status(t.Context(), n); err != nil || st.Dirty == 0 {
		t.Errorf("%d bytes are dirty, %v", st.Dirty, err)
	}
}
