package object

import (
	"encoding/binary"
	"math"
	"sort"
	"strings"

	"dm/internal/errs"
)

// The file types of an Entry's mode, as in stat(2).
const (
	ModeType    uint32 = 0o170000
	ModeSocket  uint32 = 0o140000
	ModeSymlink uint32 = 0o120000
	ModeRegular uint32 = 0o100000
	ModeBlock   uint32 = 0o060000
	ModeDir     uint32 = 0o040000
	ModeChar    uint32 = 0o020000
	ModeFifo    uint32 = 0o010000
	modeAll     uint32 = 0o177777
)

// RootIno is the inode number of a commit's top directory and of nothing else; MaxIno is the largest.
const (
	RootIno uint64 = 1
	MaxIno  uint64 = 1<<40 - 1
)

// Limits on what an entry may hold, those of Linux.
const (
	MaxName   = 255
	MaxTarget = 4095
	MaxXattr  = 64 << 10 // all attributes of one entry together, in bytes
)

// Xattr is an extended attribute.
type Xattr struct {
	Name  string
	Value []byte
}

// Totals sums up what is below a directory.
type Totals struct {
	Subdirs uint64 // directories directly in it
	Files   uint64 // everything that is not a directory, at any depth
	Bytes   uint64 // of all regular files, at any depth; a file with several hard links counts once, at its commit
}

func (t *Totals) add(o Totals) {
	t.Subdirs += o.Subdirs
	t.Files += o.Files
	t.Bytes += o.Bytes
}

// Entry is one name in a tree, with everything that is to be known about the inode behind it. Like a directory of a
// disk filesystem it holds an inode number: that is what makes a rename visible as such and keeps st_ino over a checkout.
//
// A file with several hard links (Linked) has only Name, Ino and the type bits of Mode in its directories; the rest is
// in the commit's link table, a tree whose entries are named by LinkName, so that a change of the file through one name
// does not touch the directories of the others.
type Entry struct {
	Name   string
	Ino    uint64 // unique in its commit, except for the names of one Linked file
	Mode   uint32 // type and permission bits, as st_mode
	Linked bool
	UID    uint32
	GID    uint32
	Sec    int64  // modification time
	Nsec   uint32 // below 1e9
	Xattrs []Xattr

	Content Content // regular file
	Target  string  // symlink
	Rdev    uint32  // device node, in the kernel's encoding
	Tree    ID      // directory: its tree, zero if empty
	Totals  Totals  // directory: of Tree
	Nlink   uint32  // in a link table: the number of names; elsewhere 0
}

// Type returns the type bits of the mode.
func (e *Entry) Type() uint32 { return e.Mode & ModeType }

// IsDir says whether the entry is a directory.
func (e *Entry) IsDir() bool { return e.Type() == ModeDir }

// IsRegular says whether the entry is a regular file.
func (e *Entry) IsRegular() bool { return e.Type() == ModeRegular }

// Sums returns what this entry adds to the totals of its directory.
func (e *Entry) Sums() Totals {
	switch {
	case e.IsDir():
		return Totals{Subdirs: 1, Files: e.Totals.Files, Bytes: e.Totals.Bytes}
	case e.Linked:
		return Totals{Files: 1}
	}
	return Totals{Files: 1, Bytes: e.Content.Size}
}

// LinkName returns the name of a hard-linked inode in its commit's link table.
func LinkName(ino uint64) string {
	const digits = "0123456789abcdef"
	var b [16]byte
	for i := range b {
		b[i] = digits[ino>>(60-4*i)&15]
	}
	return string(b[:])
}

// ValidName says whether name can stand in a tree: not empty, not "." or "..", no slash, no NUL, at most MaxName bytes.
func ValidName(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) <= MaxName &&
		strings.IndexByte(name, '/') < 0 && strings.IndexByte(name, 0) < 0
}

const (
	flagLinked = 1 << iota
	flagXattrs
	flagNlink
	flagsAll = flagLinked | flagXattrs | flagNlink
)

// append writes the entry in its canonical form. Fields that the entry's type does not have are not written.
func (e *Entry) append(b []byte) []byte {
	var flags byte
	if e.Linked {
		flags |= flagLinked
	}
	if len(e.Xattrs) > 0 && !e.Linked {
		flags |= flagXattrs
	}
	if e.Nlink > 0 {
		flags |= flagNlink
	}
	b = appendBytes(b, e.Name)
	b = append(b, flags)
	b = binary.AppendUvarint(b, e.Ino)
	if e.Linked {
		return binary.AppendUvarint(b, uint64(e.Type()))
	}
	b = binary.AppendUvarint(b, uint64(e.Mode))
	b = binary.AppendUvarint(b, uint64(e.UID))
	b = binary.AppendUvarint(b, uint64(e.GID))
	b = appendInt(b, e.Sec)
	b = binary.AppendUvarint(b, uint64(e.Nsec))
	if flags&flagNlink != 0 {
		b = binary.AppendUvarint(b, uint64(e.Nlink))
	}
	if flags&flagXattrs != 0 {
		b = binary.AppendUvarint(b, uint64(len(e.Xattrs)))
		for _, x := range e.Xattrs {
			b = appendBytes(b, x.Name)
			b = appendBytes(b, x.Value)
		}
	}
	switch e.Type() {
	case ModeRegular:
		b = binary.AppendUvarint(b, e.Content.Size)
		if e.Content.Size > 0 {
			b = append(b, e.Content.Depth)
			b = append(b, e.Content.Root[:]...)
		}
	case ModeDir:
		b = append(b, e.Tree[:]...)
		b = appendTotals(b, e.Totals)
	case ModeSymlink:
		b = appendBytes(b, e.Target)
	case ModeBlock, ModeChar:
		b = binary.AppendUvarint(b, uint64(e.Rdev))
	}
	return b
}

