package s3_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	"dm/remote"
	"dm/remote/bucket"
	"dm/remote/remotetest"
	"dm/remote/remotetest/s3server"
	"dm/remote/s3"
)

// Real servers, see package s3server for which and why.
func TestServers(t *testing.T) {
	for _, name := range s3server.Names() {
		t.Run(name, func(t *testing.T) {
			addr := s3server.Start(t, name)
			s3server.MakeBucket(t, addr, "dm-test")
			var n atomic.Int64
			remotetest.Run(t, func(t *testing.T) remotetest.Setup {
				config := configOf(t, addr, fmt.Sprintf("run%d", n.Add(1)))
				return remotetest.Setup{
					Open: func(t testing.TB) remote.Remote { return openRemote(t, config) },
				}
			})
		})
	}
}

func configOf(t testing.TB, addr, prefix string) s3.Config {
	t.Helper()
	config, err := s3.Parse(fmt.Sprintf("s3://%s@dm-test/%s?endpoint=http://%s&region=%s", s3server.AccessKey, prefix, addr, s3server.Region))
	if err != nil {
		t.Fatal(err)
	}
	config.SecretKey = s3server.SecretKey
	return config
}

func openRemote(t testing.TB, config s3.Config) remote.Remote {
	t.Helper()
	b, err := s3.Open(config)
	if err != nil {
		t.Fatal(err)
	}
	r, err := bucket.Open(b, bucket.Options{CacheDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}
