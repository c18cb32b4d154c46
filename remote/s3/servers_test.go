//go:build s3servers

package s3_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"dm/remote"
	"dm/remote/bucket"
	"dm/remote/remotetest"
	"dm/remote/s3"
	"dm/store"
)

// The tests of this file need real servers, whose programs are in the directory DM_S3_SERVERS: versitygw and minio, as
// `go install github.com/versity/versitygw/cmd/versitygw@latest github.com/minio/minio@latest` makes them.

const (
	accessKey = "dmtestkey"
	secretKey = "dmtestsecretkey"
)

func TestVersitygw(t *testing.T) {
	againstServer(t, func(addr, dir string) *exec.Cmd {
		c := exec.Command(program(t, "versitygw"), "--port", addr, "--quiet", "posix", filepath.Join(dir, "data"))
		c.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+accessKey, "ROOT_SECRET_KEY="+secretKey)
		return c
	})
}

func TestMinIO(t *testing.T) {
	againstServer(t, func(addr, dir string) *exec.Cmd {
		c := exec.Command(program(t, "minio"), "server", "--quiet", "--address", addr, filepath.Join(dir, "data"))
		c.Env = append(os.Environ(), "MINIO_ROOT_USER="+accessKey, "MINIO_ROOT_PASSWORD="+secretKey, "HOME="+dir)
		return c
	})
}

func program(t *testing.T, name string) string {
	dir := os.Getenv("DM_S3_SERVERS")
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); dir == "" || err != nil {
		t.Fatalf("DM_S3_SERVERS must be a directory with the program %s: %v", name, err)
	}
	return path
}

func againstServer(t *testing.T, command func(addr, dir string) *exec.Cmd) {
	dir := t.TempDir()
	for _, d := range []string{"data", "meta"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	addr := freeAddress(t)
	cmd := command(addr, dir)
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			b, _ := os.ReadFile(log.Name())
			t.Logf("the server said:\n%.4000s", b)
		}
	})
	makeBucket(t, addr)
	var n atomic.Int64
	remotetest.Run(t, func(t *testing.T) remotetest.Setup {
		config, err := s3.Parse(fmt.Sprintf("s3://%s@dm-test/run%d?endpoint=http://%s&region=us-east-1", accessKey, n.Add(1), addr))
		if err != nil {
			t.Fatal(err)
		}
		config.SecretKey = secretKey
		return remotetest.Setup{
			Local: openStore,
			Open:  func(t testing.TB) remote.Remote { return openRemote(t, config) },
		}
	})
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

func openStore(t testing.TB) remote.Local {
	t.Helper()
	s, err := store.Open(context.Background(), t.TempDir(), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return remote.FromStore(s)
}

func freeAddress(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// makeBucket waits for the server and makes a bucket.
func makeBucket(t *testing.T, addr string) {
	client, err := minio.New(addr, &minio.Options{Creds: credentials.NewStaticV4(accessKey, secretKey, ""), Region: "us-east-1"})
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		err := client.MakeBucket(ctx, "dm-test", minio.MakeBucketOptions{})
		cancel()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}
