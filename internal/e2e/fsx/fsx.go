// Package fsx does random operations on files of two directories at once, and compares whatever the two filesystems
// answer: data read, results, error numbers, sizes, link counts. One of them is the one under test, the other is the
// host's, whose answers are the specification. The idea is that of fsx, Apple's and later the Linux Test Project's file
// system exerciser, whose expected content is a buffer in memory; a second filesystem can also be asked what an
// operation on several files or names does.
//
// A run is repeatable: the same seed does the same operations.
package fsx

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Limits of a run: few files and small ones, so that operations meet.
const (
	files   = 5
	maxSize = 1 << 20
	maxLen  = 96 << 10
	history = 40
)

// Run is one random history.
type Run struct {
	rnd         *rand.Rand
	seed        uint64
	steps       int
	real, model *side
	log         []string
}

// side is one of the two directories with what is open in it.
type side struct {
	dir string
	fds [files * 2]int // two descriptors per file that may be open, -1 if not; they outlive their names
}

// New starts a run over two empty directories; real is the one under test.
func New(real, model string, seed uint64) *Run {
	r := &Run{rnd: rand.New(rand.NewPCG(seed, 3)), seed: seed, real: &side{dir: real}, model: &side{dir: model}}
	r.forget()
	return r
}

func (r *Run) forget() {
	for i := range r.real.fds {
		r.real.fds[i], r.model.fds[i] = -1, -1
	}
}

// Close closes everything that is open on both sides, as before the filesystem goes away.
func (r *Run) Close() {
	for _, s := range []*side{r.real, r.model} {
		for _, fd := range s.fds {
			if fd >= 0 {
				unix.Close(fd)
			}
		}
	}
	r.forget()
}

// Steps does n operations and returns the first difference, with the operations that led to it.
func (r *Run) Steps(n int) error {
	for range n {
		r.steps++
		name, do := r.draw()
		want := do(r.model)
		got := do(r.real)
		r.log = append(r.log, fmt.Sprintf("%d: %s = %s", r.steps, name, want.short()))
		if len(r.log) > history {
			r.log = r.log[1:]
		}
		if !want.equal(got) {
			return r.failure("%s: got %s, want %s%s", name, got.short(), want.short(), firstDifference(got.data, want.data))
		}
	}
	return nil
}

// Check compares the whole content of both sides, through paths and through open descriptors.
func (r *Run) Check() error {
	want, err := os.ReadDir(r.model.dir)
	if err != nil {
		return err
	}
	got, err := os.ReadDir(r.real.dir)
	if err != nil {
		return r.failure("list: %v", err)
	}
	if names(want) != names(got) {
		return r.failure("names are %s, want %s", names(got), names(want))
	}
	for _, e := range want {
		w, g := r.model.content(e.Name()), r.real.content(e.Name())
		if !w.equal(g) {
			return r.failure("%s: got %s, want %s%s", e.Name(), g.short(), w.short(), firstDifference(g.data, w.data))
		}
		if err := checkHoles(filepath.Join(r.real.dir, e.Name()), w.data); err != nil {
			return r.failure("%s: %v", e.Name(), err)
		}
	}
	return nil
}

func names(list []os.DirEntry) string {
	var b strings.Builder
	for _, e := range list {
		b.WriteString(e.Name() + " ")
	}
	return b.String()
}

func (s *side) content(name string) result {
	data, err := os.ReadFile(filepath.Join(s.dir, name))
	if err != nil {
		return result{err: err}
	}
	var st unix.Stat_t
	err = unix.Stat(filepath.Join(s.dir, name), &st)
	return result{n: st.Size<<8 | int64(st.Nlink), err: err, data: data}
}

// checkHoles verifies what SEEK_DATA and SEEK_HOLE say: they go forward, end, and no byte of a hole is other than zero.
func checkHoles(path string, want []byte) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	size := int64(len(want))
	for off := int64(0); off < size; {
		data, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			data = size
		} else if err != nil {
			return fmt.Errorf("seek data from %d: %w", off, err)
		}
		if data < off || data > size {
			return fmt.Errorf("seek data from %d says %d, the size is %d", off, data, size)
		}
		if i := len(bytes.TrimLeft(want[off:data], "\x00")); i > 0 {
			return fmt.Errorf("seek data from %d says %d, but there is data at %d", off, data, data-int64(i))
		}
		if data == size {
			return nil
		}
		end, err := unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE)
		if err != nil || end <= data || end > size {
			return fmt.Errorf("seek hole from %d says %d (%v), the size is %d", data, end, err, size)
		}
		off = end
	}
	return nil
}

func (r *Run) failure(format string, args ...any) error {
	return fmt.Errorf("seed %d, step %d: %s\nbefore:\n  %s", r.seed, r.steps, fmt.Sprintf(format, args...),
		strings.Join(r.log, "\n  "))
}

// result is what an operation answered.
type result struct {
	n    int64
	err  error
	data []byte
}

func (a result) equal(b result) bool {
	return a.n == b.n && errno(a.err) == errno(b.err) && bytes.Equal(a.data, b.data)
}

func (a result) short() string {
	if a.err != nil {
		return a.err.Error()
	}
	if a.data != nil {
		return fmt.Sprintf("%d (%d bytes)", a.n, len(a.data))
	}
	return fmt.Sprint(a.n)
}

func errno(err error) unix.Errno {
	for err != nil {
		switch e := err.(type) {
		case unix.Errno:
			return e
		case interface{ Unwrap() error }:
			err = e.Unwrap()
		default:
			return unix.EIO
		}
	}
	return 0
}

func firstDifference(got, want []byte) string {
	if bytes.Equal(got, want) {
		return ""
	}
	if len(got) != len(want) {
		return fmt.Sprintf(" (%d bytes, want %d)", len(got), len(want))
	}
	first, last, n := -1, 0, 0
	for i := range want {
		if got[i] != want[i] {
			if first < 0 {
				first = i
			}
			last = i
			n++
		}
	}
	return fmt.Sprintf(" (%d bytes differ from %d to %d; first is %d, want %d)", n, first, last, got[first], want[first])
}
