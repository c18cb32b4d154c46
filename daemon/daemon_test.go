package daemon

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"dm/api"
	"dm/dot"
	"dm/internal/errs"
)

func TestMain(m *testing.M) {
	if code, ran := RunChild(); ran {
		os.Exit(code)
	}
	goleak.VerifyTestMain(m)
}

// Every operation the API names is answered, and no other.
func TestEveryOperationHasAHandler(t *testing.T) {
	s := &server{}
	handlers := s.handlers()
	for _, op := range api.Ops() {
		if handlers[op] == nil {
			t.Errorf("operation %s has no handler", op)
		}
		delete(handlers, op)
	}
	for op := range handlers {
		t.Errorf("operation %s is not in api.Ops", op)
	}
}

func TestGateLetsRunningOperationsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g opGate
		if err := g.enter(); err != nil {
			t.Fatal(err)
		}
		closed := make(chan error, 1)
		go func() { closed <- g.close(t.Context()) }()
		synctest.Wait()
		if err := g.enter(); errs.KindOf(err) != errs.Unreachable {
			t.Errorf("a closing gate lets in: %v", err)
		}
		select {
		case <-closed:
			t.Fatal("closed while an operation runs")
		default:
		}
		g.leave()
		if err := <-closed; err != nil {
			t.Error(err)
		}
		g.open()
		if err := g.enter(); err != nil {
			t.Errorf("an opened gate refuses: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := g.close(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("close of a busy gate: %v", err)
		}
		g.leave()
	})
}

func TestKeyedLocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var k keyed
		ctx := t.Context()
		r1, err1 := k.share(ctx, "a")
		r2, err2 := k.share(ctx, "a")
		other, err3 := k.alone(ctx, "b")
		if err := errors.Join(err1, err2, err3); err != nil {
			t.Fatal(err)
		}
		other()
		got := make(chan func(), 1)
		go func() {
			w, err := k.alone(ctx, "a")
			if err != nil {
				t.Error(err)
			}
			got <- w
		}()
		synctest.Wait()
		// A writer that waits is not overtaken.
		late, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if _, err := k.share(late, "a"); err == nil {
			t.Error("a reader overtook a writer that waits")
		}
		r1()
		synctest.Wait()
		if len(got) != 0 {
			t.Fatal("a writer got in beside a reader")
		}
		r2()
		(<-got)()
		if len(k.locks) != 0 {
			t.Errorf("%d locks are left that nobody holds", len(k.locks))
		}
	})
}

// A rename in both directions at the same time must not wait for ever.
func TestTwoDotsAreLockedInOneOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s server
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		a, b := dot.Name{Namespace: "admin", Dot: "a"}, dot.Name{Namespace: "admin", Dot: "b"}
		var wg sync.WaitGroup
		for _, pair := range [][2]dot.Name{{a, b}, {b, a}, {a, a}} {
			wg.Go(func() {
				for range 100 {
					err := s.withDotsAlone(ctx, pair[0], pair[1], func() error {
						time.Sleep(time.Millisecond)
						return nil
					})
					if err != nil {
						t.Errorf("%v: %v", pair, err)
						return
					}
				}
			})
		}
		wg.Wait()
	})
}

func TestLogIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := openLog(path)
	if err != nil {
		t.Fatal(err)
	}
	line := []byte(strings.Repeat("x", 1<<20-1) + "\n")
	for range 20 {
		if _, err := l.Write(line); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	var sum int64
	for _, p := range []string{path, path + ".1"} {
		info, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() > maxLog {
			t.Errorf("%s has %d bytes, more than %d", p, info.Size(), maxLog)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", p, info.Mode())
		}
		sum += info.Size()
	}
	if sum < maxLog {
		t.Errorf("only %d bytes of the log are left", sum)
	}
	// What is there is kept by the next server.
	l, err = openLog(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if l.size == 0 {
		t.Error("the next server's log does not know its size")
	}
}

// A hub's store is not for a server: each would free what only the other reaches.
func TestHomeIsNoHubs(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "hub.db"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if h, err := openHome(dir); errs.KindOf(err) != errs.Conflict || errs.HintOf(err) == "" {
		t.Errorf("server in the home of a hub: %v, %v", h, err)
	}
}

func TestHomeIsOneServers(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "deep", "home")
	h, err := openHome(dir)
	if err != nil {
		t.Fatal(err)
	}
	_, err = openHome(dir)
	if errs.KindOf(err) != errs.Conflict || !strings.Contains(err.Error(), "(pid ") {
		t.Errorf("second server: %v", err)
	}
	id := h.id
	h.close()
	h, err = openHome(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer h.close()
	if h.id != id || len(id.ID) != 16 {
		t.Errorf("the server's id changed from %v to %v", id, h.id)
	}
	for name, want := range map[string]os.FileMode{".": 0o711, storeDir: 0o700, workDir: 0o700, lookDir: 0o700, mountDir: 0o755, identityFile: 0o600, lockFile: 0o600} {
		info, err := os.Stat(h.path(name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %v, want %v", name, info.Mode().Perm(), want)
		}
	}
}

func TestLinks(t *testing.T) {
	l := links{t.TempDir()}
	if err := os.Mkdir(filepath.Join(l.dir, branchesDir), 0o755); err != nil {
		t.Fatal(err)
	}
	n := dot.Name{Namespace: "admin", Dot: "app"}
	pinned := dot.Name{Namespace: "admin", Dot: "app", Branch: "dev"}
	other := dot.Name{Namespace: "admin", Dot: "app2"}
	for _, step := range []struct {
		n    dot.Name
		copy string
	}{{n, "1"}, {n, "2"}, {n, "2"}, {pinned, "3"}, {other, "4"}} {
		if err := l.set(step.n, step.copy); err != nil {
			t.Fatal(err)
		}
		if got := l.get(step.n); got != step.copy {
			t.Errorf("%s leads to %q, want %q", step.n, got, step.copy)
		}
	}
	if err := l.removeDot(n); err != nil {
		t.Fatal(err)
	}
	if l.get(n) != "" || l.get(pinned) != "" {
		t.Error("links of a dot that was removed are left")
	}
	if l.get(other) != "4" {
		t.Error("the link of another dot went too")
	}
	mine := filepath.Join(l.dir, "admin", "file")
	if err := os.WriteFile(mine, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := l.clear(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(mine); err != nil {
		t.Error("clear removed what is not a link:", err)
	}
	if l.get(other) != "" {
		t.Error("clear left a link")
	}
}

// A subdot that is a symlink must not lead a mount out of the dot.
func TestBindFollowsNoLink(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "target")
	source := filepath.Join(dir, "source")
	for _, d := range []string{target, source, filepath.Join(source, "sub")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/etc", filepath.Join(source, "link")); err != nil {
		t.Fatal(err)
	}
	if _, err := bind(t.Context(), source, "link", target, false, false); errs.KindOf(err) != errs.Usage {
		t.Errorf("bind of a link: %v", err)
	}
	if _, err := bind(t.Context(), source, "missing", target, false, false); errs.KindOf(err) != errs.NotFound {
		t.Errorf("bind of what is not there: %v", err)
	}
	if _, err := bind(t.Context(), source, "sub", filepath.Join(dir, "nowhere"), false, false); errs.KindOf(err) != errs.NotFound {
		t.Errorf("bind at what is not there: %v", err)
	}
	at, err := bind(t.Context(), source, "sub", target, true, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := (&bound{at: at}).unbind(false); err != nil {
			t.Error(err)
		}
	})
	if err := os.WriteFile(filepath.Join(target, "x"), nil, 0o600); err == nil {
		t.Error("a read-only bind can be written to")
	}
	if err := os.WriteFile(filepath.Join(source, "sub", "x"), []byte("y"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(target, "x"))
	if err != nil || !bytes.Equal(got, []byte("y")) {
		t.Errorf("through the bind: %q, %v", got, err)
	}
	// Replaced in place, there is still one mount.
	if _, err := bind(t.Context(), source, "", target, false, true); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(target, "sub")); err != nil {
		t.Error(err)
	}
	if below, err := mountsBelow(target); err != nil || len(below) != 1 {
		t.Errorf("mounts at the target: %v, %v", below, err)
	}
}

func TestRefNames(t *testing.T) {
	names := map[string]string{"0123": "app"}
	for ref, want := range map[string]string{
		"dots/0123/heads/dev": "app@dev", "dots/0123/tags/v1": "app:v1", "dots/4567/heads/dev": "dots/4567/heads/dev", "x": "x",
	} {
		if got := refName(ref, names); got != want {
			t.Errorf("refName(%q) = %q, want %q", ref, got, want)
		}
	}
}

// Two clients that stop the server at the same time both hear that it ends.
func TestStoppedByTwo(t *testing.T) {
	s := &server{log: slog.New(slog.DiscardHandler), stop: make(chan struct{}), binds: &binds{}, branches: &branches{}}
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			w := httptest.NewRecorder()
			if err := s.stopServer(httptest.NewRequest(http.MethodPost, "/", strings.NewReader(`{"force":true}`)), w); err != nil || w.Code != http.StatusOK {
				t.Errorf("%v, %d %s", err, w.Code, w.Body)
			}
		})
	}
	wg.Wait()
	select {
	case <-s.stop:
	default:
		t.Error("the server goes on")
	}
}

// Mounts stay remembered when a start is cut short; those that cannot be made any more are forgotten.
func TestMountsAreRemembered(t *testing.T) {
	file := filepath.Join(t.TempDir(), "mounts.json")
	first := &binds{file: file}
	for _, dir := range []api.Path{"/srv/a", "/srv/b"} {
		if err := first.reserve(&bound{bindRecord: bindRecord{Dir: dir, Name: "no name"}}); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		ctx  context.Context
		err  error
		left int
	}{{ctx, context.Canceled, 2}, {t.Context(), nil, 0}} {
		s := &server{log: slog.New(slog.DiscardHandler), binds: &binds{file: file}}
		if err := s.bindAgain(c.ctx); !errors.Is(err, c.err) {
			t.Errorf("%v, want %v", err, c.err)
		}
		if left, err := s.binds.read(); err != nil || len(left) != c.left {
			t.Errorf("%d mounts are remembered, want %d; %v", len(left), c.left, err)
		}
	}
}