func appendTotals(b []byte, t Totals) []byte {
	b = binary.AppendUvarint(b, t.Subdirs)
	b = binary.AppendUvarint(b, t.Files)
	return binary.AppendUvarint(b, t.Bytes)
}

func (r *reader) totals() Totals {
	return Totals{Subdirs: r.uint(maxTotal), Files: r.uint(maxTotal), Bytes: r.uint(maxTotal)}
}

// entry reads one entry. A root entry, of a commit, has no name.
func (r *reader) entry(root bool) (e Entry) {
	e.Name = string(r.bytes(MaxName))
	if root != (e.Name == "") || !root && !ValidName(e.Name) {
		r.fail("bad name")
	}
	flags := r.byte()
	if flags&^flagsAll != 0 {
		r.fail("unknown flags")
	}
	e.Ino = r.uint(MaxIno)
	if root != (e.Ino == RootIno) || e.Ino == 0 {
		r.fail("bad inode number")
	}
	e.Linked = flags&flagLinked != 0
	if e.Linked {
		e.Mode = uint32(r.uint(uint64(modeAll)))
		if flags != flagLinked || e.Mode != e.Type() || e.IsDir() || !knownType(e.Mode) {
			r.fail("bad hard link")
		}
		return e
	}
	e.Mode = uint32(r.uint(uint64(modeAll)))
	if !knownType(e.Mode) {
		r.fail("unknown file type")
	}
	e.UID = uint32(r.uint(math.MaxUint32))
	e.GID = uint32(r.uint(math.MaxUint32))
	e.Sec = r.int()
	e.Nsec = uint32(r.uint(999_999_999))
	if flags&flagNlink != 0 {
		e.Nlink = uint32(r.uint(math.MaxUint32))
		if e.Nlink == 0 || e.IsDir() {
			r.fail("bad number of links")
		}
	}
	if flags&flagXattrs != 0 {
		e.Xattrs = r.xattrs()
	}
	switch e.Type() {
	case ModeRegular:
		e.Content.Size = r.uint(maxFile)
		if e.Content.Size > 0 {
			e.Content.Depth = r.byte()
			e.Content.Root = r.id()
			if e.Content.Depth > maxDepth || e.Content.Depth > 0 && e.Content.Root.IsZero() {
				r.fail("bad content")
			}
		}
	case ModeDir:
		e.Tree = r.id()
		e.Totals = r.totals()
	case ModeSymlink:
		e.Target = string(r.bytes(MaxTarget))
		if e.Target == "" || strings.ContainsRune(e.Target, 0) {
			r.fail("bad symlink target")
		}
	case ModeBlock, ModeChar:
		e.Rdev = uint32(r.uint(math.MaxUint32))
	}
	return e
}

func knownType(mode uint32) bool {
	switch mode & ModeType {
	case ModeSocket, ModeSymlink, ModeRegular, ModeBlock, ModeDir, ModeChar, ModeFifo:
		return true
	}
	return false
}

func (r *reader) xattrs() []Xattr {
	n := r.count(2)
	if n == 0 {
		r.fail("no attributes where some are announced")
	}
	list := make([]Xattr, 0, n)
	total := 0
	for i := range n {
		x := Xattr{Name: string(r.bytes(MaxName)), Value: append([]byte(nil), r.bytes(MaxXattr)...)}
		total += len(x.Name) + len(x.Value)
		if x.Name == "" || strings.ContainsRune(x.Name, 0) || total > MaxXattr ||
			i > 0 && list[i-1].Name >= x.Name {
			r.fail("bad attribute")
		}
		list = append(list, x)
	}
	return list
}

// SortXattrs brings attributes into the canonical order.
func SortXattrs(list []Xattr) {
	sort.Slice(list, func(i, j int) bool { return list[i].Name < list[j].Name })
}

// Check says what is wrong with an entry before it is encoded: what Check accepts, a decoder accepts.
func (e *Entry) Check() error {
	r := &reader{kind: KindTree, b: e.append(nil)}
	r.entry(e.Name == "")
	if err := r.end(); err != nil {
		return errs.New(errs.Usage, "entry %q cannot be stored: %w", e.Name, err)
	}
	return nil
}

// AppendEntry appends an entry's canonical bytes to b, for those who keep single entries outside of a tree.
func AppendEntry(b []byte, e *Entry) []byte { return e.append(b) }

// DecodeEntry reads one entry off the front of b and returns what follows it.
func DecodeEntry(b []byte) (e Entry, rest []byte, err error) {
	r := &reader{kind: KindTree, b: b}
	e = r.entry(len(b) > 0 && b[0] == 0)
	return e, r.b, r.err
}
