package fusefs

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"dm/workcopy"
)

// flusherFD is the descriptor at which the child finds its connection.
const flusherFD = 3

// How many threads of the child work on mounts. Those for cuts must not wait behind those that may wait for a gate.
const (
	cutThreads  = 8
	slowThreads = 4
)

// RunFlusher is the child's main function. It returns when the server is gone.
func RunFlusher() error {
	conn := os.NewFile(flusherFD, "server")
	if conn == nil {
		return fmt.Errorf("%s is started by the server only", FlusherArg)
	}
	unix.CloseOnExec(flusherFD)
	c := &child{conn: conn, cuts: make(chan func()), slow: make(chan func()), mounts: map[uint32]*childMount{}}
	c.kept.Store(mayKeep())
	var hello []byte
	for range cutThreads {
		hello = binary.LittleEndian.AppendUint32(hello, startThread(c.cuts))
	}
	for range slowThreads {
		hello = binary.LittleEndian.AppendUint32(hello, startThread(c.slow))
	}
	if err := writeFrame(conn, hello); err != nil {
		return err
	}
	r := bufio.NewReaderSize(conn, 64<<10)
	for {
		frame, err := readFrame(r)
		if err != nil || len(frame) < requestHead {
			return nil // the server is gone; so are its mounts
		}
		go c.serve(frame)
	}
}

// startThread starts a thread that works off jobs, and returns its number, by which the server knows its requests.
func startThread(jobs <-chan func()) uint32 {
	tid := make(chan int)
	go func() {
		runtime.LockOSThread()
		tid <- unix.Gettid()
		for job := range jobs {
			job()
		}
	}()
	return uint32(<-tid)
}

// child is the flusher, seen from itself.
type child struct {
	conn *os.File
	wmu  sync.Mutex
	cuts chan func()
	slow chan func()
	kept atomic.Int64 // how many more files may be kept open

	mu     sync.Mutex
	mounts map[uint32]*childMount
}

// childMount is a mount's directory and the files kept open.
type childMount struct {
	fd      int
	users   sync.WaitGroup // of fd
	stopped atomic.Bool    // the ring of a self-test

	mu   sync.Mutex
	kept *keptFiles
}

// keptFiles are files kept open from the first step of a cut to its end. Who flushes them holds a reference, so that a
// release does not close what is in use.
type keptFiles struct {
	room *atomic.Int64 // for more of them

	mu    sync.Mutex
	files map[workcopy.NodeID]int
	users int
	over  bool
}

func (c *child) serve(frame []byte) {
	seq, op, id, payload := frame[:8], frame[8], binary.LittleEndian.Uint32(frame[9:]), frame[requestHead:]
	reply, err := c.do(op, id, payload)
	errno, expected := errnoOf(err)
	if err != nil && !expected {
		errno = unix.EIO
	}
	out := binary.LittleEndian.AppendUint32(append([]byte(nil), seq...), uint32(errno))
	if err != nil {
		reply = []byte(err.Error())
	}
	c.wmu.Lock()
	defer c.wmu.Unlock()
	// An error means that the server is gone, which the reader will see.
	_ = writeFrame(c.conn, append(out, reply...))
}

func (c *child) do(op byte, id uint32, payload []byte) ([]byte, error) {
	if op == opAttach {
		return nil, c.attach(id, payload)
	}
	c.mu.Lock()
	m := c.mounts[id]
	if m == nil {
		c.mu.Unlock()
		if op == opDetach || op == opRelease {
			return nil, nil
		}
		return nil, fmt.Errorf("mount %d: %w", id, unix.EBADF)
	}
	if op == opDetach {
		delete(c.mounts, id)
		c.mu.Unlock()
		m.release(c.slow)
		m.users.Wait()
		return nil, unix.Close(m.fd)
	}
	m.users.Add(1)
	defer m.users.Done()
	c.mu.Unlock()
	switch {
	case op == opRelease:
		m.release(c.slow)
		return nil, nil
	case op == opRing:
		return c.ring(m, payload)
	case op == opStopRing:
		m.stopped.Store(true)
		return nil, nil
	case op == opFlush && len(payload) >= 1:
		nodes := make([]workcopy.NodeID, 0, len(payload)/8)
		for p := payload[1:]; len(p) >= 8; p = p[8:] {
			nodes = append(nodes, workcopy.NodeID(binary.LittleEndian.Uint64(p)))
		}
		return c.flush(m, flushKind(payload[0]), nodes)
	}
	return nil, fmt.Errorf("operation %d: %w", op, unix.EINVAL)
}

// on runs a job on one of the threads whose numbers the server knows.
func on(threads chan<- func(), job func() error) (err error) {
	done := make(chan struct{})
	threads <- func() {
		defer close(done)
		err = job()
	}
	<-done
	return err
}

