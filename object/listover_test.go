package object

import (
	"context"
	"testing"
)

// overMemory notes what every stored object was said to take the place of.
type overMemory struct {
	*memory
	over map[ID]ID
}

func (o *overMemory) PutOver(ctx context.Context, k Kind, b []byte, old ID) (ID, error) {
	id, err := o.Put(ctx, k, b)
	o.over[id] = old
	return id, err
}

// A list that is made anew because of one chunk is stored over the list that stood there.
func TestListsAreStoredOverOldOnes(t *testing.T) {
	m := &overMemory{newMemory(), map[ID]ID{}}
	var spans []Span
	for i := range 5000 {
		spans = append(spans, Span{64 << 10, Sum(KindChunk, []byte{byte(i), byte(i >> 8)})})
	}
	base := buildList(t, m.memory, spans)
	if base.Depth < 2 {
		t.Fatalf("the list has a depth of %d: too small for this test", base.Depth)
	}
	stored := map[ID]bool{}
	for id := range m.m {
		stored[id] = true
	}
	ctx := t.Context()
	ed := NewListEditor(ctx, m, m, base, CutFixed)
	for _, i := range []uint64{777, 3000} {
		if _, err := ed.CopyTo(i * 64 << 10); err != nil {
			t.Fatal(err)
		}
		if err := ed.Add(Span{64 << 10, Sum(KindChunk, []byte{byte(i), 'x'})}); err != nil {
			t.Fatal(err)
		}
		if _, err := ed.Boundary((i + 1) * 64 << 10); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := ed.CopyTo(5000 * 64 << 10); err != nil {
		t.Fatal(err)
	}
	content, err := ed.Finish()
	if err != nil || content.Size != base.Size {
		t.Fatal(content, err)
	}
	made := 0
	for id := range m.m {
		if stored[id] {
			continue
		}
		made++
		if old := m.over[id]; !stored[old] {
			t.Errorf("a new list is stored over %s, which is no old one", old.Short())
		}
	}
	if made < 3 {
		t.Errorf("%d lists are new", made)
	}
}
