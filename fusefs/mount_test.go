package fusefs

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dm/internal/errs"
	"dm/workcopy"
)

// recorder notes what the kernel asks of a volume.
type recorder struct {
	Volume
	mu      sync.Mutex
	changes []workcopy.AttrChange
	reads   int
	asked   int
}

func (r *recorder) SetAttr(ctx context.Context, id workcopy.NodeID, ch workcopy.AttrChange) (workcopy.Attr, error) {
	r.mu.Lock()
	r.changes = append(r.changes, ch)
	r.mu.Unlock()
	return r.Volume.SetAttr(ctx, id, ch)
}

func (r *recorder) Read(ctx context.Context, id workcopy.NodeID, p []byte, off int64) (int, error) {
	r.mu.Lock()
	r.reads++
	r.mu.Unlock()
	return r.Volume.Read(ctx, id, p, off)
}

func (r *recorder) GetAttr(ctx context.Context, id workcopy.NodeID) (workcopy.Attr, error) {
	r.mu.Lock()
	r.asked++
	r.mu.Unlock()
	return r.Volume.GetAttr(ctx, id)
}

func (r *recorder) take() (changes []workcopy.AttrChange, reads, asked int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	changes, reads, asked = r.changes, r.reads, r.asked
	r.changes, r.reads, r.asked = nil, 0, 0
	return changes, reads, asked
}

func openTest(t *testing.T, path string, flags int) int {
	t.Helper()
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// The kernel opens by itself, keeps a file's pages from one open to the next, and its attributes.
func TestHandleless(t *testing.T) {
	for _, cache := range []Cache{Writeback, Through} {
		t.Run(cache.String(), func(t *testing.T) {
			r := &recorder{Volume: newCopy(t)}
			m := mountTest(t, r, Options{Cache: cache, Flusher: newTestFlusher(t)})
			path := filepath.Join(m.Dir(), "f")
			if err := os.WriteFile(path, make([]byte, 1<<20), 0o644); err != nil {
				t.Fatal(err)
			}
			if _, err := os.ReadFile(path); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(path); err != nil {
				t.Fatal(err)
			}
			r.take()
			for range 10 {
				if _, err := os.ReadFile(path); err != nil {
					t.Fatal(err)
				}
			}
			// With a writeback cache each close makes the kernel forget how many blocks a file has, which fstat wants.
			allowed := 0
			if cache == Writeback {
				allowed = 10
			}
			if _, reads, asked := r.take(); reads > 0 || asked > allowed {
				t.Errorf("reading a cached file asked for data %d times, for attributes %d times", reads, asked)
			}
		})
	}
}

// Data that is only in the kernel's cache is not in a hole.
func TestSeekDataSeesTheCache(t *testing.T) {
	m := mountTest(t, newCopy(t), Options{Flusher: newTestFlusher(t)})
	path := filepath.Join(m.Dir(), "f")
	fd := openTest(t, path, unix.O_RDWR|unix.O_CREAT)
	if err := unix.Ftruncate(fd, 8<<20); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		at := int64(i%4+1) << 20
		if _, err := unix.Pwrite(fd, []byte{1}, at); err != nil {
			t.Fatal(err)
		}
		if got, err := unix.Seek(fd, at-1<<19, unix.SEEK_DATA); err != nil || got != at {
			t.Fatalf("round %d: the data at %d is found at %d, %v", i, at, got, err)
		}
	}
}

// Times that the kernel hands over late are told from times that a user sets.
func TestLateTimes(t *testing.T) {
	r := &recorder{Volume: newCopy(t)}
	m := mountTest(t, r, Options{Flusher: newTestFlusher(t)})
	path := filepath.Join(m.Dir(), "f")
	fd := openTest(t, path, unix.O_RDWR|unix.O_CREAT)
	if _, err := unix.Pwrite(fd, make([]byte, 8192), 0); err != nil {
		t.Fatal(err)
	}
	r.take()
	if err := m.cutter.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	changes, _, _ := r.take()
	if len(changes) != 1 || !changes[0].Late || changes[0].Mtime == nil || changes[0].Ctime == nil {
		t.Errorf("a flush hands over %+v", changes)
	}
	// by the kernel itself, at close; its clock ticks every 4 ms or so
	time.Sleep(20 * time.Millisecond)
	if _, err := unix.Pwrite(fd, make([]byte, 8192), 0); err != nil {
		t.Fatal(err)
	}
	dup, err := unix.Dup(fd)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(dup)
	changes, _, _ = r.take()
	if len(changes) != 1 || !changes[0].Late {
		t.Errorf("close hands over %+v", changes)
	}
	for _, ts := range [][]unix.Timespec{
		{{Nsec: unix.UTIME_OMIT}, {Sec: 1e9}}, {{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_NOW}}, {{Sec: 1e9}, {Sec: 1e9}},
	} {
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, path, ts, 0); err != nil {
			t.Fatal(err)
		}
		changes, _, _ = r.take()
		if len(changes) != 1 || changes[0].Late || changes[0].Mtime == nil {
			t.Errorf("utimensat %v sets %+v", ts, changes)
		}
	}
}

