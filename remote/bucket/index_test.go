package bucket

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"dm/object"
)

// Index files in whatever order and with whatever overlap give one entry for each object, the one that takes fewest records.
func TestMergedTable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tab := newTable()
		want := map[object.ID]uint8{}
		for n := range rapid.IntRange(0, 8).Draw(t, "files") {
			f := &file{packs: []object.ID{{byte(n), 9}}, parents: map[object.ID][]object.ID{}}
			ids := rapid.SliceOfNDistinct(rapid.ByteRange(0, 40), 0, 20, rapid.ID[byte]).Draw(t, "ids")
			slices.Sort(ids)
			for _, id := range ids {
				l := loc{id: object.ID{id}, depth: rapid.Uint8Range(0, 3).Draw(t, "depth"), kind: 1}
				f.locs = append(f.locs, l)
				if d, ok := want[l.id]; !ok || l.depth < d {
					want[l.id] = l.depth
				}
			}
			tab.add(read{object.ID{byte(n)}, f})
		}
		if len(tab.locs) != len(want) {
			t.Fatalf("%d entries for %d objects", len(tab.locs), len(want))
		}
		for id, depth := range want {
			if l, ok := tab.find(id); !ok || l.depth != depth {
				t.Fatalf("%s: depth %d, %v; want %d", id.Short(), l.depth, ok, depth)
			}
		}
	})
}
