package dir_test

import (
	"testing"

	"dm/remote"
	"dm/remote/bucket"
	"dm/remote/dir"
	"dm/remote/remotetest"
)

func TestRemote(t *testing.T) {
	remotetest.Run(t, func(t *testing.T) remotetest.Setup {
		path := t.TempDir()
		return remotetest.Setup{
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
