package bucket

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"

	"dm/internal/errs"
	"dm/object"
	"dm/remote"
	"dm/store/pack"
)

// loc says where an object is. There is one in memory for each object at the remote, so it is small.
type loc struct {
	id      object.ID
	pack    uint32 // into packs
	off     uint32 // of its record, in bytes
	payload uint32 // bytes
	plain   uint32 // bytes
	base    uint32 // into bases, plus one; 0: none
	kind    uint8
	enc     uint8
	depth   uint8 // records it takes above one without a base
}

// recordLen returns the length of the record in bytes.
func (l *loc) recordLen() int64 {
	if l.base != 0 {
		return pack.MaxHeadLen + int64(l.payload)
	}
	return pack.HeadLen + int64(l.payload)
}

// file is what one index file says.
type file struct {
	packs   []object.ID
	locs    []loc // in order of ids
	bases   []object.ID
	parents map[object.ID][]object.ID // of commits, where they are known
}

const (
	indexMagic = "\xaddmidx\n\x00"
	// indexHead is magic, version and flags, and five counts.
	indexHead = 8 + 4 + 4*4
	locLen    = object.IDSize + 4*4 + 4 + 4
	// maxIndex bounds an index file in bytes: some five million objects.
	maxIndex = 320 << 20
)

// encode writes the file's canonical bytes.
func (f *file) encode() []byte {
	b := make([]byte, 0, indexHead+len(f.locs)*locLen+(len(f.packs)+len(f.bases))*object.IDSize)
	b = append(b, indexMagic...)
	b = binary.LittleEndian.AppendUint32(b, version)
	for _, n := range []int{len(f.packs), len(f.locs), len(f.bases), len(f.parents)} {
		b = binary.LittleEndian.AppendUint32(b, uint32(n))
	}
	for _, id := range f.packs {
		b = append(b, id[:]...)
	}
	for i := range f.locs {
		l := &f.locs[i]
		b = append(b, l.id[:]...)
		for _, v := range []uint32{l.pack, l.off, l.payload, l.plain, l.base} {
			b = binary.LittleEndian.AppendUint32(b, v)
		}
		b = append(b, l.kind, l.enc, l.depth, 0)
	}
	for _, id := range f.bases {
		b = append(b, id[:]...)
	}
	for i := range f.locs {
		list, ok := f.parents[f.locs[i].id]
		if !ok {
			continue
		}
		b = binary.LittleEndian.AppendUint32(b, uint32(i))
		b = binary.LittleEndian.AppendUint32(b, uint32(len(list)))
		for _, p := range list {
			b = append(b, p[:]...)
		}
	}
	return b
}

