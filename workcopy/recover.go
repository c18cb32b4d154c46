package workcopy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/RoaringBitmap/roaring/v2"
	"golang.org/x/sys/unix"

	"dm/internal/errs"
	"dm/object"
)

// recover brings backing files in line with the journal after the server or the machine was stopped without warning.
func (c *Copy) recover(ctx context.Context, h head) error {
	if h.Clean {
		return nil
	}
	now := era(c.path)
	power := h.Era != now || now == ""
	if err := c.checkParts(power); err != nil {
		return err
	}
	for _, n := range c.nodes {
		if n.file == nil || n.stray {
			continue
		}
		c.look(n)
		if power && !n.file.partial {
			continue // the file may be ahead of the journal, too
		}
		if err := n.file.carryOut(n.size); err != nil {
			return err
		}
	}
	if power {
		return c.recoverPowerLoss(ctx)
	}
	return nil
}

// carryOut does what was noted of a truncation or a hole and perhaps not done.
func (f *content) carryOut(size uint64) (err error) {
	if have, ok := f.fileSize(); ok && have > size {
		if err := f.setSize(int64(size), false); err != nil {
			return err
		}
	}
	ranges(f.zeroed, func(first, count uint64) {
		if err == nil {
			err = f.punch(first*BlockSize, (first+count)*BlockSize)
		}
	})
	return err
}

func (b *backing) fileSize() (uint64, bool) {
	info, err := os.Lstat(b.name())
	if err != nil {
		return 0, false
	}
	return uint64(info.Size()), true
}