func (c *child) attach(id uint32, payload []byte) error {
	if len(payload) < 4 {
		return unix.EINVAL
	}
	dev, path := binary.LittleEndian.Uint32(payload), string(payload[4:])
	return on(c.slow, func() error {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open: %w", err)
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || unix.Minor(st.Dev) != dev {
			unix.Close(fd)
			return fmt.Errorf("something else is mounted there: %w", unix.ENODEV)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.mounts[id] != nil {
			return unix.Close(fd)
		}
		c.mounts[id] = &childMount{fd: fd, kept: newKept(&c.kept)}
		return nil
	})
}

// release closes the files kept open, as soon as nobody uses them.
func (m *childMount) release(slow chan<- func()) {
	m.mu.Lock()
	old := m.kept
	m.kept = newKept(old.room)
	m.mu.Unlock()
	old.mu.Lock()
	old.over = true
	idle := old.users == 0
	old.mu.Unlock()
	if idle {
		old.close(slow)
	}
}

func (m *childMount) use() *keptFiles {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.kept.mu.Lock()
	defer m.kept.mu.Unlock()
	m.kept.users++
	return m.kept
}

func (k *keptFiles) unuse(slow chan<- func()) {
	k.mu.Lock()
	k.users--
	last := k.over && k.users == 0
	k.mu.Unlock()
	if last {
		k.close(slow)
	}
}

// close closes all files. The kernel writes a file out when it is closed.
func (k *keptFiles) close(slow chan<- func()) {
	_ = on(slow, func() error {
		for _, fd := range k.files {
			unix.Close(fd)
		}
		k.room.Add(int64(len(k.files)))
		return nil
	})
}

// flush does something with each of many files, on all threads. It returns the nodes that the kernel does not have.
func (c *child) flush(m *childMount, how flushKind, nodes []workcopy.NodeID) ([]byte, error) {
	threads, n := c.cuts, cutThreads
	if how == flushSettle || how == flushAlone {
		threads, n = c.slow, slowThreads-1
	}
	kept := m.use()
	defer kept.unuse(c.slow)
	var (
		next   atomic.Int64
		wg     sync.WaitGroup
		mu     sync.Mutex
		gone   []byte
		failed error
	)
	for range min(n, (len(nodes)+15)/16) {
		wg.Add(1)
		threads <- func() {
			defer wg.Done()
			for {
				i := next.Add(1) - 1
				if i >= int64(len(nodes)) {
					return
				}
				err := kept.flushFile(m.fd, how, nodes[i])
				if err == nil {
					continue
				}
				mu.Lock()
				if err == unix.ESTALE {
					gone = binary.LittleEndian.AppendUint64(gone, uint64(nodes[i]))
				} else if failed == nil {
					failed = fmt.Errorf("flush node %d: %w", nodes[i], err)
				}
				mu.Unlock()
			}
		}
	}
	wg.Wait()
	return gone, failed
}

// handleType is how FUSE encodes a file handle: node id, high half first, and generation (FILEID_INO64_GEN).
const handleType = 0x81

// openNode opens an inode that the kernel has in its cache; ESTALE says that it has not.
func openNode(mount int, id workcopy.NodeID) (int, error) {
	b := make([]byte, 12)
	binary.NativeEndian.PutUint32(b, uint32(id>>32))
	binary.NativeEndian.PutUint32(b[4:], uint32(id))
	// not to be held up by somebody's lease on the file
	return unix.OpenByHandleAt(mount, unix.NewFileHandle(handleType, b), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK)
}

// maxKept bounds the files kept open; the others of a cut are opened and closed each time, and the kernel then asks for their
// attributes each time.
const maxKept = 1 << 16

// mayKeep returns how many files may be kept open. The child has the limit of open files that the server has raised.
func mayKeep() int64 {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0
	}
	others := min(limit.Cur/2, 1<<10) // directories of mounts, and what its threads have open at the moment
	return int64(min(limit.Cur-others, maxKept))
}

func newKept(room *atomic.Int64) *keptFiles {
	return &keptFiles{room: room, files: map[workcopy.NodeID]int{}}
}

func (k *keptFiles) keep(id workcopy.NodeID, fd int) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, have := k.files[id]; have {
		return false
	}
	if k.room.Add(-1) < 0 {
		k.room.Add(1)
		return false
	}
	k.files[id] = fd
	return true
}

func (k *keptFiles) flushFile(mount int, how flushKind, id workcopy.NodeID) error {
	k.mu.Lock()
	fd, have := k.files[id]
	k.mu.Unlock()
	if !have {
		var err error
		if fd, err = openNode(mount, id); err != nil {
			return err
		}
		if how == flushAlone || how == flushSettle || !k.keep(id, fd) {
			defer unix.Close(fd)
		}
	}
	switch how {
	case flushOpen:
		return nil
	case flushTimes:
		// close(2) is the one call that has the kernel hand over data and times and asks nothing else.
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return err
		}
		return unix.Close(dup)
	case flushSettle:
		return unix.Fdatasync(fd)
	}
	return unix.SyncFileRange(fd, 0, 0,
		unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
}
