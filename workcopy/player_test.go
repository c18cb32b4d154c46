package workcopy

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"path"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"dm/object"
)

// player does random things to a working copy.
type player struct {
	t     *testing.T
	rnd   *rand.Rand
	ctx   context.Context
	c     *Copy
	dirs  []string
	files []string
	held  []NodeID // open files, which may have lost their names
}

func (p *player) resolve(name string) (NodeID, error) {
	id, _, err := p.c.Lookup(p.ctx, RootID, ".")
	for _, part := range strings.Split(name, "/") {
		if err != nil || part == "" || part == "." {
			continue
		}
		var next NodeID
		next, _, err = p.c.Lookup(p.ctx, id, part)
		p.c.Forget(id, 1)
		id = next
	}
	return id, err
}

func (p *player) pick(list []string) string { return list[p.rnd.IntN(len(list))] }

func (p *player) newName() string {
	return path.Join(p.pick(p.dirs), fmt.Sprintf("n%d", p.rnd.IntN(40)))
}

// step does one thing. Errors that POSIX allows for are fine: the state speaks.
func (p *player) step() error {
	err := p.act()
	for _, ok := range []error{
		syscall.EEXIST, syscall.ENOENT, syscall.ENOTDIR, syscall.EISDIR, syscall.ENOTEMPTY, syscall.EINVAL, syscall.EPERM,
		syscall.ESTALE,
	} {
		if err == ok {
			return nil
		}
	}
	return err
}

func (p *player) act() error {
	if p.rnd.IntN(8) == 0 {
		return p.onHeld()
	}
	switch p.rnd.IntN(14) {
	case 0:
		name := p.newName()
		p.dirs = append(p.dirs, name)
		return p.make(name, NewInode{Mode: object.ModeDir | 0o755})
	case 1, 2:
		name := p.newName()
		p.files = append(p.files, name)
		return p.make(name, NewInode{Mode: object.ModeRegular | 0o644, UID: uint32(p.rnd.IntN(3))})
	case 3:
		return p.make(p.newName(), NewInode{Mode: object.ModeSymlink | 0o777, Target: "x"})
	case 4:
		return p.remove()
	case 5:
		return p.rename()
	case 6:
		return p.link()
	case 7:
		return p.onFile(func(id NodeID) error {
			mode := uint32(0o600 + p.rnd.IntN(64))
			_, err := p.c.SetAttr(p.ctx, id, AttrChange{Mode: &mode})
			return err
		})
	case 8:
		return p.onFile(func(id NodeID) error {
			size := p.size()
			_, err := p.c.SetAttr(p.ctx, id, AttrChange{Size: &size})
			return err
		})
	case 9:
		return p.onFile(func(id NodeID) error {
			mode := uint32(unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE)
			return p.c.Fallocate(p.ctx, id, mode, int64(p.size()), int64(p.size())+1)
		})
	}
	return p.onFile(func(id NodeID) error {
		data := make([]byte, 1+p.rnd.IntN(9000))
		for i := range data {
			data[i] = byte(p.rnd.Uint32())
		}
		_, err := p.c.Write(p.ctx, id, [][]byte{data[:len(data)/3], data[len(data)/3:]}, int64(p.size()), false, false)
		return err
	})
}

// onHeld opens a file for long, writes to one that was opened before, or closes it.
func (p *player) onHeld() error {
	if len(p.held) < 4 {
		if len(p.files) == 0 {
			return nil
		}
		id, err := p.resolve(p.pick(p.files))
		if err == nil {
			p.held = append(p.held, id)
		}
		return err
	}
	i := p.rnd.IntN(len(p.held))
	id := p.held[i]
	size := p.size()
	switch p.rnd.IntN(4) {
	case 0:
		p.held = append(p.held[:i], p.held[i+1:]...)
		p.c.Forget(id, 1)
		return nil
	case 1:
		_, err := p.c.SetAttr(p.ctx, id, AttrChange{Size: &size})
		return err
	}
	data := make([]byte, 1+p.rnd.IntN(9000))
	for j := range data {
		data[j] = byte(p.rnd.Uint32())
	}
	if _, err := p.c.Write(p.ctx, id, [][]byte{data}, int64(size), false, false); err != nil {
		return err
	}
	got := make([]byte, len(data))
	if n, err := p.c.Read(p.ctx, id, got, int64(size)); err != nil || n != len(got) || !bytes.Equal(got, data) {
		return fmt.Errorf("an open file does not have what was written to it: %d bytes, %w", n, err)
	}
	return nil
}

// size is often at the edge of a block, and sometimes 0.
func (p *player) size() uint64 {
	switch p.rnd.IntN(4) {
	case 0:
		return uint64(p.rnd.IntN(12)) * BlockSize
	case 1:
		return 0
	}
	return uint64(p.rnd.IntN(50_000))
}

func (p *player) make(name string, in NewInode) error {
	dir, err := p.resolve(path.Dir(name))
	if err != nil {
		return err
	}
	defer p.c.Forget(dir, 1)
	id, _, err := p.c.Make(p.ctx, dir, path.Base(name), in)
	if err == nil {
		p.c.Forget(id, 1)
	}
	return err
}

func (p *player) onFile(fn func(id NodeID) error) error {
	if len(p.files) == 0 {
		return nil
	}
	id, err := p.resolve(p.pick(p.files))
	if err != nil {
		return err
	}
	defer p.c.Forget(id, 1)
	return fn(id)
}

func (p *player) remove() error {
	name := p.newName()
	if len(p.files) > 0 && p.rnd.IntN(2) == 0 {
		name = p.pick(p.files)
	}
	dir, err := p.resolve(path.Dir(name))
	if err != nil {
		return err
	}
	defer p.c.Forget(dir, 1)
	if err := p.c.Unlink(p.ctx, dir, path.Base(name)); err != syscall.EISDIR {
		return err
	}
	return p.c.Rmdir(p.ctx, dir, path.Base(name))
}

func (p *player) rename() error {
	from, to := p.newName(), p.newName()
	if len(p.files) > 0 && p.rnd.IntN(2) == 0 {
		from = p.pick(p.files)
	}
	a, err := p.resolve(path.Dir(from))
	if err != nil {
		return err
	}
	defer p.c.Forget(a, 1)
	b, err := p.resolve(path.Dir(to))
	if err != nil {
		return err
	}
	defer p.c.Forget(b, 1)
	flags := uint32(0)
	if p.rnd.IntN(4) == 0 {
		flags = unix.RENAME_EXCHANGE
	}
	p.files, p.dirs = append(p.files, to), append(p.dirs, to)
	return p.c.Rename(p.ctx, a, path.Base(from), b, path.Base(to), flags)
}

func (p *player) link() error {
	return p.onFile(func(id NodeID) error {
		to := p.newName()
		dir, err := p.resolve(path.Dir(to))
		if err != nil {
			return err
		}
		defer p.c.Forget(dir, 1)
		p.files = append(p.files, to)
		if _, err = p.c.Link(p.ctx, id, dir, path.Base(to)); err == nil {
			p.c.Forget(id, 1)
		}
		return err
	})
}
