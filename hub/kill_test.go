package hub

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"dm/object"
	"dm/remote"
	"dm/remote/hubremote"
	"dm/remote/remotetest"
	"dm/store"
)

// The test program is a hub when it is told to be.
func TestMain(m *testing.M) {
	if dir := os.Getenv("DM_TEST_HUB"); dir != "" {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		err := Serve(ctx, ServeConfig{Config: Config{Dir: dir, MinFree: 1}, Listen: os.Getenv("DM_TEST_LISTEN"), NoTLS: true})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// child is a hub in a process of its own.
type child struct {
	t    *testing.T
	dir  string
	addr string
	cmd  *exec.Cmd
}

func (c *child) start() {
	c.t.Helper()
	c.cmd = exec.Command(os.Args[0])
	c.cmd.Env = append(os.Environ(), "DM_TEST_HUB="+c.dir, "DM_TEST_LISTEN="+c.addr)
	c.cmd.Stderr = os.Stderr
	must(c.t, c.cmd.Start())
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("tcp", c.addr)
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatal("the hub does not come up")
		}
	}
}

func (c *child) kill() {
	c.cmd.Process.Kill()
	c.cmd.Wait()
}

func rounds(t *testing.T, n int) int {
	if s := os.Getenv("DM_ROUNDS"); s != "" {
		v, err := strconv.Atoi(s)
		must(t, err)
		return v
	}
	return n
}

// counting counts the bytes of packs that were sent, whether they arrived or not.
type counting struct {
	remote.Dot
	bytes atomic.Int64
}

func (c *counting) Store(ctx context.Context, p *remote.Pack) error {
	c.bytes.Add(int64(len(p.Data)))
	return c.Dot.Store(ctx, p)
}

// The hub is killed at any moment of pushes. The next push sends only the rest, what is shown is always whole, and
// the hub's store passes fsck.
func TestHubIsKilled(t *testing.T) {
	ctx := context.Background()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	hub := &child{t: t, dir: t.TempDir(), addr: l.Addr().String()}
	must(t, l.Close())
	h, err := Open(ctx, Config{Dir: hub.dir})
	must(t, err)
	key, err := h.AddUser(ctx, "alice")
	must(t, err)
	must(t, h.Close())
	local := openStore(t)
	w := remotetest.NewWorld(t, local, 1)
	rng := rand.New(rand.NewPCG(7, 7))
	const packBytes = 256 << 10
	var tip object.ID
	hub.start()
	for round := range rounds(t, 10) {
		w.Write(fmt.Sprintf("db/f%d", round%5), 60)
		next := w.Commit(fmt.Sprint(round))
		client, err := hubremote.Open(hubremote.Config{URL: "http://" + hub.addr, User: "alice", Key: key})
		must(t, err)
		d := &counting{Dot: dotOfUser(t, client, "alice/app")}
		push := remote.Push{Ref: "heads/master", Tip: next, Send: remote.SendOptions{PackBytes: packBytes, Parallel: 1}}
		short, cancel := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() {
			_, err := remote.PushRef(short, local, d, push)
			done <- err
		}()
		time.Sleep(time.Duration(rng.Int64N(int64(150 * time.Millisecond))))
		hub.kill()
		cancel()
		<-done
		hub.start()
		refs, err := d.Refs(ctx)
		must(t, err)
		if got := refs["heads/master"]; got != tip && got != next {
			t.Fatalf("round %d: the branch is at %s, neither at the old nor at the new commit", round, got.Short())
		}
		_, err = remote.PushRef(ctx, local, d, push)
		must(t, err)
		whole := &counting{Dot: nothing{d}}
		_, err = remote.Send(ctx, local, whole, []object.ID{next}, haves(tip), push.Send)
		must(t, err)
		if sent, want := d.bytes.Load(), whole.bytes.Load(); sent > want+2*packBytes {
			t.Errorf("round %d: %d bytes were sent, without a break %d", round, sent, want)
		}
		tip = next
		must(t, client.Close())
	}
	client, err := hubremote.Open(hubremote.Config{URL: "http://" + hub.addr, User: "alice", Key: key})
	must(t, err)
	other := openStore(t)
	_, release, err := remote.PullRef(ctx, other, dotOfUser(t, client, "alice/app"), remote.Pull{Ref: "heads/master"})
	must(t, err)
	release()
	remotetest.Verify(t, other, tip)
	must(t, client.Close())
	hub.kill()
	h, err = Open(ctx, Config{Dir: hub.dir})
	must(t, err)
	report, err := h.engine.(*localEngine).store.Fsck(ctx, store.FsckOptions{})
	must(t, err)
	if !report.OK() {
		t.Errorf("fsck of the hub's store: %+v", report.Problems)
	}
	must(t, h.Close())
}

func haves(tip object.ID) []object.ID {
	if tip.IsZero() {
		return nil
	}
	return []object.ID{tip}
}

// nothing has nothing beyond what is said to be there, and takes everything.
type nothing struct{ remote.Dot }

func (nothing) Missing(_ context.Context, ids []object.ID) ([]object.ID, error) { return ids, nil }
func (nothing) Store(context.Context, *remote.Pack) error                       { return nil }
