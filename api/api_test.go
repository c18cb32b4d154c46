package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"dm/internal/errs"
	"dm/internal/unixsock"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve runs a server with one handler on a socket and returns a client of it.
func serve(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	// Longer than a socket's address can be, as state directories deep in a tree are.
	dir := filepath.Join(t.TempDir(), strings.Repeat("deep", 30))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, SocketName)
	l, err := unixsock.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	done := make(chan struct{})
	go func() {
		defer close(done)
		srv.Serve(l) //nolint:errcheck // ends with ErrServerClosed
	}()
	c := NewClient(path)
	t.Cleanup(func() {
		c.Close()
		srv.Close()
		<-done
	})
	return c
}

// An error keeps its kind, message and hint on its way, whatever was sent before it.
func TestErrorsCrossTheSocket(t *testing.T) {
	for _, kind := range errs.Kinds() {
		want := errs.WithHint(fmt.Errorf("commit dot x: %w", errs.New(kind, "the reason\n\"quoted\" ünd")), "do this")
		check := func(how string, err error) {
			t.Helper()
			if errs.KindOf(err) != kind || err.Error() != want.Error() || errs.HintOf(err) != "do this" {
				t.Errorf("%v %s: got %v, kind %v, hint %q", kind, how, err, errs.KindOf(err), errs.HintOf(err))
			}
		}
		c := serve(t, func(w http.ResponseWriter, r *http.Request) {
			switch Op(strings.TrimPrefix(r.URL.Path, PathPrefix)) {
			case OpInit:
				NewStream(w).Fail(want)
			case OpCommit:
				s := NewStream(w)
				s.Progress(Progress{Stage: "committing", Done: 1})
				s.Fail(want)
			case OpCat:
				NewBytes(w).Close(want)
			case OpExport:
				b := NewBytes(w)
				io.WriteString(b, "some bytes")
				b.Close(want)
			}
		})
		_, err := c.Init(t.Context(), InitRequest{})
		check("at once", err)
		seen := 0
		_, err = c.Commit(t.Context(), CommitRequest{}, func(Progress) { seen++ })
		check("after progress", err)
		if seen != 1 {
			t.Errorf("%v: progress was seen %d times", kind, seen)
		}
		var out bytes.Buffer
		check("before bytes", c.Cat(t.Context(), CatRequest{}, &out))
		if out.Len() > 0 {
			t.Errorf("%v: bytes of a failure: %q", kind, &out)
		}
		_, err = c.Export(t.Context(), ExportRequest{}, &out)
		check("after bytes", err)
	}
}

func TestStatusOfAnError(t *testing.T) {
	for _, kind := range errs.Kinds() {
		c := serve(t, func(w http.ResponseWriter, _ *http.Request) { NewStream(w).Fail(errs.New(kind, "x")) })
		resp, err := c.http.Post("http://dm"+PathPrefix+"x", typeJSON, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != kind.HTTPStatus() {
			t.Errorf("%v: status %d, want %d", kind, resp.StatusCode, kind.HTTPStatus())
		}
	}
}

func TestItemsAndResults(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		s := NewStream(w)
		switch Op(strings.TrimPrefix(r.URL.Path, PathPrefix)) {
		case OpDiff:
			for i := range 1000 {
				s.Item(Change{Kind: "+", Path: Path(fmt.Sprint("db/", i)), Bytes: int64(i)})
			}
			s.Result(Empty{})
		case OpCat:
			b := NewBytes(w)
			b.Close(nil)
		default:
			s.Result(VersionResult{Version: "9"})
		}
	})
	n := 0
	err := c.Diff(t.Context(), DiffRequest{}, func(ch Change) error {
		if string(ch.Path) != fmt.Sprint("db/", n) || ch.Bytes != int64(n) {
			t.Errorf("item %d is %+v", n, ch)
		}
		n++
		return nil
	})
	if err != nil || n != 1000 {
		t.Errorf("%d items, %v", n, err)
	}
	stop := errors.New("enough")
	if err := c.Diff(t.Context(), DiffRequest{}, func(Change) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("error of the receiver: %v", err)
	}
	if v, err := c.Version(t.Context()); err != nil || v.Version != "9" {
		t.Errorf("version %+v, %v", v, err)
	}
	var out bytes.Buffer
	if err := c.Cat(t.Context(), CatRequest{}, &out); err != nil || out.Len() != 0 {
		t.Errorf("an empty file: %q, %v", &out, err)
	}
}