func TestReadOnly(t *testing.T) {
	m := mountTest(t, newProbe(1, 4096), Options{ReadOnly: true})
	if _, err := unix.Open(filepath.Join(m.Dir(), "0"), unix.O_RDWR, 0); err != unix.EROFS {
		t.Errorf("open for writing: %v", err)
	}
	if err := os.Mkdir(filepath.Join(m.Dir(), "x"), 0o755); !strings.Contains(fmt.Sprint(err), "read-only") {
		t.Errorf("mkdir: %v", err)
	}
	if _, err := os.ReadFile(filepath.Join(m.Dir(), "0")); err != nil {
		t.Error(err)
	}
}

func TestWritebackNeedsFlusher(t *testing.T) {
	if _, err := New(t.Context(), newProbe(1, 4096), t.TempDir(), Options{}); errs.KindOf(err) != errs.Usage {
		t.Errorf("mount without a flusher: %v", err)
	}
}

// hold keeps a file open, changes into a directory, or maps a file, until told.
func hold(how, path string) error {
	told := untilTold()
	switch how {
	case "cwd":
		if err := os.Chdir(path); err != nil {
			return err
		}
	case "open", "maps":
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT, 0o644)
		if err != nil {
			return err
		}
		if how == "maps" {
			if err := unix.Ftruncate(fd, 4096); err != nil {
				return err
			}
			if _, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ, unix.MAP_SHARED); err != nil {
				return err
			}
			unix.Close(fd)
		}
	}
	fmt.Println("ready")
	for !told() {
		time.Sleep(5 * time.Millisecond)
	}
	return nil
}

func TestUnmountNamesUsers(t *testing.T) {
	f := newTestFlusher(t)
	for _, how := range []string{"cwd", "open", "maps"} {
		t.Run(how, func(t *testing.T) {
			m := mountTest(t, newCopy(t), Options{Flusher: f})
			path := m.Dir()
			if how != "cwd" {
				path = filepath.Join(path, "f")
			}
			h := startHelper(t, "hold", how, path)
			err := m.Unmount(t.Context())
			if errs.KindOf(err) != errs.Conflict || !strings.Contains(fmt.Sprint(err), fmt.Sprintf("pid %d, ", h.Process.Pid)) {
				t.Errorf("unmount while in use by %d: %v", h.Process.Pid, err)
			}
			// It goes on, cuts included.
			if _, err := os.ReadDir(m.Dir()); err != nil {
				t.Error(err)
			}
			if err := m.cutter.Flush(t.Context()); err != nil {
				t.Error(err)
			}
			h.end(t)
			if err := m.Unmount(t.Context()); err != nil {
				t.Error(err)
			}
			if err := m.Unmount(t.Context()); err != nil {
				t.Errorf("unmount twice: %v", err)
			}
		})
	}
}

// started is a helper that is known to be at work.
type started struct {
	*exec.Cmd
	stdin interface{ Close() error }
}

func startHelper(t testing.TB, args ...string) *started {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", append([]string{"helper"}, args...)...)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("helper says %q, %v", line, err)
	}
	return &started{cmd, stdin}
}

func (s *started) end(t testing.TB) {
	t.Helper()
	s.stdin.Close()
	if err := s.Wait(); err != nil {
		t.Error(err)
	}
}

func TestLazy(t *testing.T) {
	m := mountTest(t, newCopy(t), Options{Flusher: newTestFlusher(t)})
	path := filepath.Join(m.Dir(), "f")
	h := startHelper(t, "hold", "open", path)
	if err := m.Lazy(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the mount is still there: %v", err)
	}
	select {
	case <-m.Done():
		t.Error("done while a file is open")
	case <-time.After(50 * time.Millisecond):
	}
	h.end(t)
	select {
	case <-m.Done():
	case <-time.After(5 * time.Second):
		t.Error("not done though nothing is open")
	}
}

// slow is a volume whose GetAttr waits as long as it may.
type slow struct {
	Volume
	waiting chan struct{}
}

func (s *slow) GetAttr(ctx context.Context, id workcopy.NodeID) (workcopy.Attr, error) {
	if id == workcopy.RootID {
		return s.Volume.GetAttr(ctx, id)
	}
	s.waiting <- struct{}{}
	<-ctx.Done()
	return workcopy.Attr{}, ctx.Err()
}

// stat asks for a file's attributes, whatever the kernel holds, with a handler for SIGUSR1.
func stat(path string) error {
	ch := make(chan os.Signal, 10)
	signal.Notify(ch, syscall.SIGUSR1)
	fmt.Println("ready")
	return unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_FORCE_SYNC, unix.STATX_BASIC_STATS, &unix.Statx_t{})
}

