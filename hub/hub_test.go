package hub

import (
	"context"
	"net/http/httptest"
	"testing"

	"dm/remote"
	"dm/remote/bucket"
	"dm/remote/dir"
	"dm/remote/hubremote"
	"dm/remote/remotetest"
)

// served is a hub with a server before it.
type served struct {
	*Hub
	url  string
	keys map[string]string
}

// engines lists where hubs keep their state: on a disk, or in a bucket, here one that is a directory.
func engines() []string { return []string{"disk", "bucket"} }

// eachEngine runs a test on hubs of each kind.
func eachEngine(t *testing.T, test func(t *testing.T, engine string)) {
	for _, engine := range engines() {
		t.Run(engine, func(t *testing.T) { test(t, engine) })
	}
}

func serveHub(t testing.TB, engine string, limits Limits, users ...string) *served {
	t.Helper()
	if engine == "disk" {
		h, err := Open(context.Background(), Config{Dir: t.TempDir(), Limits: limits, MinFree: 1})
		must(t, err)
		return serve(t, h, users...)
	}
	return serveHubs(t, inDirectory(t), 1, limits, users...)[0]
}

// inDirectory makes a bucket and opens it, each time as another hub would.
func inDirectory(t testing.TB) func() bucket.Bucket {
	path := t.TempDir()
	return func() bucket.Bucket {
		b, err := dir.Open(path)
		must(t, err)
		return b
	}
}

// serveHubs serves n hubs on one bucket.
func serveHubs(t testing.TB, open func() bucket.Bucket, n int, limits Limits, users ...string) (list []*served) {
	t.Helper()
	for range n {
		h, err := openIn(context.Background(), Config{Dir: t.TempDir(), Limits: limits}, open())
		must(t, err)
		list = append(list, serve(t, h, users...))
		if users = nil; len(list) > 1 {
			list[len(list)-1].keys = list[0].keys
		}
	}
	return list
}

func serve(t testing.TB, h *Hub, users ...string) *served {
	t.Helper()
	srv := httptest.NewServer(h.Handler())
	t.Cleanup(func() {
		srv.Close()
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	s := &served{h, srv.URL, map[string]string{}}
	for _, u := range users {
		key, err := h.AddUser(context.Background(), u)
		must(t, err)
		s.keys[u] = key
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
	eachEngine(t, func(t *testing.T, engine string) {
		remotetest.Run(t, func(t *testing.T) remotetest.Setup {
			h := serveHub(t, engine, Limits{}, "alice")
			return remotetest.Setup{
				Open: func(t testing.TB) remote.Remote { return h.as(t, "alice") },
			}
		})
	})
}
