package workcopy

import (
	"context"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"dm/object"
)

// between is a store that does something once, when the first chunk is asked for: an operation that has to fill a block first
// holds nothing then.
type between struct {
	*memory
	deed func()
}

func (s *between) Get(ctx context.Context, k object.Kind, id object.ID) ([]byte, error) {
	if deed := s.deed; deed != nil && k == object.KindChunk {
		s.deed = nil
		deed()
	}
	return s.memory.Get(ctx, k, id)
}

// TestRangesOfAFileThatChanges: a file is made shorter or longer while fallocate waits for its bytes: a hole does not make it
// longer, and what came behind the end is not cut off where it should have grown.
func TestRangesOfAFileThatChanges(t *testing.T) {
	const size = 5*BlockSize + 100
	const punch, zeroRange = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_ZERO_RANGE
	shorten := func(to uint64) func(r *rig, id NodeID) {
		return func(r *rig, id NodeID) { r.truncate(id, to) }
	}
	cs, zeros := strings.Repeat("c", size), strings.Repeat("\x00", size)
	for name, c := range map[string]struct {
		mode        uint32
		off, length int64
		meanwhile   func(r *rig, id NodeID)
		want        string
	}{
		"punch, cut before it":    {punch, BlockSize + 10, 3 * BlockSize, shorten(17), cs[:17]},
		"punch, cut at its start": {punch, BlockSize + 10, 3 * BlockSize, shorten(BlockSize + 10), cs[:BlockSize+10]},
		"punch, cut in it":        {punch, BlockSize + 10, 3 * BlockSize, shorten(9000), cs[:BlockSize+10] + zeros[:9000-BlockSize-10]},
		"zero range, written behind it": {
			zeroRange, 10, size, func(r *rig, id NodeID) { r.write(id, size+500, "behind") }, cs[:10] + zeros + zeros[:490] + "behind",
		},
		"allocation, written behind it": {
			0, 0, size + 100, func(r *rig, id NodeID) { r.write(id, size+500, "behind") }, cs + zeros[:500] + "behind",
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			id := r.partly("f", cs)
			done := false
			r.c.cfg.Source = &between{r.b.store, func() {
				done = true
				c.meanwhile(r, id)
			}}
			r.ok(r.c.Fallocate(r.ctx, id, c.mode, c.off, c.length))
			if !done {
				t.Fatal("nothing had to be filled")
			}
			for range 2 {
				r.wantFile("f", c.want)
				r.committedAsLive()
				r.kill()
			}
		})
	}
}