func TestNoServer(t *testing.T) {
	dir := t.TempDir()
	want := func(c *Client, kind errs.Kind, hint string) {
		t.Helper()
		defer c.Close()
		_, err := c.List(t.Context())
		if errs.KindOf(err) != kind || !strings.Contains(errs.HintOf(err), hint) {
			t.Errorf("%v (%v), hint %q", err, errs.KindOf(err), errs.HintOf(err))
		}
	}
	want(NewClient(filepath.Join(dir, SocketName)), errs.Unreachable, "dm cluster init")
	want(NewClient(filepath.Join(dir, "nowhere", strings.Repeat("x", 200), SocketName)), errs.Unreachable, "dm cluster init")
	// The socket of a server that was killed.
	path := filepath.Join(dir, SocketName)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	want(NewClient(path), errs.Unreachable, "dm cluster init")
}

// A server that goes away in the middle is said to be gone; nothing that it has sent is taken for all.
func TestServerGoesAway(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, string(OpCat)) {
			b := NewBytes(w)
			io.WriteString(b, "half")
			http.NewResponseController(w).Flush()
		} else {
			NewStream(w).Progress(Progress{})
		}
		panic(http.ErrAbortHandler)
	})
	_, err := c.Commit(t.Context(), CommitRequest{}, nil)
	if errs.KindOf(err) != errs.Unreachable || errs.HintOf(err) == "" {
		t.Errorf("commit: %v (%v)", err, errs.KindOf(err))
	}
	if err := c.Cat(t.Context(), CatRequest{}, io.Discard); errs.KindOf(err) != errs.Unreachable {
		t.Errorf("cat: %v (%v)", err, errs.KindOf(err))
	}
}

// An interrupted client says so, and the server hears of it.
func TestInterrupt(t *testing.T) {
	heard := make(chan struct{})
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		NewStream(w).Progress(Progress{})
		<-r.Context().Done()
		close(heard)
	})
	ctx, cancel := context.WithCancel(t.Context())
	_, err := c.Commit(ctx, CommitRequest{}, func(Progress) { cancel() })
	if errs.KindOf(err) != errs.Interrupted {
		t.Errorf("%v (%v)", err, errs.KindOf(err))
	}
	select {
	case <-heard:
	case <-time.After(10 * time.Second):
		t.Error("the server did not hear of it")
	}
}

// Something else answers on the socket.
func TestForeignServer(t *testing.T) {
	for _, text := range []string{"", "<html>", `{"kind":`, strings.Repeat("x", 1000)} {
		c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusTeapot)
			io.WriteString(w, text)
		})
		if _, err := c.List(t.Context()); err == nil || errs.KindOf(err) == errs.NotFound || len(err.Error()) > 1000 {
			t.Errorf("%.10q: %v", text, err)
		}
		c = serve(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, text) })
		if _, err := c.List(t.Context()); err == nil {
			t.Errorf("%.10q was taken for a list", text)
		}
	}
}

func TestPathsAreBytes(t *testing.T) {
	for _, p := range []Path{"", "db/file", "ü\n\t\"", "\xff\xfe", "a\x00b", Path(strings.Repeat("\x80", 4096))} {
		b, err := json.Marshal(Change{Path: p})
		if err != nil {
			t.Fatal(err)
		}
		var got Change
		if err := json.Unmarshal(b, &got); err != nil || got.Path != p {
			t.Errorf("%q became %q in %s: %v", p, got.Path, b, err)
		}
	}
	var p Path
	for _, bad := range []string{"1", "[]", `{"bytes":"%"}`} {
		if err := json.Unmarshal([]byte(bad), &p); err == nil {
			t.Errorf("%s is no path", bad)
		}
	}
}
