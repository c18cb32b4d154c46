package dot

import (
	"context"
	"errors"
	"path"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"dm/object"
	"dm/store"
	"dm/workcopy"
)

// tester is what a test and a run of rapid have in common.
type tester interface {
	Helper()
	Fatal(args ...any)
	Error(args ...any)
}

// home is a store and its dots in a directory, which can be closed and opened again.
type home struct {
	*Dots
	t     tester
	dir   string
	ticks atomic.Int64
}

// now is a clock of the test's own, so that a random history gives the same ids when it is run again.
func (h *home) now() time.Time { return time.Unix(1e9, 1000*h.ticks.Add(1)) }

func newHome(t testing.TB) *home {
	h := &home{t: t, dir: t.TempDir()}
	h.open()
	t.Cleanup(h.shut)
	return h
}

func (h *home) open() {
	st, err := store.Open(context.Background(), filepath.Join(h.dir, "store"), store.Options{})
	if err != nil {
		h.t.Fatal(err)
	}
	if h.Dots, err = Open(context.Background(), Config{Store: st, Dir: filepath.Join(h.dir, "work"), Now: h.now}); err != nil {
		h.t.Fatal(err)
	}
}

func (h *home) shut() {
	if h.Dots == nil {
		return
	}
	if err := errors.Join(h.Close(context.Background()), h.store.Close()); err != nil {
		h.t.Error(err)
	}
	h.Dots = nil
}

func (h *home) reopen() {
	h.shut()
	h.open()
}

// branchOut makes a branch and makes it the current one.
func (h *home) branchOut(ctx context.Context, n Name, branch string) error {
	if err := h.CreateBranch(ctx, n, branch); err != nil {
		return err
	}
	return h.Checkout(ctx, n, branch)
}

func name(t tester, s string) Name {
	n, err := ParseName(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// fs returns the files of a branch's working copy.
func (h *home) fs(n Name) *files {
	wc, err := h.WorkingCopy(context.Background(), n)
	if err != nil {
		h.t.Fatal(err)
	}
	return &files{h.t, wc.Copy}
}

// files is a working copy as a test uses it: by paths, and what fails ends the test.
type files struct {
	t tester
	c *workcopy.Copy
}

func (f *files) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// in calls fn with the directory of a path, and the last name.
func (f *files) in(p string, fn func(dir workcopy.NodeID, name string) error) error {
	d := path.Dir(p)
	if d == "." {
		return fn(workcopy.RootID, p)
	}
	id, _, err := find(context.Background(), f.c, d)
	if err != nil {
		return err
	}
	defer f.c.Forget(id, 1)
	return fn(id, path.Base(p))
}

func (f *files) make(p string, in workcopy.NewInode) {
	f.t.Helper()
	f.must(f.in(p, func(dir workcopy.NodeID, name string) error {
		id, _, err := f.c.Make(context.Background(), dir, name, in)
		if err == nil {
			f.c.Forget(id, 1)
		}
		return err
	}))
}

func (f *files) mkdir(p string) {
	f.t.Helper()
	f.make(p, workcopy.NewInode{Mode: object.ModeDir | 0o755})
}

// write makes the file's whole content data, in place.
func (f *files) write(p string, data []byte) {
	f.t.Helper()
	if _, _, err := f.lookup(p); errors.Is(err, syscall.ENOENT) {
		f.make(p, workcopy.NewInode{Mode: object.ModeRegular | 0o644})
	}
	f.writeAt(p, 0, data)
	size := uint64(len(data))
	f.must(f.at(p, func(id workcopy.NodeID) error {
		_, err := f.c.SetAttr(context.Background(), id, workcopy.AttrChange{Size: &size})
		return err
	}))
}

func (f *files) writeAt(p string, off int64, data []byte) {
	f.t.Helper()
	f.must(f.at(p, func(id workcopy.NodeID) error {
		for len(data) > 0 {
			n, err := f.c.Write(context.Background(), id, [][]byte{data[:min(len(data), 1<<20)]}, off, false, false)
			if err != nil {
				return err
			}
			data, off = data[n:], off+int64(n)
		}
		return nil
	}))
}

func (f *files) lookup(p string) (id workcopy.NodeID, a workcopy.Attr, err error) {
	if id, a, err = find(context.Background(), f.c, p); err == nil {
		f.c.Forget(id, 1)
	}
	return id, a, err
}

func (f *files) at(p string, fn func(id workcopy.NodeID) error) error {
	id, _, err := find(context.Background(), f.c, p)
	if err != nil {
		return err
	}
	defer f.c.Forget(id, 1)
	return fn(id)
}

func (f *files) read(p string) (data []byte) {
	f.t.Helper()
	f.must(f.at(p, func(id workcopy.NodeID) error {
		a, err := f.c.GetAttr(context.Background(), id)
		if err != nil {
			return err
		}
		data = make([]byte, a.Size)
		n, err := f.c.Read(context.Background(), id, data, 0)
		data = data[:n]
		return err
	}))
	return data
}

func (f *files) remove(p string) {
	f.t.Helper()
	f.must(f.in(p, func(dir workcopy.NodeID, name string) error {
		return removeAll(context.Background(), f.c, dir, name)
	}))
}

func (f *files) rename(from, to string) {
	f.t.Helper()
	f.must(f.in(from, func(dir workcopy.NodeID, name string) error {
		return f.in(to, func(toDir workcopy.NodeID, toName string) error {
			return f.c.Rename(context.Background(), dir, name, toDir, toName, 0)
		})
	}))
}

func (f *files) link(from, to string) {
	f.t.Helper()
	f.must(f.at(from, func(id workcopy.NodeID) error {
		return f.in(to, func(dir workcopy.NodeID, name string) error {
			_, err := f.c.Link(context.Background(), id, dir, name)
			return err
		})
	}))
}

// all returns every regular file's content by path, and nil for directories.
func (f *files) all() map[string][]byte {
	f.t.Helper()
	m := map[string][]byte{}
	f.collect(m, workcopy.RootID, "")
	return m
}

func (f *files) collect(m map[string][]byte, dir workcopy.NodeID, at string) {
	f.t.Helper()
	var names []workcopy.DirEntry
	f.must(f.c.ReadDir(context.Background(), dir, 0, func(e workcopy.DirEntry) bool {
		names = append(names, e)
		return true
	}))
	for _, e := range names {
		p := path.Join(at, e.Name)
		if e.Type != object.ModeDir {
			m[p] = append([]byte{}, f.read(p)...)
			continue
		}
		m[p] = nil
		id, _, err := f.c.Lookup(context.Background(), dir, e.Name)
		f.must(err)
		f.collect(m, id, p)
		f.c.Forget(id, 1)
	}
}

func (h *home) commit(n Name, msg string) *CommitResult {
	h.t.Helper()
	r, err := h.Commit(context.Background(), n, CommitRequest{Message: msg, Author: "ann"})
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

func (h *home) create(s string, subdots ...string) Name {
	h.t.Helper()
	n := name(h.t, s)
	if _, err := h.Create(context.Background(), n, CreateOptions{Subdots: subdots}); err != nil {
		h.t.Fatal(err)
	}
	return n
}
