package hub

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dm/internal/errs"
	"dm/object"
	"dm/remote"
	"dm/remote/hubproto"
)

// Wrong keys of one user make that user wait, longer each time, and nobody else at the same address.
func TestWrongKeys(t *testing.T) {
	g := newGates(Limits{Logins: 3, LoginWait: time.Hour})
	mallory := attempt{"10.0.0.1", "alice"}
	for n := range 3 {
		if wait := g.mayLogin(mallory); wait != 0 {
			t.Fatalf("has to wait %s after %d wrong keys", wait, n)
		}
		g.loginFailed(mallory)
	}
	last := time.Duration(0)
	for n := range 12 {
		wait := g.mayLogin(mallory)
		if wait < last-time.Minute || wait > 64*time.Hour || wait < time.Hour-time.Minute {
			t.Fatalf("%d wrong keys: has to wait %s, before it was %s", n+3, wait, last)
		}
		last = wait
		g.loginFailed(mallory)
	}
	if last < 63*time.Hour {
		t.Errorf("has to wait only %s after 14 wrong keys", last)
	}
	for _, other := range []attempt{{"10.0.0.1", "bob"}, {"10.0.0.2", "alice"}} {
		if wait := g.mayLogin(other); wait != 0 {
			t.Errorf("%v has to wait %s", other, wait)
		}
	}
	g.loggedIn(mallory)
	if g.mayLogin(mallory) != 0 {
		t.Error("has to wait after the right key")
	}
	for i := range 3 * maxAttempts {
		g.loginFailed(attempt{"10.0.0.1", strings.Repeat("x", i%60) + string(rune('a'+i%26)) + time.Duration(i).String()})
	}
	if n := len(g.failed); n > maxAttempts {
		t.Errorf("%d attempts are remembered", n)
	}
}

// Each change leaves a line in the log that says who did what; keys are in none.
func TestAudit(t *testing.T) {
	ctx := context.Background()
	var log bytes.Buffer
	h, err := Open(ctx, Config{Dir: t.TempDir(), MinFree: 1, Log: slog.New(slog.NewTextHandler(&log, nil))})
	must(t, err)
	s := serve(t, h, "alice", "bob")
	w, _ := pushed(t, s, "alice/app")
	alice := s.as(t, "alice")
	must(t, alice.Share(ctx, "alice/app", hubproto.Share{User: "bob", Access: hubproto.Read}))
	must(t, dotOfUser(t, alice, "alice/app").Move(ctx, "tags/v1", object.ID{}, w.Tip))
	must(t, alice.Delete(ctx, "alice/app"))
	key, err := h.NewKey(ctx, "bob")
	must(t, err)
	mustBe(t, s.as(t, "bob").Check(ctx), errs.NotAllowed)
	must(t, h.RemoveUser(ctx, "bob"))
	text := log.String()
	for _, want := range []string{
		`msg="user added" audit=true user=(administrator) name=alice`,
		`msg="pack received" audit=true user=alice dot=alice/app objects=`,
		`msg="ref moved" audit=true user=alice dot=alice/app ref=heads/master old="" new=` + w.Tip.String(),
		`msg="ref moved" audit=true user=alice dot=alice/app ref=tags/v1`,
		`msg="dot shared" audit=true user=alice dot=alice/app with=bob access=read`,
		`msg="dot deleted" audit=true user=alice dot=alice/app`,
		`msg="key changed" audit=true user=(administrator) name=bob`,
		`msg="login failed" audit=true user=bob address=127.0.0.1`,
		`msg="user removed" audit=true user=(administrator) name=bob`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the log has no %s", want)
		}
	}
	for _, secret := range []string{key, s.keys["alice"], s.keys["bob"]} {
		if strings.Contains(text, secret) {
			t.Error("a key is in the log")
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}

// Anybody may look at health and figures, in which there are no names.
func TestHealthAndMetrics(t *testing.T) { eachEngine(t, testHealthAndMetrics) }

func testHealthAndMetrics(t *testing.T, engine string) {
	h := serveHub(t, engine, Limits{}, "alice")
	pushed(t, h, "alice/secretname")
	get := func(path string) string {
		t.Helper()
		resp, err := http.Get(h.url + path)
		must(t, err)
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		must(t, err)
		if resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", path, resp.Status)
		}
		return string(b)
	}
	if got := get("/healthz"); got != "ok\n" {
		t.Errorf("health: %q", got)
	}
	text := get("/metrics")
	for _, want := range []string{
		"dm_hub_users 1\n", "dm_hub_dots 1\n", "dm_hub_transfers 0\n", "dm_hub_failed_logins_total 0\n",
		`dm_hub_requests_total{route="POST /v1/dots/{ns}/{dot}/packs",status="204"}`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in the metrics", want)
		}
	}
	for _, name := range []string{"alice", "secretname"} {
		if strings.Contains(text, name) {
			t.Errorf("%s is in the metrics", name)
		}
	}
}

// start serves a hub until the test ends, and returns its address and what Serve returned.
func start(t *testing.T, ctx context.Context, cfg ServeConfig) (addr string, done chan error) {
	t.Helper()
	up := make(chan string, 1)
	done = make(chan error, 1)
	cfg.Listen = "127.0.0.1:0"
	cfg.Ready = func(a net.Addr, _ string) { up <- a.String() }
	go func() { done <- Serve(ctx, cfg) }()
	select {
	case addr = <-up:
	case err := <-done:
		t.Fatal(err)
	case <-time.After(20 * time.Second):
		t.Fatal("the hub does not come up")
	}
	return addr, done
}