// eachBacking visits the backing files of the present generation.
func (c *Copy) eachBacking(fn func(ino uint64, part bool, path string) error) error {
	root := filepath.Join(c.path, "data", fmt.Sprint(c.gen))
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, part := strings.CutSuffix(d.Name(), partSuffix)
		ino, perr := strconv.ParseUint(name, 10, 64)
		if perr != nil {
			return nil
		}
		return fn(ino, part, path)
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// checkParts looks at the partial files. One of which the journal knows nothing is removed. Of the others a block counts as
// local only if the host's filesystem has bytes for it, or if it is a hole: the journal is written before the bytes, so the
// last write may be noted and not carried out, and after a power cut any that was not synced.
//
// After a power cut blocks that count as committed are taken from the commit: what was overwritten and committed, and not
// synced, may be older here.
func (c *Copy) checkParts(power bool) error {
	found := map[uint64]bool{}
	err := c.eachBacking(func(ino uint64, part bool, path string) error {
		if !part {
			return nil
		}
		found[ino] = true
		if n := c.inodes[ino]; n != nil && n.file != nil && n.file.partial {
			have, err := extents(path)
			if err != nil {
				return err
			}
			n.file.trust(have)
			if power {
				return n.file.dropClean(have)
			}
			return nil
		}
		return os.Remove(path)
	})
	if err != nil {
		return err
	}
	for ino, n := range c.inodes { // the name of a file that was made last may be lost
		if f := n.file; f != nil && f.partial && !found[ino] {
			f.exists = false
			f.trust(roaring.New())
		}
	}
	return nil
}

// recoverPowerLoss finds out what the machine's crash left of files and journal, which were synced independently.
//
// A complete file is compared with the commit, chunk by chunk: what differs is dirty.
func (c *Copy) recoverPowerLoss(ctx context.Context) error {
	c.log.Warn("the machine stopped without warning: comparing local files with the last commit", "copy", c.path)
	suspects := map[uint64]bool{}
	err := c.eachBacking(func(ino uint64, part bool, path string) error {
		if !part {
			suspects[ino] = true
			c.nextIno = max(c.nextIno, ino+1) // the journal may have lost it
		}
		return nil
	})
	if err != nil || len(suspects) == 0 {
		return err
	}
	for ino := range suspects {
		if n := c.inodes[ino]; n != nil && n.file != nil && (n.epoch == c.epoch || n.base == nil) {
			delete(suspects, ino)
			if err := c.compare(ctx, n); err != nil {
				return err
			}
		}
	}
	if c.commit != nil {
		if err := c.compareTree(ctx, c.root, suspects); err != nil {
			return err
		}
	}
	for ino := range suspects { // in no tree: the journal lost the inode with its name
		if err := os.Remove(c.dataPath(c.gen, ino)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// extents returns the blocks of a file for which the host's filesystem has bytes.
func extents(path string) (*roaring.Bitmap, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	have := roaring.New()
	for off := int64(0); ; {
		start, err := unix.Seek(int(file.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, syscall.ENXIO) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("find the data of %s: %w", path, err)
		}
		end, err := unix.Seek(int(file.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return nil, fmt.Errorf("find the data of %s: %w", path, err)
		}
		// The host's blocks may be smaller: of one that was a hole it has only what was written.
		have.AddRange(blockOf(uint64(start)), blocksUpTo(uint64(end)))
		off = end
	}
	return have, nil
}

// trust takes as local, and as changed, only blocks of which the host has bytes, and holes.
func (f *content) trust(have *roaring.Bitmap) {
	lost := cloneSet(f.dirty)
	lost.AndNot(have)
	if f.hole != nil {
		have.Or(f.hole)
		ranges(roaring.And(lost, f.hole), func(first, count uint64) { f.markZero(first, first+count) })
	}
	for _, set := range []*roaring.Bitmap{f.local, f.dirty} {
		if set != nil {
			set.And(have)
		}
	}
}

// dropClean gives up the blocks that are there and count as committed.
func (f *content) dropClean(have *roaring.Bitmap) (err error) {
	changed := roaring.Or(cloneSet(f.dirty), cloneSet(f.zeroed))
	if f.local != nil {
		f.local.And(changed)
	}
	ranges(roaring.AndNot(have, changed), func(first, count uint64) {
		if err == nil { // where the commit has a hole nothing is written over them
			err = f.punch(first*BlockSize, (first+count)*BlockSize)
		}
	})
	return err
}

// compareTree compares those files below a directory that are as committed, as far as the journal knows, and have a
// complete backing file. It takes them off suspects.
func (c *Copy) compareTree(ctx context.Context, dir *node, suspects map[uint64]bool) error {
	var found []*object.Entry
	err := object.WalkTree(ctx, c.cfg.Source, dir.dir.tree, "", func(e *object.Entry) error {
		if e.IsDir() || suspects[e.Ino] {
			entry := *e
			found = append(found, &entry)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, e := range found {
		if _, changed := dir.find(e.Name); changed {
			continue // below, if it is a directory
		}
		full, err := c.linkEntry(ctx, c.linkTable(), *e)
		if err != nil {
			return err
		}
		if _, err := c.loadEntry(dir, &full); err != nil {
			return err
		}
	}
	for _, names := range []map[string]*node{dir.dir.loaded, dir.changed()} {
		for _, child := range names {
			switch {
			case child == nil:
			case child.isDir():
				err = c.compareTree(ctx, child, suspects)
			case suspects[child.ino]:
				delete(suspects, child.ino)
				err = c.compare(ctx, child)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// compare marks as dirty what a complete backing file holds otherwise than the commit. Its size and time are the host's.
func (c *Copy) compare(ctx context.Context, n *node) error {
	info, err := os.Lstat(n.file.path)
	if err != nil {
		return nil // removed since it was listed, or never written
	}
	n.file.look()
	size := uint64(info.Size())
	if size != n.size {
		c.mark(n)
		if size < n.size {
			n.file.dropBlocks(blocksUpTo(size))
		}
		c.resize(n, size)
	}
	if t := info.ModTime(); t.Unix() > n.mtime.Sec && n.epoch == c.epoch {
		n.mtime = Time{t.Unix(), uint32(t.Nanosecond())}
	}
	if old := n.file.committed.Size; size > old {
		c.mark(n)
		n.file.markDirty(blockOf(old), blocksUpTo(size))
	}
	return object.WalkSpans(ctx, c.cfg.Source, n.file.committed, 0, func(off uint64, s object.Span) error {
		if off >= size {
			return nil
		}
		same, err := n.file.holds(off, s)
		if err != nil {
			return err
		}
		if same { // as committed again, whatever the journal says
			n.file.unmark(blocksUpTo(off), blockOf(min(off+s.Size, size)))
			return nil
		}
		c.mark(n)
		n.file.markDirty(blockOf(off), blocksUpTo(min(off+s.Size, size)))
		return nil
	})
}

// holds says whether the backing file has the bytes of a committed span.
func (b *backing) holds(off uint64, s object.Span) (bool, error) {
	if s.ID.IsZero() {
		return b.zero(off, s.Size)
	}
	if s.Size > object.MaxSize {
		return false, errs.New(errs.Damaged, "chunk %s has a size of %d", s.ID.Short(), s.Size)
	}
	p := make([]byte, s.Size)
	if err := b.readAt(p, int64(off)); err != nil {
		return false, err
	}
	return object.Sum(object.KindChunk, p) == s.ID, nil
}

func (b *backing) zero(off, size uint64) (bool, error) {
	p := make([]byte, min(size, 1<<20))
	for size > 0 {
		q := p[:min(size, uint64(len(p)))]
		if err := b.readAt(q, int64(off)); err != nil {
			return false, err
		}
		for _, v := range q {
			if v != 0 {
				return false, nil
			}
		}
		off, size = off+uint64(len(q)), size-uint64(len(q))
	}
	return true, nil
}
