package hub

import (
	"context"
	"errors"
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

	"dm/internal/loopback"
	"dm/object"
	"dm/remote"
	"dm/remote/dir"
	"dm/remote/hubremote"
	"dm/remote/remotetest"
	"dm/store"
)

// The test program is a hub, or one of its clients, when it is told to be.
func TestMain(m *testing.M) {
	role, ok := map[string]func(context.Context) error{"hub": hubRole, "fill": fillRole, "push": pushRole, "pull": pullRole}[os.Getenv("DM_TEST_ROLE")]
	if !ok {
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := role(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// hubRole serves the hub in the directory DM_TEST_DIR, whose state is in the bucket DM_TEST_BUCKET if there is one.
func hubRole(ctx context.Context) error {
	cfg := ServeConfig{Config: Config{Dir: os.Getenv("DM_TEST_DIR"), MinFree: 1}, Listen: os.Getenv("DM_TEST_LISTEN"), NoTLS: true}
	path := os.Getenv("DM_TEST_BUCKET")
	if path == "" {
		return Serve(ctx, cfg)
	}
	b, err := dir.Open(path)
	if err != nil {
		return err
	}
	h, err := openIn(ctx, cfg.Config, b)
	if err != nil {
		return err
	}
	return errors.Join(h.listen(ctx, cfg), h.Close())
}

// child is a hub in a process of its own.
type child struct {
	t      *testing.T
	dir    string
	bucket string // "" for a hub on its disk
	addr   string
	key    string // of alice
	cmd    *exec.Cmd
}

// newChild makes a hub with the user alice. It does not run yet.
func newChild(t *testing.T, engine string) *child {
	t.Helper()
	ctx := context.Background()
	c := &child{t: t, dir: t.TempDir(), addr: loopback.Address(t)}
	if engine == "bucket" {
		c.bucket = t.TempDir()
	}
	h := c.open()
	var err error
	c.key, err = h.AddUser(ctx, "alice")
	must(t, err)
	must(t, h.Close())
	return c
}

// open opens the hub in this process.
func (c *child) open() *Hub {
	c.t.Helper()
	cfg := Config{Dir: c.dir, MinFree: 1}
	var h *Hub
	var err error
	if c.bucket == "" {
		h, err = Open(context.Background(), cfg)
	} else {
		b, derr := dir.Open(c.bucket)
		must(c.t, derr)
		h, err = openIn(context.Background(), cfg, b)
	}
	must(c.t, err)
	return h
}

func (c *child) start() {
	c.t.Helper()
	c.cmd = exec.Command(os.Args[0])
	c.cmd.Env = append(os.Environ(), "DM_TEST_ROLE=hub", "DM_TEST_DIR="+c.dir, "DM_TEST_BUCKET="+c.bucket, "DM_TEST_LISTEN="+c.addr)
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

// The hub is killed at any moment of pushes and pulls. The next one moves only the rest, what is shown is always whole, and
// what the hub keeps passes its check.
func TestHubIsKilled(t *testing.T) { eachEngine(t, testHubIsKilled) }

func testHubIsKilled(t *testing.T, engine string) {
	ctx := context.Background()
	hub := newChild(t, engine)
	local, other := remotetest.OpenStore(t), remotetest.OpenStore(t)
	w := remotetest.NewWorld(t, local, 1)
	rng := rand.New(rand.NewPCG(7, 7))
	const packBytes = 256 << 10
	var tip object.ID
	hub.start()
	client, err := hubremote.Open(hubremote.Config{URL: "http://" + hub.addr, User: "alice", Key: hub.key})
	must(t, err)
	defer client.Close()
	// interrupted runs fn, kills the hub while it runs, and starts it again.
	interrupted := func(fn func(ctx context.Context) error) {
		short, cancel := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() { done <- fn(short) }()
		time.Sleep(time.Duration(rng.Int64N(int64(150 * time.Millisecond))))
		hub.kill()
		cancel()
		<-done
		hub.start()
	}
	for round := range rounds(t, 8) {
		w.Write(fmt.Sprintf("db/f%d", round%5), 60)
		next := w.Commit(fmt.Sprint(round))
		d := &counting{Dot: dotOfUser(t, client, "alice/app")}
		push := remote.Push{Ref: "heads/master", Tip: next, Send: remote.SendOptions{PackBytes: packBytes, Parallel: 1}}
		interrupted(func(ctx context.Context) error {
			_, err := remote.PushRef(ctx, local, d, push)
			return err
		})
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
		pull := remotetest.Pull{Ref: "heads/master", Fetch: remote.FetchOptions{BatchBytes: packBytes}}
		interrupted(func(ctx context.Context) error {
			_, release, err := remotetest.PullRef(ctx, other, d, pull)
			if err == nil {
				release()
			}
			return err
		})
		_, release, err := remotetest.PullRef(ctx, other, d, pull)
		must(t, err)
		release()
	}
	remotetest.Verify(t, other, tip)
	hub.kill()
	checkHub(t, hub)
}

// checkHub looks whether all that a hub keeps is whole, and whether the members of its dots are closed: what a member needs
// is a member.
func checkHub(t *testing.T, c *child) {
	t.Helper()
	ctx := context.Background()
	h := c.open()
	defer func() { must(t, h.Close()) }()
	if e, ok := h.engine.(*localEngine); ok {
		report, err := e.store.Fsck(ctx, store.FsckOptions{})
		must(t, err)
		if !report.OK() {
			t.Errorf("fsck of the hub's store: %+v", report.Problems)
		}
	}
	s, err := h.see(ctx, "alice", "alice/app", readable)
	must(t, err)
	needs := map[object.ID]object.Kind{}
	for id, kind := range h.allMembers(t, "alice/app") {
		plain := h.object(t, s.own, kind, id)
		if object.Sum(kind, plain) != id {
			t.Fatalf("%s %s is damaged", kind, id.Short())
		}
		must(t, addNeeds(needs, kind, plain))
	}
	all := h.allMembers(t, "alice/app")
	for id, kind := range needs {
		if all[id] != kind {
			t.Errorf("%s %s is needed by a member and is none", kind, id.Short())
		}
	}
}

// object reads an object of a dot.
func (h *Hub) object(t testing.TB, d *dotRecord, kind object.Kind, id object.ID) (plain []byte) {
	t.Helper()
	switch e := h.engine.(type) {
	case *localEngine:
		b, err := e.store.Get(context.Background(), kind, id)
		must(t, err)
		return b
	case *sharedEngine:
		sd, err := e.dot(d)
		must(t, err)
		must(t, e.read(context.Background(), sd, []object.ID{id}, func(_ object.Kind, _ object.ID, b []byte) error {
			plain = b
			return nil
		}))
	}
	return plain
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
