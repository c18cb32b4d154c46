package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// bbolt trusts its file: a page number that a flipped bit has made point back to its own page sends it into endless
// recursion, which no recover stops, and a damaged freelist makes it write over live pages. So the file is walked here once,
// before bbolt is let near it, with every bound checked. The layout is that of bbolt's version 2 file format
// (internal/common in its sources), which has been the same since 2014.

const (
	boltMagic    = 0xED0CDAED
	boltVersion  = 2
	boltHeader   = 16 // of a page: id, flags, count, overflow
	boltMetaLen  = 64
	boltMaxDepth = 32
	boltNoList   = ^uint64(0)

	flagBranch   = 0x01
	flagLeaf     = 0x02
	flagMeta     = 0x04
	flagFreelist = 0x10

	flagBucket = 0x01 // of a leaf element
)

// errNoIndex says that there is no index file, or one in which nothing was ever written.
var errNoIndex = errors.New("there is no index")

// boltFile is a bbolt file that is being walked.
type boltFile struct {
	b        []byte
	pageSize uint64
	high     uint64 // pages from here on are not in use
	seen     []uint64
}

// checkBolt says what is wrong with the bbolt file at path, errNoIndex if there is none.
func checkBolt(path string) (err error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return errNoIndex
	}
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Size() == 0 {
		return errNoIndex
	}
	b, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	defer unix.Munmap(b)
	unix.Madvise(b, unix.MADV_WILLNEED)
	// A disk that cannot read a page makes the access fault.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%v", r)
		}
	}()
	return (&boltFile{b: b}).check()
}

func (f *boltFile) check() error {
	meta, err := f.meta()
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	f.high = le.Uint64(meta[40:])
	if f.high < 4 || f.high > uint64(len(f.b))/f.pageSize {
		return fmt.Errorf("the file has %d pages, and its meta page says %d", uint64(len(f.b))/f.pageSize, f.high)
	}
	f.seen = make([]uint64, f.high/64+1)
	f.seen[0] = 3 // the meta pages
	if err := f.tree(le.Uint64(meta[16:]), 0, nil, nil, true); err != nil {
		return err
	}
	return f.freelist(le.Uint64(meta[32:]))
}

// meta returns the newer of the two meta pages. Both must be whole: with the newer one damaged bbolt would go back by a
// transaction.
func (f *boltFile) meta() ([]byte, error) {
	le := binary.LittleEndian
	var newest []byte
	if len(f.b) < boltHeader+boltMetaLen {
		return nil, errors.New("the file is cut short")
	}
	f.pageSize = uint64(le.Uint32(f.b[boltHeader+8:]))
	if f.pageSize < 1<<10 || f.pageSize > 64<<10 || f.pageSize&(f.pageSize-1) != 0 || uint64(len(f.b)) < 4*f.pageSize {
		return nil, errors.New("meta page 0 is damaged")
	}
	for i := range uint64(2) {
		p := f.b[i*f.pageSize:]
		m := p[boltHeader : boltHeader+boltMetaLen]
		h := fnv.New64a()
		h.Write(m[:boltMetaLen-8])
		if le.Uint32(m) != boltMagic || le.Uint32(m[4:]) != boltVersion || h.Sum64() != le.Uint64(m[boltMetaLen-8:]) ||
			le.Uint64(p) != i || le.Uint16(p[8:]) != flagMeta || uint64(le.Uint32(m[8:])) != f.pageSize {
			return nil, fmt.Errorf("meta page %d is damaged", i)
		}
		if newest == nil || le.Uint64(m[48:]) > le.Uint64(newest[48:]) {
			newest = m
		}
	}
	return newest, nil
}

// claim marks a page and those behind it that belong to it as used, and returns their bytes.
func (f *boltFile) claim(id uint64) ([]byte, error) {
	if id < 2 || id >= f.high {
		return nil, fmt.Errorf("page %d does not exist", id)
	}
	p := f.b[id*f.pageSize:]
	n := uint64(binary.LittleEndian.Uint32(p[12:])) + 1
	if binary.LittleEndian.Uint64(p) != id || n > f.high-id {
		return nil, fmt.Errorf("page %d is damaged", id)
	}
	for i := id; i < id+n; i++ {
		if err := f.mark(i); err != nil {
			return nil, err
		}
	}
	return p[:n*f.pageSize], nil
}

