package fusefs

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dm/workcopy"
)

// The tests' ring is written by processes of their own, as the self-test's is, and has truncated files in it as well:
// such a file's size tells the number of the truncation, and there are dirty pages in it when it is truncated.
const (
	wideWritten   = 5
	wideTruncated = 3
	wideFiles     = wideWritten + wideTruncated
	wideModulus   = 1 << 16
	wideBase      = 8 << 10 // size of number 0
)

// helpers are what the test's executable does in place of tests when it is started as a process that uses a mount.
func helpers() map[string]func(args []string) error {
	return map[string]func([]string) error{
		"write-ring":    func(a []string) error { return writeRing(a[0], a[1]) },
		"serve":         func(a []string) error { return serve(a[0], a[1], a[2]) },
		"hold":          func(a []string) error { return hold(a[0], a[1]) },
		"stat":          func(a []string) error { return stat(a[0]) },
		"poll":          func(a []string) error { return poll(a[0]) },
		"make-many":     func(a []string) error { return makeMany(a[0], a[1]) },
		"write-many":    func(a []string) error { return writeMany(a[0]) },
		"write-once":    func(a []string) error { return writeOnce(a[0], a[1]) },
		"write-records": func(a []string) error { return writeRecords(a[0]) },
		"sync-loop":     func(a []string) error { return syncLoop(a[0]) },
		"deed":          func(a []string) error { return doDeed(a[0], a[1]) },
	}
}

// helper starts the test's executable as a helper, and returns a function that ends it and returns its error.
func helper(t testing.TB, args ...string) (stop func() error) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", append([]string{"helper"}, args...)...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	cmd.Stderr = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	stop = func() error {
		if ended {
			return nil
		}
		ended = true
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			return fmt.Errorf("%s: %w: %s", args[0], err, out.String())
		}
		return nil
	}
	t.Cleanup(func() { stop() })
	return stop
}

// untilTold returns a function that says whether the helper's parent is done with it.
func untilTold() func() bool {
	told := make(chan struct{})
	go func() {
		os.Stdin.Read(make([]byte, 1))
		close(told)
	}()
	return func() bool {
		select {
		case <-told:
			return true
		default:
			return false
		}
	}
}

func writeRing(dir, kind string) error {
	told := untilTold()
	var fds []int
	for i := range wideFiles {
		fd, err := unix.Open(filepath.Join(dir, strconv.Itoa(i)), unix.O_RDWR|unix.O_CREAT, 0o600)
		if err != nil {
			return err
		}
		fds = append(fds, fd)
	}
	files := ringOf(kind)
	block := make([]byte, ringBlock)
	for n := uint64(1); !told(); n++ {
		file := int((n - 1) % files)
		fillRing(block, n-1)
		if file < wideWritten {
			if _, err := unix.Pwrite(fds[file], block, int64(n/files%ringBlocks*ringBlock)); err != nil {
				return fmt.Errorf("write %d: %w", n, err)
			}
			continue
		}
		if _, err := unix.Pwrite(fds[file], block, 0); err != nil {
			return fmt.Errorf("write before truncation %d: %w", n, err)
		}
		if err := unix.Ftruncate(fds[file], int64(n%wideModulus)+wideBase); err != nil {
			return fmt.Errorf("truncation %d: %w", n, err)
		}
	}
	return nil
}

// ringOf returns how many files a ring of a kind goes round.
func ringOf(kind string) uint64 {
	if kind == "write" {
		return wideWritten
	}
	return wideFiles
}

// syncLoop has the kernel write back by itself, all the time.
func syncLoop(dir string) error {
	told := untilTold()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	for !told() {
		if err := unix.Syncfs(fd); err != nil {
			return err
		}
		time.Sleep(3 * time.Millisecond)
	}
	return nil
}

func checkWide(content [][]byte, files uint64) error {
	content = content[:files]
	last := uint64(0)
	whole := make([]uint64, files)
	for i, b := range content[:wideWritten] {
		for off := 0; off+ringBlock <= len(b); off += ringBlock {
			low, high := ringRange(b[off : off+ringBlock])
			last = max(last, high)
			whole[i] = max(whole[i], low)
		}
	}
	if last < files {
		return nil
	}
	near := last
	for i, b := range content[wideWritten:] {
		if len(b) < wideBase {
			continue
		}
		// The number next to that of the last write that is congruent to the size.
		n := near - (near-uint64(len(b)-wideBase))%wideModulus
		if near-n > wideModulus/2 {
			n += wideModulus
		}
		whole[wideWritten+i] = n
		last = max(last, n)
	}
	return checkOrder(last, whole)
}

