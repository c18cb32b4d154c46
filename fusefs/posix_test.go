package fusefs

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"

	"dm/workcopy"
)

// newCopy returns an empty working copy.
func newCopy(t testing.TB) *workcopy.Copy {
	t.Helper()
	c, err := workcopy.Create(t.Context(), filepath.Join(t.TempDir(), "copy"), workcopy.Config{Log: slog.Default()}, [32]byte{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return c
}

func TestPosix(t *testing.T) {
	for _, cache := range []Cache{Writeback, Through} {
		t.Run(cache.String(), func(t *testing.T) {
			m := mountTest(t, newCopy(t), Options{Cache: cache, Flusher: newTestFlusher(t)})
			for name, test := range posixtest.All {
				if name == "FcntlFlockLocksFile" {
					continue // wants a conflict between two locks of one process, which POSIX does not know; fails on ext4 too
				}
				t.Run(name, func(t *testing.T) {
					dir := filepath.Join(m.Dir(), name)
					if err := os.Mkdir(dir, 0o755); err != nil {
						t.Fatal(err)
					}
					test(t, dir)
				})
			}
		})
	}
}
