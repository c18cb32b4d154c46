package hub

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"dm/object"
	"dm/remote"
	"dm/remote/hubremote"
	"dm/remote/remotetest"
)

// far is a link to a server with a delay in each direction and no other limit. It returns the address of its near end.
func far(t testing.TB, server string, delay time.Duration) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				other, err := net.Dial("tcp", server)
				if err != nil {
					near.Close()
					return
				}
				go late(near, other, delay)
				late(other, near, delay)
			}()
		}
	}()
	return l.Addr().String()
}

// late copies what comes, a while later.
func late(to, from net.Conn, delay time.Duration) {
	type piece struct {
		b    []byte
		when time.Time
	}
	pieces := make(chan piece, 1<<12)
	go func() {
		defer close(pieces)
		for {
			b := make([]byte, 64<<10)
			n, err := from.Read(b)
			if n > 0 {
				pieces <- piece{b[:n], time.Now().Add(delay)}
			}
			if err != nil {
				return
			}
		}
	}()
	for p := range pieces {
		time.Sleep(time.Until(p.when))
		if _, err := to.Write(p.b); err != nil {
			break
		}
	}
	to.Close()
	from.Close()
	for range pieces { // the reader may be waiting for room
	}
}

// How often a hub 50 ms away is asked. What is small must not cost many round trips, and what is large must not wait for
// one thing after the other.
func TestLatency(t *testing.T) {
	ctx := context.Background()
	h := serveHub(t, "disk", Limits{}, "alice")
	var requests atomic.Int64
	handler := h.Handler()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		handler.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	const delay = 25 * time.Millisecond
	addr := far(t, srv.Listener.Addr().String(), delay)
	client, err := hubremote.Open(hubremote.Config{URL: "http://" + addr, User: "alice", Key: h.keys["alice"]})
	must(t, err)
	t.Cleanup(func() { client.Close() })
	must(t, client.Check(ctx)) // the connection is there
	local := remotetest.OpenStore(t)
	d := dotOfUser(t, client, "alice/app")
	timed := func(what string, atMost int64, fn func() string) time.Duration {
		t.Helper()
		requests.Store(0)
		start := time.Now()
		said := fn()
		took := time.Since(start)
		n := requests.Load()
		t.Logf("%-40s %6d ms, %3d requests, %s", what, took.Milliseconds(), n, said)
		if n > atMost {
			t.Errorf("%s: %d requests, %d should do", what, n, atMost)
		}
		return took
	}
	push := func(tip object.ID, parallel int) string {
		res, err := remote.PushRef(ctx, local, d, remote.Push{Ref: "heads/master", Tip: tip, Send: remote.SendOptions{Parallel: parallel}})
		must(t, err)
		return fmt.Sprintf("%d objects, %.1f MB", res.Objects, float64(res.Bytes)/1e6)
	}
	pull := func(to remote.Local, tip object.ID, parallel int) string {
		res, release, err := remotetest.PullRef(ctx, to, d, remotetest.Pull{Ref: "heads/master", Tip: tip, Fetch: remote.FetchOptions{Parallel: parallel}})
		must(t, err)
		release()
		return fmt.Sprintf("%d objects, %.1f MB", res.Objects, float64(res.Stats.Bytes)/1e6)
	}
	w := remotetest.NewWorld(t, local, 1)
	for i := range 4 {
		w.Write(fmt.Sprintf("db/f%d", i), 512)
	}
	first := w.Commit("first")
	timed("first push, 128 MB of files", 30, func() string { return push(first, 0) })
	timed("push, nothing to send", 1, func() string { return push(first, 0) })
	// What else the machine does may make either of the two slow, so a bad comparison is made again.
	const tries = 3
	var other remote.Local
	for try := 1; ; try++ {
		slow := timed("first pull, one request at a time", 40, func() string { return pull(remotetest.OpenStore(t), object.ID{}, 1) })
		other = remotetest.OpenStore(t)
		fast := timed("first pull", 40, func() string { return pull(other, object.ID{}, 0) })
		if fast <= slow+slow/2 {
			break
		}
		if try == tries {
			t.Errorf("requests at a time make a pull slower, %d times: at last %s instead of %s", tries, fast, slow)
			break
		}
	}
	w.Touch("db/f1", 7)
	second := w.Commit("second")
	timed("push of one page", 5, func() string { return push(second, 0) })
	timed("pull of one page", 3, func() string { return pull(other, first, 0) })
	few := remotetest.NewWorld(t, local, 2) // a commit of a world takes as long as the world is large
	few.Write("db/f0", 4)
	few.Tip = second
	for i := range 1000 {
		few.Touch("db/f0", i%4)
		few.Commit("small")
	}
	last := few.Tip
	timed("push of 1,000 commits", 8, func() string { return push(last, 0) })
	timed("pull of 1,000 commits", 24, func() string { return pull(other, second, 0) })
	remotetest.Verify(t, other, last)
}
