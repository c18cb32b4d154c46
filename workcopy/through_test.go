package workcopy

import (
	"context"
	"math/rand/v2"
	"strings"
	"testing"

	"dm/object"
)

// localBlocks counts the blocks of a file whose bytes are in the backing file.
func (r *rig) localBlocks(id NodeID) uint64 {
	r.t.Helper()
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	n, err := r.c.getFile(id)
	r.ok(err)
	switch {
	case !n.file.partial:
		return blocksUpTo(n.size)
	case n.file.local == nil:
		return 0
	}
	return n.file.local.GetCardinality()
}

func (r *rig) readAt(id NodeID, want string, off, size int) {
	r.t.Helper()
	p := make([]byte, size)
	n, err := r.c.Read(r.ctx, id, p, int64(off))
	r.ok(err)
	if string(p[:n]) != want[off:min(off+size, len(want))] {
		r.t.Fatalf("%d bytes at %d are not what was committed", size, off)
	}
}

// What is read once leaves no copy in the backing file; what is read twice does, and so does a chunk in which somebody
// reads here and there.
func TestReadThrough(t *testing.T) {
	r := newRig(t)
	rnd := rand.New(rand.NewPCG(1, 2))
	data := make([]byte, 3<<20+1234)
	for i := range data {
		data[i] = byte(rnd.Uint32())
	}
	want := string(data)
	id := r.partly("f", want)

	const step = 128 << 10
	for off := 0; off < len(want); off += step {
		r.readAt(id, want, off, step)
	}
	if n := r.localBlocks(id); n > 0 {
		t.Errorf("%d blocks are local after one reading from start to end", n)
	}
	for off := 0; off < len(want); off += step {
		r.readAt(id, want, off, step)
	}
	if n := r.localBlocks(id); n != blocksUpTo(uint64(len(want))) {
		t.Errorf("%d of %d blocks are local after a second reading", n, blocksUpTo(uint64(len(want))))
	}

	r.reset()
	id = r.look("f")
	r.readAt(id, want, 1<<20, BlockSize)
	if n := r.localBlocks(id); n > 0 {
		t.Errorf("%d blocks are local after one read of a block", n)
	}
	r.readAt(id, want, 2<<20, BlockSize)
	r.readAt(id, want, 1<<20+BlockSize, BlockSize)
	if n := r.localBlocks(id); n == 0 {
		t.Errorf("%d blocks are local after two reads in one chunk", n)
	}
	// What is local already stays what it is.
	r.write(id, 100, "new")
	want = want[:100] + "new" + want[103:]
	r.readAt(id, want, 0, step)
	r.wantFile("f", want)
}

// stopping is a store whose reads wait.
type stopping struct {
	*memory
	asked, goOn chan struct{}
}

func (s *stopping) Get(ctx context.Context, k object.Kind, id object.ID) ([]byte, error) {
	if k == object.KindChunk {
		s.asked <- struct{}{}
		<-s.goOn
	}
	return s.memory.Get(ctx, k, id)
}

// TestForgottenWhileReadAhead: a file that the kernel lets go of while it is read ahead, and takes up again, is one file.
func TestForgottenWhileReadAhead(t *testing.T) {
	r := newRig(t)
	id := r.partly("f", strings.Repeat("c", 20000))
	store := &stopping{r.b.store, make(chan struct{}), make(chan struct{})}
	r.c.cfg.Source = store
	_, err := r.c.fileOf(id)
	r.ok(err)
	n := r.c.nodes[id]
	n.file.ahead.sequential = true
	r.c.readAhead(n, BlockSize, true)
	<-store.asked
	r.c.Forget(id, 1)
	if now := r.look("f"); r.c.nodes[now] != n {
		t.Error("there are two of it")
	}
	go func() {
		for range store.asked { // the rest
		}
	}()
	close(store.goOn)
	r.write(id, 0, strings.Repeat("w", 20000))
	r.wantFile("f", strings.Repeat("w", 20000))
}
