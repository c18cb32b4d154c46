package workcopy

import (
	"math/rand/v2"
	"testing"
)

// BenchmarkMark is what a write of one block marks in a sparse file, at random places until all of it is written.
func BenchmarkMark(b *testing.B) {
	const blocks = 1 << 18 // 1 GiB
	f := &content{}
	for i := 0; b.Loop(); i++ {
		if i%blocks == 0 {
			f.dirty = nil
			f.markZero(0, blocks)
		}
		at := rand.Uint64N(blocks)
		f.markDirty(at, at+1)
	}
}