// A hub that is told to stop lets a transfer come to its end and takes no new one.
func TestGracefulStop(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	addr, done := start(t, ctx, ServeConfig{Config: Config{Dir: dir, MinFree: 1}, NoTLS: true})
	admin, err := OpenAdmin(ctx, Config{Dir: dir})
	must(t, err)
	key, err := admin.AddUser(ctx, "alice")
	must(t, err)
	must(t, admin.Close())
	data := newPack().whole(object.KindChunk, []byte("x")).seal().Data
	r, w := io.Pipe()
	req, err := http.NewRequest(http.MethodPost, "http://"+addr+"/v1/dots/alice/a/packs", r)
	must(t, err)
	req.SetBasicAuth("alice", key)
	status := make(chan int, 1)
	go func() {
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			status <- 0
			return
		}
		resp.Body.Close()
		status <- resp.StatusCode
	}()
	_, err = w.Write(data[:20])
	must(t, err)
	running := func() bool {
		resp, err := http.Get("http://" + addr + "/metrics")
		must(t, err)
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		must(t, err)
		return bytes.Contains(b, []byte("dm_hub_transfers 1\n"))
	}
	for deadline := time.Now().Add(10 * time.Second); !running(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the transfer does not begin")
		}
	}
	cancel()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			break
		}
		conn.Close()
		if time.Now().After(deadline) {
			t.Fatal("new connections are taken")
		}
	}
	_, err = w.Write(data[20:])
	must(t, err)
	must(t, w.Close())
	if got := <-status; got != http.StatusNoContent {
		t.Errorf("the transfer that was running: status %d", got)
	}
	must(t, <-done)
}

// A certificate that is replaced while the hub runs is used from then on.
func TestCertificateIsRenewed(t *testing.T) {
	dir := t.TempDir()
	one, two := filepath.Join(dir, "one.pem"), filepath.Join(dir, "two.pem")
	must(t, makeCertificate(one))
	must(t, makeCertificate(two))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	addr, done := start(t, ctx, ServeConfig{Config: Config{Dir: filepath.Join(dir, "hub"), MinFree: 1}, TLSCert: one, TLSKey: one})
	shown := func() string {
		t.Helper()
		conn, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2", "http/1.1"}})
		must(t, err)
		defer conn.Close()
		if p := conn.ConnectionState().NegotiatedProtocol; p != "http/1.1" {
			t.Errorf("the hub speaks %s: a connection has more than one request at a time", p)
		}
		return string(conn.ConnectionState().PeerCertificates[0].Raw)
	}
	first := shown()
	b, err := os.ReadFile(two)
	must(t, err)
	must(t, os.WriteFile(one, b, 0o600))
	must(t, os.Chtimes(one, time.Now(), time.Now().Add(time.Second)))
	if shown() == first {
		t.Error("the old certificate is shown")
	}
	must(t, os.WriteFile(one, []byte("half"), 0o600)) // is being written: the last good one is shown
	must(t, os.Chtimes(one, time.Now(), time.Now().Add(2*time.Second)))
	shown()
	cancel()
	must(t, <-done)
}

// Connections beyond the limit wait, and are served when others end.
func TestConnectionLimit(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	addr, done := start(t, ctx, ServeConfig{Config: Config{Dir: t.TempDir(), MinFree: 1, Limits: Limits{Connections: 2}}, NoTLS: true})
	var idle []net.Conn
	for range 2 {
		conn, err := net.Dial("tcp", addr)
		must(t, err)
		idle = append(idle, conn)
	}
	// The kernel hands out connections in the order in which they came.
	client := http.Client{Timeout: 300 * time.Millisecond, Transport: &http.Transport{DisableKeepAlives: true}}
	if resp, err := client.Get("http://" + addr + "/healthz"); err == nil {
		resp.Body.Close()
		t.Error("a third connection is served")
	}
	for _, conn := range idle {
		conn.Close()
	}
	client.Timeout = 10 * time.Second
	resp, err := client.Get("http://" + addr + "/healthz")
	must(t, err)
	resp.Body.Close()
	cancel()
	must(t, <-done)
}

// A request that meets a mistake of the hub's is told so, unless its answer has begun: then the connection breaks.
func TestPanic(t *testing.T) {
	h := serveHub(t, "disk", Limits{})
	for begun, status := range map[bool]int{false: http.StatusInternalServerError, true: 0} {
		srv := httptest.NewServer(h.serve("x", func(w http.ResponseWriter, _ *http.Request, _ asker) error {
			if begun {
				w.Write([]byte("half of "))
			}
			panic("a mistake")
		}))
		defer srv.Close()
		resp, err := http.Get(srv.URL)
		if err != nil {
			resp = &http.Response{Body: http.NoBody}
		}
		resp.Body.Close()
		if resp.StatusCode != status {
			t.Errorf("begun %v: status %d, %v", begun, resp.StatusCode, err)
		}
	}
	if n := h.gates.requests(); n != 0 {
		t.Errorf("%d requests are still counted", n)
	}
}

// A dot has only so many refs.
func TestRefLimit(t *testing.T) { eachEngine(t, testRefLimit) }

func testRefLimit(t *testing.T, engine string) {
	ctx := context.Background()
	h := serveHub(t, engine, Limits{Refs: 2}, "alice")
	w, _ := pushed(t, h, "alice/app")
	var d remote.Dot = dotOfUser(t, h.as(t, "alice"), "alice/app")
	must(t, d.Move(ctx, "tags/a", object.ID{}, w.Tip))
	mustBe(t, d.Move(ctx, "tags/b", object.ID{}, w.Tip), errs.NotAllowed)
	must(t, d.Move(ctx, "tags/a", w.Tip, object.ID{}))
	must(t, d.Move(ctx, "tags/b", object.ID{}, w.Tip))
}
