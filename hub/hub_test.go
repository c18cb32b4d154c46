package hub

import (
	"context"
	"net/http/httptest"
	"testing"

	"dm/remote"
	"dm/remote/hubremote"
	"dm/remote/remotetest"
	"dm/store"
)

func openStore(t testing.TB) remote.Local {
	t.Helper()
	s, err := store.Open(context.Background(), t.TempDir(), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return remote.FromStore(s)
}

// served is a hub with a server before it.
type served struct {
	*Hub
	url  string
	keys map[string]string
}

func serveHub(t testing.TB, limits Limits, users ...string) *served {
	t.Helper()
	h, err := Open(context.Background(), Config{Dir: t.TempDir(), Limits: limits, MinFree: 1})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(h.Handler())
	t.Cleanup(func() {
		srv.Close()
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	s := &served{h, srv.URL, map[string]string{}}
	for _, u := range users {
		if s.keys[u], err = h.AddUser(context.Background(), u); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func (s *served) as(t testing.TB, user string) *hubremote.Remote {
	t.Helper()
	r, err := hubremote.Open(hubremote.Config{URL: s.url, User: user, Key: s.keys[user]})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func TestRemote(t *testing.T) {
	remotetest.Run(t, func(t *testing.T) remotetest.Setup {
		h := serveHub(t, Limits{}, "alice")
		return remotetest.Setup{
			Local: openStore,
			Open:  func(t testing.TB) remote.Remote { return h.as(t, "alice") },
		}
	})
}