type cutStats struct {
	pauses     []time.Duration
	violations int
	first      error
}

// cuttable is a volume that can be cut: the content of a ring's files at one instant, and how long the gate was closed.
type cuttable interface {
	Volume
	cut(ctx context.Context) (content [][]byte, pause time.Duration, err error)
}

// cuttableCopy is a working copy as one.
type cuttableCopy struct{ *workcopy.Copy }

func (c cuttableCopy) cut(ctx context.Context) ([][]byte, time.Duration, error) {
	s, err := c.Freeze(ctx)
	if err != nil {
		return nil, 0, err
	}
	defer s.Abort()
	content := make([][]byte, wideFiles)
	for _, f := range s.Files() {
		i, err := strconv.Atoi(filepath.Base(f.Path()))
		if err != nil {
			return nil, 0, err
		}
		content[i] = make([]byte, f.Size())
		if _, err := f.ReadAt(content[i], 0); err != nil {
			return nil, 0, err
		}
	}
	return content, s.Pause(), nil
}

// cutRing cuts a volume many times while a ring is written in it.
func cutRing(t *testing.T, v cuttable, opts Options, kind string, cuts int, prepare func(*Mount)) (s cutStats) {
	t.Helper()
	m := mountTest(t, v, opts)
	prepare(m)
	stop := helper(t, "write-ring", m.Dir(), kind)
	stopSync := helper(t, "sync-loop", m.Dir())
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for range cuts {
		time.Sleep(time.Millisecond)
		content, pause, err := v.cut(ctx)
		if err != nil {
			t.Fatal(err)
		}
		s.pauses = append(s.pauses, pause)
		if err := checkWide(content, ringOf(kind)); err != nil {
			s.violations++
			if s.first == nil {
				s.first = err
			}
		}
	}
	for _, stop := range []func() error{stop, stopSync} {
		if err := stop(); err != nil {
			t.Error(err)
		}
	}
	content, _, err := v.cut(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if n := binary.LittleEndian.Uint64(content[0]); n < uint64(cuts) {
		t.Errorf("only some %d writes in %d cuts", n, cuts)
	}
	slices.Sort(s.pauses)
	t.Logf("%v, %s: %d violations in %d cuts; pause median %v, p99 %v, max %v; %d writes",
		opts.Cache, kind, s.violations, cuts, s.pauses[cuts/2], s.pauses[cuts*99/100], s.pauses[cuts-1],
		binary.LittleEndian.Uint64(content[0]))
	return s
}

// poll polls a file that go-fuse has in the root of each mount for this purpose.
func poll(dir string) error {
	fd, err := unix.Open(filepath.Join(dir, ".go-fuse-epoll-hack"), unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return err
}

func mountTest(t testing.TB, v Volume, opts Options) *Mount {
	t.Helper()
	m, err := New(t.Context(), v, t.TempDir(), opts)
	if err != nil {
		t.Fatal(err)
	}
	// The tests' own process uses the mount it serves. Go's runtime asks whether each file it opens can be polled, and
	// nothing else of it runs meanwhile; another process has the kernel learn first that files here cannot.
	if out, err := exec.Command("/proc/self/exe", "helper", "poll", m.Dir()).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := m.Unmount(ctx); err != nil {
			t.Error(err)
			m.Abort()
			m.Lazy()
			<-m.Done()
		}
	})
	return m
}

func TestCutHoldsOneInstant(t *testing.T) {
	for _, cache := range []Cache{Writeback, Through} {
		for _, kind := range []string{"write", "truncate"} {
			t.Run(cache.String()+"/"+kind, func(t *testing.T) {
				opts := Options{Cache: cache, Flusher: newTestFlusher(t)}
				s := cutRing(t, cuttableCopy{newCopy(t)}, opts, kind, 500, func(*Mount) {})
				if s.violations > 0 {
					t.Errorf("%d violations, the first: %v", s.violations, s.first)
				}
			})
		}
	}
}

