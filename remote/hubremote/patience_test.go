package hubremote

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"dm/remote"
)

// A hub may take its time to answer what has come whole, longer than it may keep a stream waiting: giving up and sending the
// same again would make it begin anew.
func TestPatienceWithAnAnswer(t *testing.T) {
	const slow = 300 * time.Millisecond
	asked := 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		io.Copy(io.Discard, r.Body)
		time.Sleep(slow)
	}))
	defer srv.Close()
	r, err := Open(Config{URL: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	d, err := r.Dot("alice/app")
	if err != nil {
		t.Fatal(err)
	}
	r.patience = patience{stall: slow / 10, answer: 100 * slow}
	if err := d.Store(context.Background(), &remote.Pack{Data: make([]byte, 1<<20)}); err != nil || asked != 1 {
		t.Errorf("after %d requests: %v", asked, err)
	}
	r.patience.answer = slow / 10
	ctx, cancel := context.WithTimeout(context.Background(), slow/2)
	defer cancel()
	if err := r.once(ctx, call{method: http.MethodGet, path: "dots"}); err == nil || ctx.Err() != nil {
		t.Errorf("an answer that does not come is not given up: %v", err)
	}
}
