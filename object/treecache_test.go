package object

import (
	"context"
	"fmt"
	"testing"

	"dm/internal/errs"
)

// TestTreeCache: looking up every name of a large directory in any order reads each of its nodes once where they fit, and
// the cache never takes more than it may.
func TestTreeCache(t *testing.T) {
	ctx := context.Background()
	const names = 20_000
	m := newMemory()
	root, edits := largeTree(t, m, names)
	nodes := m.puts
	lookUpAll := func(src Source) int {
		m.gets = 0
		for i := range edits {
			ed := edits[i*7919%names]
			e, ok, err := LookupTree(ctx, src, root, ed.Name)
			if err != nil || !ok || e.Ino != ed.Entry.Ino {
				t.Fatalf("%s: inode %d (there: %v), %v", ed.Name, e.Ino, ok, err)
			}
			if _, ok, err := LookupTree(ctx, src, root, ed.Name+"!"); ok || err != nil {
				t.Fatalf("%s!: %v, %v", ed.Name, ok, err)
			}
		}
		return m.gets
	}
	if n := lookUpAll(NewTreeCache(m, 64<<20)); n > nodes {
		t.Errorf("%d reads of %d nodes", n, nodes)
	}
	const limit = 1 << 20
	small := NewTreeCache(m, limit)
	if n := lookUpAll(small); n <= nodes {
		t.Errorf("%d reads of %d nodes with a cache in which they cannot all be", n, nodes)
	}
	if small.weight > limit || small.recent.Len() != len(small.trees) || small.weight == 0 {
		t.Errorf("%d bytes in %d trees, of which %d are found", small.weight, small.recent.Len(), len(small.trees))
	}
	if _, _, err := LookupTree(ctx, small, chunkID(1), "x"); errs.KindOf(err) != errs.NotFound {
		t.Errorf("a tree that is not there: %v", err)
	}
}

func largeTree(tb testing.TB, m *memory, names int) (ID, []Edit) {
	tb.Helper()
	var edits []Edit
	for i := range names {
		e := file(fmt.Sprintf("file-name-%08d.txt", i), uint64(i+2))
		edits = append(edits, Edit{e.Name, e})
	}
	root, _, err := EditTree(context.Background(), m, m, ID{}, edits)
	if err != nil {
		tb.Fatal(err)
	}
	return root, edits
}

// BenchmarkLookup is one name after the other of a directory of 100,000, in the order in which it is listed: any.
func BenchmarkLookup(b *testing.B) {
	m := newMemory()
	root, edits := largeTree(b, m, 100_000)
	for name, src := range map[string]Source{"plain": m, "cache": NewTreeCache(m, 32<<20)} {
		b.Run(name, func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				if _, ok, err := LookupTree(b.Context(), src, root, edits[i*7919%len(edits)].Name); !ok || err != nil {
					b.Fatal(ok, err)
				}
			}
		})
	}
}
