package workcopy

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"dm/object"
)

// rig is a working copy of its own, for a story that a test tells.
type rig struct {
	t   *testing.T
	ctx context.Context
	b   *branch
	c   *Copy
	dir string
}

func newRig(t *testing.T) *rig {
	t.Helper()
	return newRigIn(t, filepath.Join(fastDir(t), "copy"))
}

func newRigIn(t *testing.T, dir string) *rig {
	t.Helper()
	r := &rig{t: t, ctx: context.Background(), b: &branch{store: newMemory()}, dir: dir}
	var err error
	r.c, err = Create(r.ctx, r.dir, Config{Source: r.b.store}, object.ID{}, nil)
	r.ok(err)
	t.Cleanup(func() {
		if r.c != nil {
			r.c.Close(r.ctx)
		}
	})
	return r
}

func (r *rig) ok(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) file(name string) NodeID {
	r.t.Helper()
	id, _, err := r.c.Make(r.ctx, RootID, name, NewInode{Mode: object.ModeRegular | 0o644})
	r.ok(err)
	return id
}

func (r *rig) mkdir(dir NodeID, name string) NodeID {
	r.t.Helper()
	id, _, err := r.c.Make(r.ctx, dir, name, NewInode{Mode: object.ModeDir | 0o755})
	r.ok(err)
	return id
}

func (r *rig) write(id NodeID, off int64, s string) {
	r.t.Helper()
	_, err := r.c.Write(r.ctx, id, [][]byte{[]byte(s)}, off, false, false)
	r.ok(err)
}

func (r *rig) truncate(id NodeID, size uint64) {
	r.t.Helper()
	_, err := r.c.SetAttr(r.ctx, id, AttrChange{Size: &size})
	r.ok(err)
}

func (r *rig) look(name string) NodeID {
	r.t.Helper()
	id, _, err := r.c.Lookup(r.ctx, RootID, name)
	r.ok(err)
	return id
}

// cat reads a file of the top directory.
func (r *rig) cat(name string) string {
	r.t.Helper()
	id, a, err := r.c.Lookup(r.ctx, RootID, name)
	r.ok(err)
	defer r.c.Forget(id, 1)
	p := make([]byte, a.Size)
	n, err := r.c.Read(r.ctx, id, p, 0)
	r.ok(err)
	return string(p[:n])
}

func (r *rig) fsync(id NodeID, dataOnly bool) {
	r.t.Helper()
	r.ok(r.c.Fsync(r.ctx, id, dataOnly))
}

func (r *rig) commit() object.ID {
	r.t.Helper()
	id, err := r.b.commit(r.ctx, r.c, nil)
	r.ok(err)
	return id
}

// reset goes back to what the branch is at.
func (r *rig) reset() {
	r.t.Helper()
	commit, err := readCommit(r.ctx, r.b.store, r.b.id)
	r.ok(err)
	r.ok(r.c.Reset(r.ctx, r.b.id, commit, func() error { return nil }))
}

// partly makes a committed file of which nothing is local.
func (r *rig) partly(name, content string) NodeID {
	r.t.Helper()
	r.write(r.file(name), 0, content)
	r.commit()
	r.reset()
	return r.look(name)
}

// prepared freezes and makes all of a commit but for its end: the branch has moved.
func (r *rig) prepared() *Snapshot {
	r.t.Helper()
	s, err := r.c.Freeze(r.ctx)
	r.ok(err)
	for _, f := range s.Files() {
		content, err := chunkAll(r.ctx, r.b.store, f)
		r.ok(err)
		f.SetContent(content)
	}
	commit := &object.Commit{}
	commit.Root, commit.Links, commit.NextIno, err = s.Root(r.ctx, r.b.store)
	r.ok(err)
	id, err := r.b.store.Put(r.ctx, object.KindCommit, commit.Encode())
	r.ok(err)
	r.ok(s.Prepare(r.ctx, id, commit))
	r.b.id = id
	return s
}

func (r *rig) open() {
	r.t.Helper()
	var err error
	r.c, err = Open(r.ctx, r.dir, Config{Source: r.b.store}, r.b.id)
	r.ok(err)
}

func (r *rig) reopen() {
	r.t.Helper()
	r.ok(r.c.Close(r.ctx))
	r.open()
}

// kill ends the server without warning and starts it again.
func (r *rig) kill() {
	r.t.Helper()
	kill(r.c)
	r.open()
}

// power does what a power cut does that spares the files and, if keep is above 0, the first keep bytes of the journal.
func (r *rig) power(keep int64) {
	r.t.Helper()
	seq := r.c.journal.seq
	kill(r.c)
	if keep > 0 {
		r.ok(os.Truncate(journalPath(r.dir, seq), keep))
	}
	r.otherEra()
	r.open()
}

// otherEra has head speak of a page cache that is no more.
func (r *rig) otherEra() {
	r.t.Helper()
	h, err := readHead(r.dir)
	r.ok(err)
	h.Era = "another"
	data, err := json.Marshal(h)
	r.ok(err)
	r.ok(os.WriteFile(filepath.Join(r.dir, "head"), data, 0o600))
}

// committedAsLive makes a commit and compares it with what the working copy shows.
func (r *rig) committedAsLive() {
	r.t.Helper()
	live, err := read(r.ctx, r.c)
	r.ok(err)
	got, err := committed(r.ctx, r.b.store, r.commit())
	r.ok(err)
	if d := live.diff(got); d != "" {
		r.t.Errorf("in the working copy, in a commit of it\n%s", d)
	}
}

func (r *rig) wantFile(name, want string) {
	r.t.Helper()
	if got := r.cat(name); got != want {
		r.t.Errorf("%s holds %s, want %s", name, brief(got), brief(want))
	}
}

func brief(s string) string {
	if len(s) > 60 {
		return fmt.Sprintf("%q... (%d bytes)", s[:60], len(s))
	}
	return fmt.Sprintf("%q", s)
}