// Without calling leases back behind the gate, the test above finds that cuts are wrong.
func TestCutNeedsRecall(t *testing.T) {
	opts := Options{Cache: Writeback, Flusher: newTestFlusher(t)}
	s := cutRing(t, newProbe(wideFiles, ringBlocks*ringBlock), opts, "write", 500, func(m *Mount) { m.cutter.skipRecall.Store(true) })
	if s.violations == 0 {
		t.Error("no violations found")
	}
}

// Where no leases are given, all questions are asked and cuts are right as well.
func TestCutWithoutLeases(t *testing.T) {
	opts := Options{Cache: Writeback, Flusher: newTestFlusher(t)}
	s := cutRing(t, newProbe(wideFiles, ringBlocks*ringBlock), opts, "truncate", 200, func(m *Mount) { m.leases.max.Store(0) })
	if s.violations > 0 {
		t.Errorf("%d violations, the first: %v", s.violations, s.first)
	}
}

// A file that was merely looked at has no lease; its first write is in a cut all the same if what was written after it is.
// Without the question that the kernel asks before a first write, cuts would be wrong.
func TestCutOfFilesLookedAt(t *testing.T) {
	const files = 4000
	for _, skip := range []bool{false, true} {
		v := newProbe(1+files, 4096)
		m := mountTest(t, v, Options{Cache: Writeback, Flusher: newTestFlusher(t)})
		if skip {
			m.leases.skipAsked.Store(3) // node of the second file
		}
		stop := helper(t, "write-once", m.Dir(), strconv.Itoa(files))
		var last uint64
		cuts, wrong := 0, 0
		for deadline := time.Now().Add(20 * time.Second); last < files && time.Now().Before(deadline); cuts++ {
			content, _, err := v.cut(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if last = number(content[0]); slices.ContainsFunc(content[1:1+last], func(b []byte) bool { return number(b) == 0 }) {
				wrong++
			}
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		t.Logf("without the question %v: %d of %d cuts wrong", skip, wrong, cuts)
		if last != files || cuts < 20 || skip != (wrong > 0) {
			t.Errorf("without the question %v: %d of %d cuts wrong, %d files written", skip, wrong, cuts, last)
		}
	}
}

func number(block []byte) uint64 {
	if len(block) < 8 {
		return 0
	}
	return binary.LittleEndian.Uint64(block)
}

// writeOnce looks at all files but the first and then writes once to each, and each time its number to the first.
func writeOnce(dir, count string) error {
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	for i := range n {
		if _, err := os.Lstat(filepath.Join(dir, strconv.Itoa(i+1))); err != nil {
			return err
		}
	}
	first, err := os.OpenFile(filepath.Join(dir, "0"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer first.Close()
	block := make([]byte, 8)
	for i := range n {
		f, err := os.OpenFile(filepath.Join(dir, strconv.Itoa(i+1)), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer f.Close() // closing writes a file out
		binary.LittleEndian.PutUint64(block, uint64(i+1))
		for _, f := range []*os.File{f, first} {
			if _, err := f.WriteAt(block, 0); err != nil {
				return err
			}
		}
	}
	return nil
}

// Of many files that were just made, and looked at, hardly one has to be visited behind the gate; and what was written to
// them is in the cut.
func TestCutOfManyFiles(t *testing.T) {
	const files = manyHot + 500
	v := newCopy(t)
	m := mountTest(t, v, Options{Cache: Writeback, Flusher: newTestFlusher(t)})
	if out, err := exec.Command("/proc/self/exe", "helper", "make-many", m.Dir(), strconv.Itoa(files)).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if n := m.leases.heat(); n <= manyHot {
		t.Fatalf("%d files may be dirty: the test makes too few", n)
	}
	s, err := v.Freeze(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Abort()
	if n := m.leases.heat(); n > files/10 {
		t.Errorf("%d of %d files were visited behind the gate", n, files)
	}
	if n := len(s.Files()); n != files {
		t.Errorf("%d files in the cut, %d were written", n, files)
	}
}

func makeMany(dir, count string) error {
	n, err := strconv.Atoi(count)
	for i := 0; i < n && err == nil; i++ {
		name := filepath.Join(dir, "sub", strconv.Itoa(i))
		if err = os.MkdirAll(filepath.Dir(name), 0o755); err == nil {
			err = os.WriteFile(name, []byte(count), 0o644)
		}
		if err == nil {
			_, err = os.Stat(name)
		}
	}
	return err
}
