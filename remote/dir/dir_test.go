package dir_test

import (
	"context"
	"testing"

	"dm/remote"
	"dm/remote/bucket"
	"dm/remote/dir"
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

func TestRemote(t *testing.T) {
	remotetest.Run(t, func(t *testing.T) remotetest.Setup {
		path := t.TempDir()
		return remotetest.Setup{
			Local: openStore,
			Open: func(t testing.TB) remote.Remote {
				b, err := dir.Open(path)
				if err != nil {
					t.Fatal(err)
				}
				r, err := bucket.Open(b, bucket.Options{CacheDir: t.TempDir()})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { r.Close() })
				return r
			},
		}
	})
}
