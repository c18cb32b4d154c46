package fusefs

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"dm/internal/errs"
	"dm/workcopy"
)

// FlusherArg is the hidden first argument with which the server starts its own executable as its flusher. The program's
// main must then call RunFlusher, before anything else, and exit.
const FlusherArg = "fuse-flusher"

// Flusher is a child process that has the kernel write out its cache of mounted volumes. One serves all mounts of a
// server. It works on open directories of the mounts and on inodes opened by handle, and keeps nothing of its own: when
// it dies it is started again. When the server dies it ends, and holds no mount.
//
// Safe for concurrent use.
type Flusher struct {
	log    *slog.Logger
	nextID atomic.Uint32

	mu     sync.Mutex
	mounts map[uint32]flusherMount
	child  *childConn // nil: not running
	closed bool

	threads atomic.Pointer[[]uint32] // of the running child
}

type flusherMount struct {
	path     string
	dev      uint32
	detached bool
}

// NewFlusher returns a flusher; the child starts with the first mount.
func NewFlusher(log *slog.Logger) *Flusher {
	if log == nil {
		log = slog.Default()
	}
	return &Flusher{log: log, mounts: map[uint32]flusherMount{}}
}

// Close ends the child and waits for it. Mounts that use it must be unmounted first.
func (f *Flusher) Close() {
	f.mu.Lock()
	f.closed = true
	child := f.child
	f.child = nil
	f.mu.Unlock()
	if child != nil {
		child.close()
	}
}

func (f *Flusher) isThread(tid uint32) bool {
	t := f.threads.Load()
	return t != nil && slices.Contains(*t, tid)
}

// running returns the child, started if need be, that knows all mounts.
func (f *Flusher) running(ctx context.Context) (*childConn, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, errs.New(errs.Internal, "the flusher is closed")
	}
	if f.child != nil && f.child.alive() {
		return f.child, nil
	}
	child, err := f.startChild()
	if err != nil {
		return nil, fmt.Errorf("start the flusher: %w", err)
	}
	for id, m := range f.mounts {
		if m.detached {
			continue
		}
		// One mount that does not answer, or is not there any more, must not stop the commits of the others.
		actx, cancel := context.WithTimeout(ctx, flushWait)
		if _, err := child.call(actx, opAttach, id, attachPayload(m)); err != nil {
			f.log.Warn("the flusher cannot open a mount", "mount", m.path, "err", err)
		}
		cancel()
	}
	f.child = child
	return child, nil
}

// call asks the child, and once more a new one if it died over it.
func (f *Flusher) call(ctx context.Context, op byte, mount uint32, payload []byte) ([]byte, error) {
	for try := 0; ; try++ {
		child, err := f.running(ctx)
		if err != nil {
			return nil, err
		}
		reply, err := child.call(ctx, op, mount, payload)
		if err == nil || try > 0 || child.alive() {
			return reply, err
		}
		f.log.Warn("the flusher died and is started again", "err", err)
	}
}

func attachPayload(m flusherMount) []byte {
	return append(binary.LittleEndian.AppendUint32(nil, m.dev), m.path...)
}

func (f *Flusher) attach(ctx context.Context, path string, dev uint32) (id uint32, err error) {
	id = f.nextID.Add(1)
	m := flusherMount{path: path, dev: dev}
	if _, err := f.call(ctx, opAttach, id, attachPayload(m)); err != nil {
		return 0, fmt.Errorf("have the flusher open %s: %w", path, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mounts[id] = m
	return id, nil
}

// detach has the child close all it has of a mount.
func (f *Flusher) detach(ctx context.Context, id uint32) {
	f.mu.Lock()
	m := f.mounts[id]
	m.detached = true
	f.mounts[id] = m
	child := f.child
	f.mu.Unlock()
	if child == nil || !child.alive() {
		return
	}
	if _, err := child.call(ctx, opDetach, id, nil); err != nil && child.alive() {
		f.log.Warn("the flusher does not let go of a mount", "mount", m.path, "err", err)
	}
}

func (f *Flusher) reattach(ctx context.Context, id uint32) error {
	f.mu.Lock()
	m := f.mounts[id]
	m.detached = false
	f.mounts[id] = m
	f.mu.Unlock()
	_, err := f.call(ctx, opAttach, id, attachPayload(m))
	return err
}

func (f *Flusher) remove(id uint32) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	f.detach(ctx, id)
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.mounts, id)
}

// flush has the child flush nodes of a mount. It returns those that the kernel does not have any more.
func (f *Flusher) flush(ctx context.Context, id uint32, how flushKind, nodes []workcopy.NodeID) (gone []workcopy.NodeID, err error) {
	for part := range slices.Chunk(nodes, maxFlush) {
		payload := make([]byte, 0, 1+8*len(part))
		payload = append(payload, byte(how))
		for _, n := range part {
			payload = binary.LittleEndian.AppendUint64(payload, uint64(n))
		}
		reply, err := f.call(ctx, opFlush, id, payload)
		if err != nil {
			return gone, err
		}
		for ; len(reply) >= 8; reply = reply[8:] {
			gone = append(gone, workcopy.NodeID(binary.LittleEndian.Uint64(reply)))
		}
	}
	return gone, nil
}

// release has the child close the files it keeps open since a cut.
func (f *Flusher) release(ctx context.Context, id uint32) error {
	_, err := f.call(ctx, opRelease, id, nil)
	return err
}