// A signal that a program handles does not interrupt a call into the mount; one that kills it does.
func TestOnlyKillInterrupts(t *testing.T) {
	s := &slow{newProbe(1, 4096), make(chan struct{}, 1)}
	m := mountTest(t, s, Options{Flusher: newTestFlusher(t)})
	h := startHelper(t, "stat", filepath.Join(m.Dir(), "0"))
	<-s.waiting
	ended := make(chan error, 1)
	go func() { ended <- h.Wait() }()
	for range 5 {
		h.Process.Signal(syscall.SIGUSR1)
		select {
		case err := <-ended:
			t.Fatalf("a signal interrupted stat: %v", err)
		case <-time.After(3 * killCheck):
		}
	}
	h.Process.Kill()
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Error("a killed process waits on")
	}
}

func (s *started) child(t testing.TB) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", s.Process.Pid, s.Process.Pid))
	all := strings.Fields(string(b))
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", s.Process.Pid))
	for _, task := range tasks {
		b, _ := os.ReadFile(task)
		all = append(all, strings.Fields(string(b))...)
	}
	if len(all) == 0 {
		t.Fatalf("no child of %d: %v", s.Process.Pid, err)
	}
	pid, err := strconv.Atoi(all[0])
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// lives says whether a process runs; who inherits it may not have collected it when it ends.
func lives(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	return err == nil && !strings.HasPrefix(field(b, "State:"), "Z")
}

// When the server is killed the flusher ends, and the mount's place can be used again.
func TestServerKilled(t *testing.T) {
	dir, state := t.TempDir(), t.TempDir()
	h := startHelper(t, "serve", "writeback", state, dir)
	t.Cleanup(func() { CleanStale(dir) })
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	flusher := h.child(t)
	fd := openTest(t, filepath.Join(dir, "f"), unix.O_RDWR)
	h.Process.Kill()
	h.Wait()
	if _, err := unix.Write(fd, []byte("y")); err == nil {
		if err := unix.Fsync(fd); err == nil {
			t.Error("a dead server's mount takes data")
		}
	}
	for end := time.Now().Add(10 * time.Second); lives(flusher); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the flusher lives on")
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "unheard-of")); err == nil || os.IsNotExist(err) {
		t.Error("the stale mount answers")
	}
	if err := CleanStale(dir); err != nil {
		t.Fatal(err)
	}
	if err := CleanStale(dir); err != nil {
		t.Errorf("clean what is clean: %v", err)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 0 {
		t.Errorf("%v, %v", names, err)
	}
}

func TestFlusherIsStartedAgain(t *testing.T) {
	f := newTestFlusher(t)
	r := &recorder{Volume: newCopy(t)}
	m := mountTest(t, r, Options{Flusher: f})
	fd := openTest(t, filepath.Join(m.Dir(), "f"), unix.O_RDWR|unix.O_CREAT)
	for range 3 {
		f.child.cmd.Process.Kill()
		if _, err := unix.Pwrite(fd, make([]byte, 8192), 0); err != nil {
			t.Fatal(err)
		}
		r.take()
		if err := m.cutter.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if changes, _, _ := r.take(); len(changes) != 1 || !changes[0].Late {
			t.Errorf("the new flusher did not flush, or is not recognised: %+v", changes)
		}
	}
}

// A mount that has ended is not broken any more: the number of its connection may be another mount's.
func TestAbortOfAnEndedMount(t *testing.T) {
	f := newTestFlusher(t)
	for try := 0; ; try++ {
		old := mountTest(t, newProbe(1, 4096), Options{Flusher: f})
		if err := old.Unmount(t.Context()); err != nil {
			t.Fatal(err)
		}
		m := mountTest(t, newProbe(1, 4096), Options{Flusher: f})
		if m.dev != old.dev && try < 50 { // some other test's mount has got the number
			continue
		} else if m.dev != old.dev {
			t.Fatal("no number was used again")
		}
		if err := old.Abort(); err != nil {
			t.Error(err)
		}
		startHelper(t, "stat", filepath.Join(m.Dir(), "0")).end(t)
		return
	}
}

// A hung server's mount can be broken.
func TestAbort(t *testing.T) {
	s := &slow{newProbe(1, 4096), make(chan struct{}, 1)}
	m := mountTest(t, s, Options{Flusher: newTestFlusher(t)})
	m.leases.max.Store(0)
	h := startHelper(t, "stat", filepath.Join(m.Dir(), "0"))
	<-s.waiting
	if err := m.Abort(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- h.Wait() }()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("stat succeeded")
		}
	case <-time.After(5 * time.Second):
		t.Error("the process hangs")
	}
	<-m.Done()
	// A commit has nothing to wait for then.
	for _, step := range []func(context.Context) error{m.cutter.Flush, m.cutter.Recall, m.cutter.FlushRecent} {
		if err := step(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if err := m.Unmount(t.Context()); err != nil {
		t.Error(err)
	}
	if mounts, err := mountsAt(m.Dir()); err != nil || len(mounts) > 0 {
		t.Errorf("still mounted: %v, %v", mounts, err)
	}
}
