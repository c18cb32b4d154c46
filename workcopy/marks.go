package workcopy

import "github.com/RoaringBitmap/roaring/v2"

// marks are the blocks of a file that changed since the commit or, while one is being made, since its cut.
type marks struct {
	dirty  *roaring.Bitmap // written
	zeroed *roaring.Bitmap // became zero; disjoint from dirty

	// hole has the blocks of a partial file that became zero, and those that came to be behind its old end, whether or not
	// they were written after that. Where the host has no bytes for one, because the write did not arrive before a crash, it
	// is zero; all others are then what the commit has.
	hole *roaring.Bitmap
}

func (m *marks) has(b uint64) bool {
	return m.dirty != nil && m.dirty.Contains(uint32(b)) || m.zeroed != nil && m.zeroed.Contains(uint32(b))
}

// add adds older marks below end; newer ones win.
func (m *marks) add(older marks, end uint64) {
	older = marks{cloneSet(older.dirty), cloneSet(older.zeroed), cloneSet(older.hole)}
	if m.zeroed != nil {
		older.dirty.AndNot(m.zeroed)
	}
	if m.dirty != nil {
		older.zeroed.AndNot(m.dirty)
	}
	addSet(&m.dirty, older.dirty, end)
	addSet(&m.zeroed, older.zeroed, end)
	addSet(&m.hole, older.hole, end)
}

// addSet adds the members of other below end, which it may change.
func addSet(set **roaring.Bitmap, other *roaring.Bitmap, end uint64) {
	other.RemoveRange(end, maxSize/BlockSize)
	switch {
	case other.IsEmpty():
	case *set == nil:
		*set = other
	default:
		(*set).Or(other)
	}
}

func cloneSet(b *roaring.Bitmap) *roaring.Bitmap {
	if b == nil {
		return roaring.New()
	}
	return b.Clone()
}

// fewBlocks is up to how many blocks a range is put into a set one by one. A set that consists of many runs takes a range
// in time proportional to them, tens of microseconds; single blocks make it change to a form in which they are not felt.
const fewBlocks = 32

func addRange(set **roaring.Bitmap, first, end uint64) {
	if first >= end {
		return
	}
	if *set == nil {
		*set = roaring.New()
	}
	if end-first > fewBlocks {
		(*set).AddRange(first, end)
		return
	}
	for b := first; b < end; b++ {
		(*set).Add(uint32(b))
	}
}

// removeRange is the inverse; the set may be nil.
func removeRange(set *roaring.Bitmap, first, end uint64) {
	switch {
	case set == nil || first >= end:
	case end-first > fewBlocks:
		set.RemoveRange(first, end)
	default:
		for b := first; b < end; b++ {
			set.Remove(uint32(b))
		}
	}
}
