package main

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// link passes connections on to an address, with a delay each way, and counts bytes. Kernels can do that to a network
// namespace (tc netem), but not each kernel has it. Unlike there, the handshake of TCP and its slow start are those of the
// loopback: so each connection waits for one round trip before its first byte passes.
type link struct {
	to    string
	delay time.Duration // each way
	l     net.Listener
	bytes atomic.Int64 // both ways

	mu    sync.Mutex
	conns map[net.Conn]struct{}
	wg    sync.WaitGroup
}

func newLink(to string, delay time.Duration) (*link, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	k := &link{to: to, delay: delay, l: l, conns: map[net.Conn]struct{}{}}
	k.wg.Go(k.run)
	return k, nil
}

func (k *link) addr() string { return k.l.Addr().String() }

func (k *link) port() string {
	_, port, _ := net.SplitHostPort(k.addr())
	return port
}

// close ends all connections.
func (k *link) close() error {
	err := k.l.Close()
	k.mu.Lock()
	for c := range k.conns {
		c.Close()
	}
	k.mu.Unlock()
	k.wg.Wait()
	return err
}

func (k *link) run() {
	for {
		near, err := k.l.Accept()
		if err != nil {
			return
		}
		k.wg.Go(func() { k.serve(near) })
	}
}

func (k *link) keep(c net.Conn) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.conns[c] = struct{}{}
}

func (k *link) drop(c net.Conn) {
	c.Close()
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.conns, c)
}

func (k *link) serve(near net.Conn) {
	k.keep(near)
	defer k.drop(near)
	time.Sleep(2 * k.delay)
	far, err := net.Dial("tcp", k.to)
	if err != nil {
		return
	}
	k.keep(far)
	defer k.drop(far)
	var both sync.WaitGroup
	both.Go(func() { k.pass(far, near) })
	both.Go(func() { k.pass(near, far) })
	both.Wait()
}

// piece is bytes on their way.
type piece struct {
	data []byte
	due  time.Time
}

// maxFlying is how many pieces are on their way at a time: with 64 KiB each and 25 ms, 640 MB/s.
const maxFlying = 256

func (k *link) pass(to, from net.Conn) {
	flying := make(chan piece, maxFlying)
	var writer sync.WaitGroup
	writer.Go(func() {
		defer closeWrite(to)
		for p := range flying {
			time.Sleep(time.Until(p.due))
			if _, err := to.Write(p.data); err != nil {
				from.Close()
				for range flying {
				}
				return
			}
		}
	})
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			k.bytes.Add(int64(n))
			flying <- piece{bytes.Clone(buf[:n]), time.Now().Add(k.delay)}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				to.Close()
			}
			break
		}
	}
	close(flying)
	writer.Wait()
}

// closeWrite says that nothing more comes, as the other side did.
func closeWrite(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		t.CloseWrite()
	}
}