// childConn is a running child, seen from the server.
type childConn struct {
	cmd     *exec.Cmd
	conn    *net.UnixConn
	threads []uint32 // that touch mounts
	dead    chan struct{}

	wmu     sync.Mutex
	mu      sync.Mutex
	seq     uint64
	waiting map[uint64]chan childReply
}

type childReply struct {
	payload []byte
	err     error
}

// childError is an error of the child, which says itself what its number is.
type childError struct {
	text  string
	errno syscall.Errno
}

// Error says what failed.
func (e *childError) Error() string { return e.text }

// Unwrap returns the number.
func (e *childError) Unwrap() error { return e.errno }

// startChild starts the child. Its threads are known from before it does anything until it is gone.
func (f *Flusher) startChild() (*childConn, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "flusher"), os.NewFile(uintptr(pair[1]), "server")
	defer ours.Close()
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("/proc/self/exe", FlusherArg)
	cmd.Args[0] = "dm"
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt from the terminal is the server's business
	if err := cmd.Start(); err != nil {
		conn.Close()
		return nil, err
	}
	c := &childConn{cmd: cmd, conn: conn.(*net.UnixConn), dead: make(chan struct{}), waiting: map[uint64]chan childReply{}}
	r := bufio.NewReader(conn)
	hello, err := readFrame(r)
	if err != nil {
		conn.Close()
		cmd.Wait()
		return nil, fmt.Errorf("it ends at once: %w", err)
	}
	for ; len(hello) >= 4; hello = hello[4:] {
		c.threads = append(c.threads, binary.LittleEndian.Uint32(hello))
	}
	f.threads.Store(&c.threads)
	go f.receive(c, r)
	return c, nil
}

func (c *childConn) alive() bool {
	select {
	case <-c.dead:
		return false
	default:
		return true
	}
}

// close ends the child: it exits when its connection does.
func (c *childConn) close() {
	c.conn.Close()
	<-c.dead
}

// receive hands out replies until the child is gone.
func (f *Flusher) receive(c *childConn, r *bufio.Reader) {
	for {
		frame, err := readFrame(r)
		if err != nil || len(frame) < 12 {
			break
		}
		seq, errno := binary.LittleEndian.Uint64(frame), binary.LittleEndian.Uint32(frame[8:])
		c.mu.Lock()
		ch := c.waiting[seq]
		delete(c.waiting, seq)
		c.mu.Unlock()
		if ch == nil {
			continue // the caller gave up
		}
		reply := childReply{payload: frame[12:]}
		if errno != 0 {
			reply.err = &childError{string(frame[12:]), syscall.Errno(errno)}
		}
		ch <- reply
	}
	c.conn.Close()
	// The numbers are free for other processes as soon as it has been waited for.
	f.threads.CompareAndSwap(&c.threads, nil)
	if err := c.cmd.Wait(); err != nil {
		f.log.Warn("the flusher ended", "err", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.dead)
}

func (c *childConn) call(ctx context.Context, op byte, mount uint32, payload []byte) ([]byte, error) {
	ch := make(chan childReply, 1)
	c.mu.Lock()
	c.seq++
	seq := c.seq
	c.waiting[seq] = ch
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.waiting, seq)
	}()

	frame := binary.LittleEndian.AppendUint64(make([]byte, 0, requestHead+len(payload)), seq)
	frame = append(frame, op)
	frame = binary.LittleEndian.AppendUint32(frame, mount)
	frame = append(frame, payload...)
	c.wmu.Lock()
	err := writeFrame(c.conn, frame)
	c.wmu.Unlock()
	if err != nil {
		c.conn.Close()
		<-c.dead
		return nil, fmt.Errorf("ask the flusher: %w", err)
	}
	select {
	case r := <-ch:
		return r.payload, r.err
	case <-c.dead:
		return nil, errs.New(errs.Internal, "the flusher died")
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for the flusher: %w", ctx.Err())
	}
}

// The protocol between server and flusher, over a stream socket. A frame is its length as 32 bits, little endian as all
// numbers, and that many bytes. The child begins with a frame of the numbers of its threads. Then
//
//	request  sequence 64, operation 8, mount 32, payload
//	reply    sequence 64, errno 32, payload; with an errno, the payload says what failed
const (
	requestHead = 8 + 1 + 4
	maxFrame    = 16 << 20
	maxFlush    = 1 << 20 // nodes in a request
)

// The operations.
const (
	opAttach   byte = iota + 1 // device 32, path: open the mount's directory
	opDetach                   // close all of it
	opFlush                    // kind 8, nodes 64 each; the reply: the nodes that the kernel does not have
	opRelease                  // close the files kept open
	opRing                     // nanoseconds 64: the self-test's writer; the reply: how many writes
	opStopRing                 // end it
)

// flushKind says what to do with the files of a flush.
type flushKind byte

const (
	flushOpen   flushKind = iota + 1 // open and keep them
	flushTimes                       // write out data and times; keep them open
	flushData                        // write out data; keep them open
	flushAlone                       // write out data
	flushSettle                      // write out data and times, under the lock that a write(2) takes
)

func writeFrame(w io.Writer, frame []byte) error {
	head := binary.LittleEndian.AppendUint32(make([]byte, 0, 4+len(frame)), uint32(len(frame)))
	_, err := w.Write(append(head, frame...))
	return err
}

func readFrame(r io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint32(head[:])
	if n > maxFrame {
		return nil, fmt.Errorf("frame of %d bytes", n)
	}
	frame := make([]byte, n)
	_, err := io.ReadFull(r, frame)
	return frame, err
}
