package workcopy

import (
	"encoding/binary"
	"errors"

	"github.com/RoaringBitmap/roaring/v2"

	"dm/object"
)

// Records are physical: each says how something is, not what was done, so replaying a record twice does no harm and a
// dump of the present state may stand in the middle of a journal.

func (j *journal) uint(v uint64) { j.buf = binary.AppendUvarint(j.buf, v) }

func (j *journal) time(t Time) {
	j.uint(uint64(t.Sec))
	j.uint(uint64(t.Nsec))
}

func (j *journal) str(s string) {
	j.uint(uint64(len(s)))
	j.buf = append(j.buf, s...)
}

// inode says how a node's attributes are. A node not known before is new: not committed.
func (j *journal) inode(n *node) {
	if n.stray {
		return
	}
	j.buf = append(j.buf, recordInode)
	j.uint(n.ino)
	for _, v := range []uint32{n.mode, n.uid, n.gid, n.rdev, n.nlink} {
		j.uint(uint64(v))
	}
	j.time(n.atime)
	j.time(n.mtime)
	j.time(n.ctime)
	j.uint(n.size)
	linked := uint64(0)
	if n.linked {
		linked = 1
	}
	j.uint(linked)
	j.str(n.target)
	j.uint(uint64(len(n.xattrs)))
	for _, x := range n.xattrs {
		j.str(x.Name)
		j.str(string(x.Value))
	}
}

// base gives a node its committed entry; a node not known before is made from it.
func (j *journal) base(e *object.Entry) {
	j.buf = append(j.buf, recordBase)
	b := object.AppendEntry(nil, e)
	j.str(string(b))
}

// bind says that a name leads to a node; changed, that the commit does not have it so. child nil: the name is gone.
func (j *journal) bind(dir *node, name string, child *node, changed bool) {
	kind := byte(recordBind)
	if changed {
		kind = recordName
	}
	j.buf = append(j.buf, kind)
	j.uint(dir.ino)
	j.str(name)
	if child == nil {
		j.uint(0)
	} else {
		j.uint(child.ino)
	}
}

// What a blocks record says of its blocks.
const (
	blocksDirty = 1 << iota
	blocksLocal
	blocksPartial // the file is partial; with no block this alone is said
	blocksZero
)

// blocks marks count blocks from first on, and gives the file's size, limit and mtime as they are then.
func (j *journal) blocks(n *node, flags byte, first, count uint64) {
	if n.stray {
		return
	}
	j.buf = append(j.buf, recordBlocks)
	j.uint(n.ino)
	j.buf = append(j.buf, flags)
	j.uint(n.size)
	j.uint(n.file.limit)
	j.time(n.mtime)
	j.uint(first)
	j.uint(count)
}

// complete says that a file's bytes are in its backing file, under its final name, and where that is missing, zero: nothing
// comes from the commit any more.
func (j *journal) complete(n *node) {
	if n.stray {
		return
	}
	j.buf = append(j.buf, recordComplete)
	j.uint(n.ino)
}

// gone says that a node is no more.
func (j *journal) gone(ino uint64) {
	j.buf = append(j.buf, recordGone)
	j.uint(ino)
}

// totals gives the sums of a directory.
func (j *journal) totals(n *node) {
	j.buf = append(j.buf, recordTotals)
	j.uint(n.ino)
	j.uint(uint64(n.dir.subdirs))
	j.uint(n.dir.files)
	j.uint(n.dir.bytes)
}

func (j *journal) mark(kind byte) { j.buf = append(j.buf, kind) }

// id writes a record that names a commit: prepare and reset.
func (j *journal) id(kind byte, id object.ID) {
	j.buf = append(j.buf, kind)
	j.buf = append(j.buf, id[:]...)
}

func (j *journal) nextIno(v uint64) {
	j.buf = append(j.buf, recordNextIno)
	j.uint(v)
}

var errRecord = errors.New("bad journal record")

// fields takes fields off a frame; after the first bad one it stays failed.
type fields struct {
	b   []byte
	err error
}

func (f *fields) byte() byte {
	if len(f.b) == 0 {
		f.err = errRecord
		return 0
	}
	v := f.b[0]
	f.b = f.b[1:]
	return v
}

func (f *fields) uint() uint64 {
	v, n := binary.Uvarint(f.b)
	if n <= 0 {
		f.err, f.b = errRecord, nil
		return 0
	}
	f.b = f.b[n:]
	return v
}

func (f *fields) time() Time { return Time{int64(f.uint()), uint32(f.uint())} }

func (f *fields) str() string {
	n := f.uint()
	if n > uint64(len(f.b)) {
		f.err, f.b = errRecord, nil
		return ""
	}
	v := string(f.b[:n])
	f.b = f.b[n:]
	return v
}

func (f *fields) id() (id object.ID) {
	if len(f.b) < len(id) {
		f.err, f.b = errRecord, nil
		return id
	}
	copy(id[:], f.b)
	f.b = f.b[len(id):]
	return id
}

func (f *fields) inode() (ino uint64, in inode) {
	ino = f.uint()
	for _, p := range []*uint32{&in.mode, &in.uid, &in.gid, &in.rdev, &in.nlink} {
		*p = uint32(f.uint())
	}
	in.atime, in.mtime, in.ctime = f.time(), f.time(), f.time()
	in.size = f.uint()
	in.linked = f.uint() == 1
	in.target = f.str()
	for n := f.uint(); n > 0 && f.err == nil; n-- {
		in.xattrs = append(in.xattrs, object.Xattr{Name: f.str(), Value: []byte(f.str())})
	}
	return ino, in
}

// ranges calls fn for each run of consecutive blocks in a set. It costs the number of runs, not of blocks.
func ranges(b *roaring.Bitmap, fn func(first, count uint64)) {
	if b == nil {
		return
	}
	for first, end := range b.Ranges() {
		fn(uint64(first), end-uint64(first))
	}
}

// runEnd returns the first block from b on that is not in the set.
func runEnd(set *roaring.Bitmap, b uint64) uint64 {
	if it := set.UnsetIterator(b, maxSize/BlockSize); it.HasNext() {
		return uint64(it.Next())
	}
	return maxSize / BlockSize
}