// decodeIndex reads what encode wrote and refuses everything else.
func decodeIndex(b []byte) (*file, error) {
	bad := func(what string) (*file, error) { return nil, errs.New(errs.Damaged, "index of a remote: %s", what) }
	if len(b) < indexHead || string(b[:8]) != indexMagic {
		return bad("the first bytes are wrong")
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != version {
		return nil, errs.WithHint(errs.New(errs.Damaged, "index of a remote has version %d; this dm knows %d", v, version),
			"install a newer dm")
	}
	var n [4]uint64
	for i := range n {
		n[i] = uint64(binary.LittleEndian.Uint32(b[12+4*i:]))
	}
	packs, locs, bases, commits := n[0], n[1], n[2], n[3]
	if indexHead+(packs+bases)*object.IDSize+locs*locLen+commits*8 > uint64(len(b)) || commits > locs {
		return bad("cut short")
	}
	b = b[indexHead:]
	ids := func(n uint64) []object.ID {
		list := make([]object.ID, n)
		for i := range list {
			b = b[copy(list[i][:], b):]
		}
		return list
	}
	f := &file{packs: ids(packs), locs: make([]loc, locs), parents: make(map[object.ID][]object.ID, commits)}
	for i := range f.locs {
		f.locs[i] = decodeLoc(b)
		if !f.locs[i].valid(packs, bases) || b[locLen-1] != 0 {
			return bad("bad entry")
		}
		b = b[locLen:]
		if i > 0 && bytes.Compare(f.locs[i-1].id[:], f.locs[i].id[:]) >= 0 {
			return bad("entries out of order")
		}
	}
	f.bases = ids(bases)
	next := uint64(0) // entry that may have parents
	for range commits {
		if len(b) < 8 {
			return bad("cut short")
		}
		i, n := uint64(binary.LittleEndian.Uint32(b)), uint64(binary.LittleEndian.Uint32(b[4:]))
		b = b[8:]
		if i < next || i >= locs || n > maxParents || n*object.IDSize > uint64(len(b)) {
			return bad("bad parents")
		}
		next = i + 1
		f.parents[f.locs[i].id] = ids(n)
	}
	if len(b) != 0 {
		return bad("bytes after the end")
	}
	return f, nil
}

// maxParents is as in object.
const maxParents = 16

func decodeLoc(b []byte) (l loc) {
	b = b[copy(l.id[:], b):]
	for i, v := range []*uint32{&l.pack, &l.off, &l.payload, &l.plain, &l.base} {
		*v = binary.LittleEndian.Uint32(b[4*i:])
	}
	l.kind, l.enc, l.depth = b[20], b[21], b[22]
	return l
}

func (l *loc) valid(packs, bases uint64) bool {
	return uint64(l.pack) < packs && uint64(l.base) <= bases && object.Kind(l.kind).Valid() && l.enc <= uint8(pack.Dict) &&
		pack.Encoding(l.enc).HasBase() == (l.base != 0) && l.payload <= pack.MaxPayload && l.plain <= object.MaxSize
}

// indexOf makes the index file of one pack.
func (r *Remote) indexOf(p *remote.Pack) (*file, error) {
	f := &file{packs: []object.ID{p.Name}, parents: map[object.ID][]object.ID{}}
	for i := range p.Records {
		rec := &p.Records[i]
		l := loc{
			id: rec.ID, off: uint32(rec.Off), payload: uint32(rec.PayloadLen), plain: uint32(rec.PlainLen),
			kind: uint8(rec.Kind), enc: uint8(rec.Encoding), depth: uint8(min(rec.Depth, 255)),
		}
		if rec.Encoding.HasBase() {
			f.bases = append(f.bases, rec.Base)
			l.base = uint32(len(f.bases))
		} else if rec.Kind == object.KindCommit {
			whole, err := pack.ParseRecord(p.Data[rec.Off:])
			if err != nil {
				return nil, err
			}
			plain, err := r.codec.Decode(&whole, nil)
			if err != nil {
				return nil, err
			}
			c, err := object.DecodeCommit(plain)
			if err != nil {
				return nil, err
			}
			f.parents[rec.ID] = c.Parents
		}
		f.locs = append(f.locs, l)
	}
	slices.SortFunc(f.locs, func(a, b loc) int { return bytes.Compare(a.id[:], b.id[:]) })
	return f, nil
}

// table is all that the index files of a remote say.
type table struct {
	file
	packAt map[object.ID]uint32
	files  map[object.ID]int // index files read, with their number of entries
}

func newTable() *table {
	return &table{file: file{parents: map[object.ID][]object.ID{}}, packAt: map[object.ID]uint32{}, files: map[object.ID]int{}}
}

// find looks an object up.
func (t *table) find(id object.ID) (loc, bool) {
	i, ok := slices.BinarySearchFunc(t.locs, id, func(l loc, id object.ID) int { return bytes.Compare(l.id[:], id[:]) })
	if !ok {
		return loc{}, false
	}
	return t.locs[i], true
}

// read is an index file with its name.
type read struct {
	name object.ID
	*file
}

// add enters what index files say. Of an object that is in several packs one place is kept.
func (t *table) add(files ...read) {
	var fresh []loc
	for _, f := range files {
		if _, ok := t.files[f.name]; ok {
			continue
		}
		t.files[f.name] = len(f.locs)
		packs := make([]uint32, len(f.packs))
		for i, p := range f.packs {
			at, ok := t.packAt[p]
			if !ok {
				at = uint32(len(t.packs))
				t.packs = append(t.packs, p)
				t.packAt[p] = at
			}
			packs[i] = at
		}
		shift := uint32(len(t.bases))
		t.bases = append(t.bases, f.bases...)
		for id, list := range f.parents {
			t.parents[id] = list
		}
		for _, l := range f.locs {
			l.pack = packs[l.pack]
			if l.base != 0 {
				l.base += shift
			}
			fresh = append(fresh, l)
		}
	}
	slices.SortFunc(fresh, better)
	t.locs = merge(t.locs, fresh)
}

// better orders entries by ids, and of one object the one that takes fewer records first.
func better(a, b loc) int {
	return cmp.Or(bytes.Compare(a.id[:], b.id[:]), cmp.Compare(a.depth, b.depth), cmp.Compare(a.pack, b.pack))
}

// merge merges entries in order into others, from the end on and in place: there may be millions of them for a few that
// are new. The better one of two for the same object stays.
func merge(old, fresh []loc) []loc {
	i, j := len(old)-1, len(fresh)-1
	all := append(old, fresh...)
	for k := len(all) - 1; j >= 0; k-- {
		if i >= 0 && better(all[i], fresh[j]) > 0 {
			all[k] = all[i]
			i--
		} else {
			all[k] = fresh[j]
			j--
		}
	}
	return slices.CompactFunc(all, func(a, b loc) bool { return a.id == b.id })
}

// byPlace orders entries as they are in packs.
func byPlace(a, b loc) int {
	return cmp.Or(cmp.Compare(a.pack, b.pack), cmp.Compare(a.off, b.off))
}
