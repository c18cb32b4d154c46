package fusefs

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"dm/workcopy"
)

const (
	behindFile = "f"
	behindSize = 3<<20 + 777
)

// behindDeeds are what a process does to a file that a commit is reading.
func behindDeeds() map[string]func(path string, f *os.File) error {
	rewrite := func(f *os.File, with byte) error {
		_, err := f.WriteAt(bytes.Repeat([]byte{with}, behindSize), 0)
		return err
	}
	return map[string]func(string, *os.File) error{
		"write": func(_ string, f *os.File) error { return rewrite(f, 'a') }, // before the cut, as all else begins
		"rewrite": func(_ string, f *os.File) error {
			if err := rewrite(f, 'b'); err != nil {
				return err
			}
			if err := f.Sync(); err != nil {
				return err
			}
			return rewrite(f, 'c')
		},
		"map": func(_ string, f *os.File) error {
			p, err := unix.Mmap(int(f.Fd()), 0, behindSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			if err != nil {
				return err
			}
			for i := range p {
				p[i] = 'd'
			}
			if err := unix.Msync(p, unix.MS_SYNC); err != nil {
				return err
			}
			return unix.Munmap(p)
		},
		"truncate": func(_ string, f *os.File) error {
			if err := f.Truncate(0); err != nil {
				return err
			}
			return rewrite(f, 'e')
		},
		"shorten": func(_ string, f *os.File) error {
			if err := f.Truncate(1<<20 + 5); err != nil {
				return err
			}
			return f.Truncate(behindSize)
		},
		"punch": func(_ string, f *os.File) error {
			return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 5000, 2<<20)
		},
		"unlink": func(path string, f *os.File) error {
			if err := os.Remove(path); err != nil {
				return err
			}
			return rewrite(f, 'g')
		},
		"rename over": func(path string, f *os.File) error {
			other := path + ".new"
			if err := os.WriteFile(other, []byte("other"), 0o600); err != nil {
				return err
			}
			return os.Rename(other, path)
		},
	}
}

func doDeed(dir, deed string) error {
	path := filepath.Join(dir, behindFile)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := behindDeeds()[deed](path, f); err != nil {
		return err
	}
	return f.Sync()
}

// TestDeedsBehindACommit: what a process does through the mount while a commit reads a file, before it begins, in the
// middle and behind, is not in the commit.
func TestDeedsBehindACommit(t *testing.T) {
	for _, cache := range []Cache{Writeback, Through} {
		for _, deed := range slices.Sorted(maps.Keys(behindDeeds())) {
			t.Run(fmt.Sprintf("%v/%s", cache, deed), func(t *testing.T) {
				copy := newCopy(t)
				m := mountTest(t, copy, Options{Cache: cache, Flusher: newTestFlusher(t)})
				for _, at := range []int{0, behindSize / 2, behindSize} {
					do := func(deed string) {
						t.Helper()
						if err := helper(t, "deed", m.Dir(), deed)(); err != nil {
							t.Fatal(err)
						}
					}
					do("write")
					if got := readBehind(t, copy, at, func() { do(deed) }); !bytes.Equal(got, bytes.Repeat([]byte{'a'}, behindSize)) {
						t.Errorf("%s when %d bytes had been read: the frozen file differs", deed, at)
					}
				}
			})
		}
	}
}

// readBehind freezes a working copy and reads the file, with something done when so many bytes have been read.
func readBehind(t *testing.T, c *workcopy.Copy, at int, do func()) []byte {
	t.Helper()
	s, err := c.Freeze(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Abort()
	for _, f := range s.Files() {
		if f.Path() != behindFile {
			continue
		}
		got := make([]byte, f.Size())
		if _, err := f.ReadAt(got[:min(at, len(got))], 0); err != nil {
			t.Fatal(err)
		}
		do()
		if _, err := f.ReadAt(got[min(at, len(got)):], int64(at)); err != nil {
			t.Fatal(err)
		}
		return got
	}
	t.Fatal("the file has not changed")
	return nil
}
