package remote

import (
	"github.com/zeebo/blake3"

	"dm/object"
	"dm/store/pack"
)

// Pack is a whole pack in memory, in the format of docs/format/pack.md.
type Pack struct {
	Name    object.ID // BLAKE3 of Data
	Data    []byte
	Records []Located
}

// Located is a record and where it is in its pack.
type Located struct {
	pack.Head
	Off   int64 // in bytes
	Depth int   // records it takes above one without a base
}

// builder makes a pack. It is not safe for concurrent use.
type builder struct {
	data    []byte
	records []Located
	depth   map[object.ID]int // of the objects in it
	plain   int64             // bytes
}

// packSlack is room for what the last record adds beyond a pack's aimed size, so that growing is rare.
const packSlack = 1 << 20

func newBuilder(size int) *builder {
	return &builder{data: pack.AppendHeader(make([]byte, 0, size+packSlack)), depth: map[object.ID]int{}}
}

// add notes the record that fn appends, with the given depth.
func (b *builder) add(h pack.Head, off int, depth int) {
	b.records = append(b.records, Located{h, int64(off), depth})
	b.depth[h.ID] = depth
	b.plain += int64(h.PlainLen)
}

// seal ends the pack.
func (b *builder) seal() *Pack {
	b.data = pack.AppendEnd(b.data, uint64(len(b.records)), uint64(len(b.data)))
	return &Pack{Name: PackName(b.data), Data: b.data, Records: b.records}
}

// PackName returns the name of a pack with the given bytes.
func PackName(data []byte) object.ID { return object.ID(blake3.Sum256(data)) }

// idSet remembers ids, the latest ones for certain and the others as long as there is room. It bounds memory where
// forgetting an id costs some work and no more. Half an id is enough: nobody can make two that have it in common.
type idSet struct {
	cur, prev map[halfID]struct{}
}

type halfID [object.IDSize / 2]byte

// setSize is how many ids a set keeps for certain: twice as many take 18 MB.
const setSize = 1 << 18

// add says whether the id was not in the set.
func (s *idSet) add(id object.ID) bool {
	if s.has(id) {
		return false
	}
	if s.cur == nil || len(s.cur) >= setSize {
		s.prev, s.cur = s.cur, map[halfID]struct{}{}
	}
	s.cur[halfID(id[:len(halfID{})])] = struct{}{}
	return true
}

func (s *idSet) has(id object.ID) bool {
	half := halfID(id[:len(halfID{})])
	if _, ok := s.cur[half]; ok {
		return true
	}
	_, ok := s.prev[half]
	return ok
}
