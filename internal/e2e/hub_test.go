package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"dm/internal/loopback"
)

// hub is a hub in a process of its own, without TLS, behind a link that counts and can be cut.
type hub struct {
	t     *testing.T
	home  string
	log   string
	addr  string // it listens there, also after a restart
	cmd   *exec.Cmd
	ended chan struct{}
	link  *link
}

// newHub starts a hub with state of its own.
func newHub(t *testing.T) *hub {
	t.Helper()
	base := baseDir(t)
	h := &hub{t: t, home: filepath.Join(base, "hub"), log: filepath.Join(base, "hub.log"), addr: loopback.Address(t)}
	h.start()
	t.Cleanup(func() {
		if h.cmd != nil {
			h.stop()
		}
		if t.Failed() {
			text, _ := os.ReadFile(h.log)
			t.Logf("the hub's log ends with:\n%s", text[max(0, len(text)-3000):])
		}
	})
	h.link = newLink(t, h.addr)
	return h
}

func (h *hub) env() []string {
	env := []string{"DM_HOME=" + h.home}
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "DM_") {
			env = append(env, e)
		}
	}
	return env
}

func (h *hub) start() {
	h.t.Helper()
	log, err := os.OpenFile(h.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		h.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(os.Getenv(binaryEnv), "hub", "serve", "--no-tls", "--listen", h.addr)
	cmd.Env, cmd.Stderr = h.env(), log
	out, err := cmd.StdoutPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	ready := make(chan bool, 1)
	h.ended = make(chan struct{})
	ended := h.ended
	go func() {
		line, _ := bufio.NewReader(out).ReadString('\n')
		ready <- strings.HasPrefix(line, "hub listens on ")
		cmd.Wait()
		close(ended)
	}()
	h.cmd = cmd
	select {
	case ok := <-ready:
		if !ok {
			h.t.Fatal("the hub does not start")
		}
	case <-time.After(30 * time.Second):
		h.t.Fatal("the hub does not come up")
	}
}

func (h *hub) kill() {
	h.t.Helper()
	if err := h.cmd.Process.Kill(); err != nil {
		h.t.Fatal(err)
	}
	<-h.ended
	h.cmd = nil
}

func (h *hub) stop() {
	h.t.Helper()
	h.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-h.ended:
	case <-time.After(40 * time.Second):
		h.t.Error("the hub does not end on SIGTERM")
		h.cmd.Process.Kill()
		<-h.ended
	}
	h.cmd = nil
}

// dm runs a command of the hub's administrator.
func (h *hub) dm(args ...string) string {
	h.t.Helper()
	cmd := exec.Command(os.Getenv(binaryEnv), args...)
	cmd.Env = h.env()
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		h.t.Fatalf("dm %s: %v\n%s", strings.Join(args, " "), err, &stderr)
	}
	return strings.TrimSuffix(out.String(), "\n")
}

// join makes a user at the hub and gives a server the remote "hub" as that user, over the link.
func (h *hub) join(s *server, user string) {
	h.t.Helper()
	key := h.dm("hub", "user", "add", user)
	cmd := s.command(h.t.Context(), "remote", "add", "hub", "http://"+user+"@"+h.link.addr())
	cmd.Stdin = strings.NewReader(key + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		h.t.Fatalf("dm remote add: %v\n%s", err, out)
	}
}

// fsck verifies what is at the hub, by a clone of each dot, which compares every object with its id.
func (h *hub) fsck(users ...*server) {
	h.t.Helper()
	for i, s := range users {
		name := fmt.Sprintf("verify%d", i)
		for line := range strings.Lines(s.dm("remote", "show", "hub", "-H")) {
			dot, _, _ := strings.Cut(line, "\t")
			s.dm("clone", "hub", dot, "--local-name", name)
			s.fsck()
			s.dm("dot", "delete", "-f", name)
		}
	}
}

// link passes connections on to an address. It counts bytes, and can be cut and mended.
type link struct {
	l  net.Listener
	to string

	up, down atomic.Int64 // bytes passed to the hub, and from it

	mu    sync.Mutex
	cut   bool
	conns map[net.Conn]struct{}
	wg    sync.WaitGroup
}

func newLink(t *testing.T, to string) *link {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	k := &link{l: l, to: to, conns: map[net.Conn]struct{}{}}
	k.wg.Go(k.run)
	t.Cleanup(func() {
		l.Close()
		k.setCut(true)
		k.wg.Wait()
	})
	return k
}

func (k *link) addr() string { return k.l.Addr().String() }

func (k *link) run() {
	for {
		c, err := k.l.Accept()
		if err != nil {
			return
		}
		k.wg.Go(func() { k.serve(c) })
	}
}

// keep notes a connection, which a cut closes; false: the link is cut.
func (k *link) keep(c net.Conn) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.cut {
		c.Close()
		return false
	}
	k.conns[c] = struct{}{}
	return true
}

func (k *link) drop(c net.Conn) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.conns, c)
	c.Close()
}

func (k *link) serve(near net.Conn) {
	if !k.keep(near) {
		return
	}
	defer k.drop(near)
	far, err := net.Dial("tcp", k.to)
	if err != nil || !k.keep(far) {
		return
	}
	defer k.drop(far)
	var both sync.WaitGroup
	both.Go(func() { pump(far, near, &k.up) })
	both.Go(func() { pump(near, far, &k.down) })
	both.Wait()
}

func pump(to, from net.Conn, count *atomic.Int64) {
	defer to.Close()
	defer from.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			count.Add(int64(n))
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// setCut cuts the link, with all connections over it, or mends it.
func (k *link) setCut(cut bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.cut = cut
	if cut {
		for c := range k.conns {
			c.Close()
		}
	}
}

// passed returns the bytes that fn causes to pass, in both directions.
func (k *link) passed(fn func()) int64 {
	before := k.up.Load() + k.down.Load()
	fn()
	return k.up.Load() + k.down.Load() - before
}

// traveled is what `dm push|pull|clone --json` prints.
type traveled struct {
	Head    string `json:"head"`
	Moved   int    `json:"moved"`
	Bytes   int64  `json:"bytes"`
	Objects int64  `json:"objects"`
	Commits int64  `json:"commits"`
}

// transfer runs a push, pull or clone that must succeed.
func (s *server) transfer(args ...string) (r traveled) {
	s.t.Helper()
	if err := json.Unmarshal([]byte(s.dm(append(args, "--json")...)), &r); err != nil {
		s.t.Fatal(err)
	}
	return r
}

// begin starts a command that is to be disturbed.
func (s *server) begin(args ...string) *exec.Cmd {
	s.t.Helper()
	cmd := s.command(s.t.Context(), args...)
	cmd.Stdout, cmd.Stderr = io.Discard, io.Discard
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	return cmd
}

// exitCode waits for a command.
func exitCode(t *testing.T, cmd *exec.Cmd) int {
	t.Helper()
	var exit *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode()
}
