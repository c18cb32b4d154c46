package hubremote_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"dm/internal/errs"
	"dm/object"
	"dm/remote"
	"dm/remote/hubremote"
	"dm/store/pack"
)

// counted counts what a hub could write before the client had enough.
type counted struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c counted) Write(b []byte) (int, error) {
	n, err := c.ResponseWriter.Write(b)
	c.n.Add(int64(n))
	return n, err
}

// forever writes b until the client hangs up.
func forever(w io.Writer, b []byte) {
	for {
		if _, err := w.Write(b); err != nil {
			return
		}
	}
}

// hostile opens a hub that answers everything so.
func hostile(t *testing.T, answer http.HandlerFunc) (*hubremote.Remote, remote.Dot, *atomic.Int64) {
	t.Helper()
	var sent atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		answer(counted{w, &sent}, r)
	}))
	t.Cleanup(srv.Close)
	r, err := hubremote.Open(hubremote.Config{URL: srv.URL, User: "alice", Key: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	d, err := r.Dot("alice/app")
	if err != nil {
		t.Fatal(err)
	}
	return r, d, &sent
}

// asks is everything that a client asks a hub.
func asks(ctx context.Context, r *hubremote.Remote, d remote.Dot) map[string]func() error {
	return map[string]func() error{
		"who":     func() error { return r.Check(ctx) },
		"dots":    func() error { _, err := r.Dots(ctx); return err },
		"refs":    func() error { _, err := d.Refs(ctx); return err },
		"shares":  func() error { _, err := r.Shares(ctx, "alice/app"); return err },
		"missing": func() error { _, err := d.Missing(ctx, []object.ID{{1}}); return err },
		"load": func() error {
			return d.Load(ctx, remote.Request{Wants: []remote.Want{{Kind: object.KindTree, ID: object.ID{1}}}},
				func(*pack.Record) error { return nil })
		},
	}
}

// Whatever a hub answers that is no answer is said to be damaged, or refused, and read only so far.
func TestAnswersThatAreNone(t *testing.T) {
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	z.Write(make([]byte, 64<<20))
	z.Close()
	for name, answer := range map[string]http.HandlerFunc{
		"HTML": func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>welcome</html>") },
		"endless JSON": func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, `{"refs":{"`)
			forever(w, []byte(strings.Repeat("a", 1<<16)))
		},
		"endless zeros": func(w http.ResponseWriter, _ *http.Request) { forever(w, make([]byte, 1<<16)) },
		"compressed": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			w.Write(bomb.Bytes())
		},
		"other kinds": func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `[1,{"user":[]}]`) },
		"not allowed": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) },
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			r, d, sent := hostile(t, answer)
			for ask, fn := range asks(ctx, r, d) {
				sent.Store(0)
				err := fn()
				if k := errs.KindOf(err); err == nil || k != errs.Damaged && k != errs.Internal {
					t.Errorf("%s: %v", ask, err)
				}
				if n := sent.Load(); n > 32<<20 {
					t.Errorf("%s: %d bytes were read", ask, n)
				}
			}
		})
	}
}

// Names and ids that no hub may send.
func TestWrongNames(t *testing.T) {
	ctx := context.Background()
	id := strings.Repeat("ab", 32)
	for _, text := range []string{
		`{"refs":{"heads/../x":"` + id + `"}}`, `{"refs":{"HEAD":"` + id + `"}}`, `{"refs":{"heads/a":"zz"}}`, `{"refs":{"heads/a":""}}`,
		`{"refs":{"heads/a\u0000":"` + id + `"}}`, `{"refs":{"heads/a":"` + strings.Repeat("00", 32) + `"}}`,
	} {
		_, d, _ := hostile(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, text) })
		if refs, err := d.Refs(ctx); errs.KindOf(err) != errs.Damaged {
			t.Errorf("%s: %v, %v", text, refs, err)
		}
	}
	for _, name := range []string{"../x", "a/b/c", "a", "/etc/passwd", "a/\\u001b[2J", ""} {
		r, _, _ := hostile(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, `{"dots":[{"name":"%s"}]}`, name) })
		if list, err := r.Dots(ctx); errs.KindOf(err) != errs.Damaged {
			t.Errorf("%q: %v, %v", name, list, err)
		}
	}
	r, _, _ := hostile(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"user":"bob","version":"1"}`) })
	if err := r.Check(ctx); errs.KindOf(err) != errs.NotAllowed {
		t.Errorf("taken for somebody else: %v", err)
	}
}

// A hub cannot write to the terminal of who reads its errors.
func TestErrorsArePrintable(t *testing.T) {
	r, _, _ := hostile(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusConflict)
		io.WriteString(w, `{"kind":"conflict","message":"a\u001b]0;x\u0007\r\nb\u009b","hint":"\u001b[2J`+strings.Repeat("y", 1<<16)+`"}`)
	})
	_, err := r.Dots(context.Background())
	if errs.KindOf(err) != errs.Conflict {
		t.Fatal(err)
	}
	text := err.Error() + errs.HintOf(err)
	if strings.ContainsFunc(text, func(c rune) bool { return c < ' ' || c >= 0x7f && c < 0xa0 }) || len(text) > 10000 {
		t.Errorf("%.300q", text)
	}
}

// The key goes to the hub that it is for, and follows no redirection.
func TestKeyGoesNowhereElse(t *testing.T) {
	var asked atomic.Int64
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		io.WriteString(w, `{"user":"alice","version":"1"}`)
	}))
	defer other.Close()
	for _, status := range []int{301, 302, 303, 307, 308} {
		r, d, _ := hostile(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, other.URL+r.URL.Path, status) })
		for ask, fn := range asks(context.Background(), r, d) {
			if fn() == nil {
				t.Errorf("%s: status %d is taken", ask, status)
			}
		}
	}
	if asked.Load() != 0 {
		t.Error("a redirection was followed")
	}
}

// A pack that ends before its end, is of a newer version, or holds what is damaged.
func TestPacksThatAreNone(t *testing.T) {
	codec, err := pack.NewCodec(pack.Fast)
	if err != nil {
		t.Fatal(err)
	}
	defer codec.Close()
	id := object.Sum(object.KindTree, []byte("x"))
	good, _ := codec.Append(pack.AppendHeader(nil), object.KindTree, id, []byte("x"))
	whole := pack.AppendEnd(bytes.Clone(good), 1, uint64(len(good)))
	newer := bytes.Clone(whole)
	newer[8]++
	flipped := bytes.Clone(whole)
	flipped[len(good)-1] ^= 1
	for name, b := range map[string][]byte{
		"cut at a record": good, "cut in a record": good[:len(good)-1], "newer": newer, "flipped": flipped, "more after the end": append(bytes.Clone(whole), 0),
		"wrong count": pack.AppendEnd(bytes.Clone(good), 2, uint64(len(good))), "empty": {},
	} {
		_, d, _ := hostile(t, func(w http.ResponseWriter, _ *http.Request) { w.Write(b) })
		err := d.Load(context.Background(), remote.Request{Wants: []remote.Want{{Kind: object.KindTree, ID: id}}},
			func(*pack.Record) error { return nil })
		if k := errs.KindOf(err); err == nil || k != errs.Damaged && k != errs.Usage {
			t.Errorf("%s: %v", name, err)
		}
	}
}