func (f *boltFile) mark(id uint64) error {
	if f.seen[id/64]&(1<<(id%64)) != 0 {
		return fmt.Errorf("page %d is used twice", id)
	}
	f.seen[id/64] |= 1 << (id % 64)
	return nil
}

// tree walks a B+ tree whose keys are all at least low and, unless high is nil, below high. top says that it is the tree
// of buckets.
func (f *boltFile) tree(id uint64, depth int, low, high []byte, top bool) error {
	if depth > boltMaxDepth {
		return fmt.Errorf("page %d is too deep", id)
	}
	p, err := f.claim(id)
	if err != nil {
		return err
	}
	return f.page(p, id, depth, low, high, top)
}

func (f *boltFile) page(p []byte, id uint64, depth int, low, high []byte, top bool) error {
	le := binary.LittleEndian
	kind, count := le.Uint16(p[8:]), int(le.Uint16(p[10:]))
	if kind != flagLeaf && kind != flagBranch || boltHeader+16*count > len(p) || kind == flagBranch && count == 0 {
		return fmt.Errorf("page %d is damaged", id)
	}
	key := func(i int) (k, rest []byte, ok bool) {
		at := uint64(boltHeader + 16*i)
		pos, size := uint64(le.Uint32(p[at:])), uint64(le.Uint32(p[at+4:]))
		if kind == flagLeaf {
			pos, size = uint64(le.Uint32(p[at+4:])), uint64(le.Uint32(p[at+8:]))
		}
		if pos < 16 || at+pos+size > uint64(len(p)) {
			return nil, nil, false
		}
		return p[at+pos : at+pos+size], p[at+pos+size:], true
	}
	last := low
	for i := range count {
		k, rest, ok := key(i)
		// A branch's first key may be above the first key below it, never the other way.
		if !ok || i > 0 && bytes.Compare(k, last) <= 0 || i == 0 && bytes.Compare(k, low) < 0 ||
			high != nil && bytes.Compare(k, high) >= 0 {
			return fmt.Errorf("page %d, element %d is damaged", id, i)
		}
		last = k
		if kind == flagLeaf {
			if err := f.leaf(p[boltHeader+16*i:], rest, id, i, top); err != nil {
				return err
			}
			continue
		}
		next := high
		if i+1 < count {
			if next, _, ok = key(i + 1); !ok {
				return fmt.Errorf("page %d, element %d is damaged", id, i+1)
			}
		}
		if err := f.tree(le.Uint64(p[boltHeader+16*i+8:]), depth+1, k, next, top); err != nil {
			return err
		}
	}
	return nil
}

// leaf checks the value of a leaf element; rest begins with it. Buckets stand in the top tree only.
func (f *boltFile) leaf(elem, rest []byte, id uint64, i int, top bool) error {
	le := binary.LittleEndian
	flags, size := le.Uint32(elem), uint64(le.Uint32(elem[12:]))
	if size > uint64(len(rest)) || (flags == flagBucket) != top || flags&^flagBucket != 0 {
		return fmt.Errorf("page %d, element %d is damaged", id, i)
	}
	if !top {
		return nil
	}
	v := rest[:size]
	if size < 16 {
		return fmt.Errorf("page %d, bucket %d is damaged", id, i)
	}
	if root := le.Uint64(v); root != 0 {
		return f.tree(root, 1, nil, nil, false)
	}
	if len(v) < 16+boltHeader {
		return fmt.Errorf("page %d, bucket %d is damaged", id, i)
	}
	return f.page(v[16:], id, 1, nil, nil, false)
}

func (f *boltFile) freelist(id uint64) error {
	if id == boltNoList {
		return errors.New("there is no freelist")
	}
	p, err := f.claim(id)
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	n, ids := uint64(le.Uint16(p[10:])), p[boltHeader:]
	if n == 0xffff {
		n, ids = le.Uint64(ids), ids[8:]
	}
	if le.Uint16(p[8:]) != flagFreelist || n > uint64(len(ids))/8 {
		return errors.New("the freelist is damaged")
	}
	for i := range n {
		id := le.Uint64(ids[8*i:])
		if id < 2 || id >= f.high {
			return fmt.Errorf("the freelist holds page %d, which does not exist", id)
		}
		if err := f.mark(id); err != nil {
			return err
		}
	}
	return nil
}
