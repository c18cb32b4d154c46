package workcopy

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dm/object"
)

// sharing returns two working copies, below a directory, that share a budget of MinOpenFiles.
func sharing(t *testing.T) (files *OpenFiles, cold, hot *rig, dir string) {
	t.Helper()
	files, dir = NewOpenFiles(0), fastDir(t)
	open := func(name string) *rig {
		r := &rig{t: t, ctx: t.Context(), b: &branch{store: newMemory()}, dir: filepath.Join(dir, name)}
		var err error
		r.c, err = Create(r.ctx, r.dir, Config{Source: r.b.store, Files: files}, object.ID{}, nil)
		r.ok(err)
		return r
	}
	cold, hot = open("cold"), open("hot")
	t.Cleanup(func() {
		cold.ok(cold.c.Close(cold.ctx))
		hot.ok(hot.c.Close(hot.ctx))
		if len(files.ring) != 0 || files.opening != 0 || files.held != 0 {
			t.Errorf("after the end: %d files open, %d being opened, %d held", len(files.ring), files.opening, files.held)
		}
	})
	return files, cold, hot, dir
}

// openBelow returns how many descriptors this process has of files below a directory.
func openBelow(t *testing.T, dir string) (n int) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(to, dir+"/") {
			n++
		}
	}
	return n
}

func (r *rig) writeMany(n int) (ids []NodeID) {
	r.t.Helper()
	for i := range n {
		ids = append(ids, r.file(fmt.Sprint("file", i)))
		r.write(ids[i], 0, fmt.Sprint("content of ", i))
	}
	return ids
}

func (r *rig) readMany(n int) {
	r.t.Helper()
	for i := range n {
		name := fmt.Sprint("file", i)
		if got, want := r.cat(name), fmt.Sprint("content of ", i); got != want {
			r.t.Fatalf("%s has %q, want %q", name, got, want)
		}
	}
}

// A working copy at rest makes room for one in use, and both together stay within what they have.
func TestOpenFilesAreShared(t *testing.T) {
	const many = 3 * MinOpenFiles
	_, cold, hot, dir := sharing(t)
	within := func() {
		t.Helper()
		if n := openBelow(t, dir); n > MinOpenFiles {
			t.Errorf("%d files are open, more than %d", n, MinOpenFiles)
		}
	}
	cold.writeMany(many)
	within()
	ids := hot.writeMany(many)
	within()
	if n := openBelow(t, hot.dir); n < MinOpenFiles-2*copyFiles {
		t.Errorf("the working copy in use has only %d of %d files open", n, MinOpenFiles)
	}
	for _, r := range []*rig{cold, hot} {
		r.readMany(many)
		r.commit()
		r.readMany(many)
		within()
	}
	for _, id := range ids {
		hot.ok(hot.c.Fsync(hot.ctx, id, false))
	}
	for i := range many {
		hot.ok(hot.c.Unlink(hot.ctx, RootID, fmt.Sprint("file", i)))
	}
	within()
	cold.reset()
	cold.readMany(many)
	within()
}

// While all descriptors are in use an operation waits for one, and says once that there is none if that takes too long.
func TestOpenFilesAllInUse(t *testing.T) {
	files, r, _, _ := sharing(t)
	ids := r.writeMany(MinOpenFiles)
	var held []func()
	for _, id := range ids[:MinOpenFiles-2*copyFiles] {
		b := &r.c.nodes[id].file.backing
		h, err := b.acquire(false)
		r.ok(err)
		held = append(held, func() { b.release(h) })
	}
	last := &r.c.nodes[ids[MinOpenFiles-1]].file.backing
	files.wait = 10 * time.Millisecond
	_, err := last.acquire(false)
	if !errors.Is(err, syscall.ENFILE) || strings.Count(err.Error(), "too many open files") != 1 {
		t.Errorf("with all in use: %v", err)
	}
	files.wait = acquireWait
	time.AfterFunc(20*time.Millisecond, held[0])
	h, err := last.acquire(false)
	r.ok(err)
	last.release(h)
	for _, release := range held[1:] {
		release()
	}
}

