package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"
)

// model is what a working copy may hold: by name, what may be in each file.
type model map[string]*content

const (
	fileBlocks = 16
	fileBlock  = 4096
)

// content is what a file may hold. Each block holds one version number all over. A write that returned, and that the
// server has been told of, is there after the server was killed; what is only in the page cache may be lost with the
// server's mount until it is synced, and so may be what was in progress.
type content struct {
	blocks  [fileBlocks][]uint64 // the versions that each block may have; the last is the newest
	unsure  bool                 // the file may be there or not: it was being made or removed
	partial bool                 // its size may not be the whole yet
}

// check reads a file and says whether it is as the model allows.
func (f *content) check(path string) error {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && f.unsure {
		return nil
	}
	if err != nil {
		return err
	}
	if len(data) != fileBlocks*fileBlock && !(f.partial && len(data) == 0) {
		return fmt.Errorf("%d bytes", len(data))
	}
	for i := range len(data) / fileBlock {
		b := data[i*fileBlock : (i+1)*fileBlock]
		v := binary.LittleEndian.Uint64(b)
		if !bytes.Equal(b, versionBlock(v)) {
			return fmt.Errorf("block %d is torn", i)
		}
		if !slices.Contains(f.blocks[i], v) {
			return fmt.Errorf("block %d has version %d, want one of %v", i, v, f.blocks[i])
		}
	}
	return nil
}

func versionBlock(v uint64) []byte {
	return bytes.Repeat(binary.LittleEndian.AppendUint64(nil, v), fileBlock/8)
}

// observe reads the model from the files, as what is certain from now on.
func (c *crash) observe() model {
	c.t.Helper()
	m := make(model)
	for _, sub := range []string{"a", "b", "c"} {
		list, err := os.ReadDir(c.path(sub))
		if err != nil {
			c.t.Fatal(err)
		}
		for _, e := range list {
			name := sub + "/" + e.Name()
			data, err := os.ReadFile(c.path(name))
			if err != nil {
				c.t.Fatal(err)
			}
			f := &content{partial: len(data) == 0}
			for i := range f.blocks {
				v := uint64(0)
				if len(data) > 0 {
					v = binary.LittleEndian.Uint64(data[i*fileBlock:])
				}
				f.blocks[i] = []uint64{v}
			}
			m[name] = f
		}
	}
	return m
}

// writeFor writes for a time, with the server alive.
func (c *crash) writeFor(d time.Duration) {
	c.t.Helper()
	stop := make(chan struct{})
	time.AfterFunc(d, func() { close(stop) })
	if err := c.write(stop); err != nil {
		c.t.Fatalf("write: %v", err)
	}
}

// write changes random files until stop closes or an operation fails, as each does when the server is killed. The model
// is told before an operation what may be, and after it what is.
func (c *crash) write(stop <-chan struct{}) error {
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		if err := c.change(); err != nil {
			return err
		}
	}
}

// change does one operation.
func (c *crash) change() error {
	m := c.models[c.current]
	name := fmt.Sprintf("%c/f%d", 'a'+c.rnd.IntN(3), c.rnd.IntN(4))
	f := m[name]
	if f == nil {
		return c.create(m, name)
	}
	switch k := c.rnd.IntN(20); {
	case f.partial: // left by a kill between its creation and its growth
		return f.grow(c.path(name))
	case k == 0:
		f.unsure = true
		if err := os.Remove(c.path(name)); err != nil {
			return err
		}
		delete(m, name)
		return nil
	case k == 1:
		return c.rename(m, name)
	case k < 5:
		return c.sync(f, name)
	}
	return c.overwrite(f, name)
}

func (c *crash) create(m model, name string) error {
	f := &content{unsure: true, partial: true}
	for i := range f.blocks {
		f.blocks[i] = []uint64{0}
	}
	m[name] = f
	file, err := os.OpenFile(c.path(name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer file.Close()
	f.unsure = false
	return f.grow(c.path(name))
}

// grow gives a new file its size.
func (f *content) grow(path string) error {
	if err := os.Truncate(path, fileBlocks*fileBlock); err != nil {
		return err
	}
	f.partial = false
	return nil
}

// rename moves a file over another or to a new name; in progress, either both are as they were or the new name is it.
func (c *crash) rename(m model, name string) error {
	to := fmt.Sprintf("%c/f%d", 'a'+c.rnd.IntN(3), c.rnd.IntN(4))
	if to == name {
		return nil
	}
	f, over := m[name], m[to]
	f.unsure = true
	either := &content{unsure: over == nil, partial: f.partial || over != nil && over.partial}
	for i := range either.blocks {
		either.blocks[i] = slices.Clone(f.blocks[i])
		if over != nil {
			either.blocks[i] = append(either.blocks[i], over.blocks[i]...)
		}
	}
	m[to] = either
	if err := os.Rename(c.path(name), c.path(to)); err != nil {
		return err
	}
	f.unsure = false
	m[to] = f
	delete(m, name)
	return nil
}

func (c *crash) sync(f *content, name string) error {
	file, err := os.OpenFile(c.path(name), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := file.Sync(); err != nil {
		return err
	}
	for i, may := range f.blocks {
		f.blocks[i] = may[len(may)-1:]
	}
	return nil
}

func (c *crash) overwrite(f *content, name string) error {
	first := c.rnd.IntN(fileBlocks)
	n := 1 + c.rnd.IntN(min(4, fileBlocks-first))
	c.version++
	for i := first; i < first+n; i++ {
		f.blocks[i] = append(slices.Clone(f.blocks[i]), c.version)
	}
	file, err := os.OpenFile(c.path(name), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := file.WriteAt(bytes.Repeat(versionBlock(c.version), n), int64(first)*fileBlock); err != nil {
		return err
	}
	if c.v.cache == through {
		for i := first; i < first+n; i++ {
			f.blocks[i] = []uint64{c.version}
		}
	}
	return nil
}