// A process that has no descriptor left, whoever has them, gets on with those of idle files.
func TestOpenFilesOfProcessUsedUp(t *testing.T) {
	_, r, _, _ := sharing(t)
	r.writeMany(MinOpenFiles / 2)
	id := r.file("one more")
	var limit unix.Rlimit
	r.ok(unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	free, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 0)
	r.ok(err)
	unix.Close(free)
	low := unix.Rlimit{Cur: uint64(free), Max: limit.Max}
	r.ok(unix.Setrlimit(unix.RLIMIT_NOFILE, &low))
	_, other := os.Open(r.dir)
	_, err = r.c.Write(r.ctx, id, [][]byte{[]byte("bytes")}, 0, false, false)
	r.ok(unix.Setrlimit(unix.RLIMIT_NOFILE, &limit))
	if !errors.Is(other, syscall.EMFILE) {
		t.Errorf("the process can open files: %v", other)
	}
	r.ok(err)
	if got := r.cat("one more"); got != "bytes" {
		t.Errorf("the file has %q", got)
	}
}

// Files that are emptied while a commit has still to read them: it keeps as many open as it may, and has the others' bytes.
func TestOpenFilesTakenByCommit(t *testing.T) {
	const many = 3 * MinOpenFiles
	_, r, _, dir := sharing(t)
	ids := r.writeMany(many)
	_, err := r.b.commit(r.ctx, r.c, func() {
		for _, id := range ids {
			r.truncate(id, 0)
		}
		r.write(ids[0], 0, "new")
		if n := openBelow(t, dir); n > MinOpenFiles {
			t.Errorf("%d files are open, more than %d", n, MinOpenFiles)
		}
	})
	r.ok(err)
	if got := r.cat("file0"); got != "new" {
		t.Errorf("an emptied file has %q", got)
	}
	r.reset()
	r.readMany(many)
}

// There are so many working copies at a time as leave some backing files; the next says what to do.
func TestOpenFilesOfCopies(t *testing.T) {
	files, _, _, dir := sharing(t)
	var open []*Copy
	var err error
	for i := range MinOpenFiles {
		var c *Copy
		if c, err = Create(t.Context(), filepath.Join(dir, fmt.Sprint(i)), Config{Source: newMemory(), Files: files}, object.ID{}, nil); err != nil {
			break
		}
		open = append(open, c)
	}
	if err == nil || !strings.Contains(err.Error(), "limit on open files") {
		t.Errorf("after %d working copies: %v", len(open), err)
	}
	if want := (MinOpenFiles-keepEvictable)/copyFiles - 2; len(open) != want {
		t.Errorf("%d working copies, want %d", len(open), want)
	}
	for _, c := range open {
		if err := c.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// BenchmarkReadOpenFile is a read of a page of files that are open, which every operation on bytes is like.
func BenchmarkReadOpenFile(b *testing.B) {
	c, err := Create(b.Context(), filepath.Join(b.TempDir(), "copy"), Config{Source: newMemory()}, object.ID{}, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close(b.Context())
	var ids [64]NodeID
	page := make([]byte, BlockSize)
	for i := range ids {
		if ids[i], _, err = c.Make(b.Context(), RootID, fmt.Sprint(i), NewInode{Mode: object.ModeRegular | 0o600}); err != nil {
			b.Fatal(err)
		}
		if _, err = c.Write(b.Context(), ids[i], [][]byte{page}, 0, false, false); err != nil {
			b.Fatal(err)
		}
	}
	b.RunParallel(func(pb *testing.PB) {
		p := make([]byte, BlockSize)
		for i := 0; pb.Next(); i++ {
			if _, err := c.Read(b.Context(), ids[i%len(ids)], p, 0); err != nil {
				b.Error(err)
			}
		}
	})
}
