package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
	"golang.org/x/sys/unix"

	"dm/internal/e2e/posix"
)

// A volume behaves as Linux promises, by our own table and by that of go-fuse.
func TestPOSIX(t *testing.T) {
	for _, cache := range []string{through, writeback} {
		t.Run(cache, func(t *testing.T) {
			v := newVolume(newServer(t, cache), "d", "sub", "other")
			for _, c := range posix.Checks() {
				t.Run(c.Name, func(t *testing.T) {
					dir := freshDir(t, filepath.Join(v.path(), "sub"))
					for _, wrong := range c.Run(dir) {
						t.Error(wrong)
					}
				})
			}
			for name, test := range posixtest.All {
				if name == "FcntlFlockLocksFile" {
					continue // wants locks of one process to conflict, as on no Linux filesystem; our table asks two
				}
				t.Run("go-fuse "+name, func(t *testing.T) { test(t, freshDir(t, filepath.Join(v.path(), "sub"))) })
			}
			t.Run("across subdots", func(t *testing.T) { acrossSubdots(t, v.path()) })
			if v.fsck(); v.commit("what the checks left") == "" {
				t.Error("no commit")
			}
		})
	}
}

func freshDir(t *testing.T, parent string) string {
	t.Helper()
	dir, err := os.MkdirTemp(parent, "check")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// acrossSubdots: inside the view of the whole dot, subdots are directories of one filesystem.
func acrossSubdots(t *testing.T, root string) {
	from, to := filepath.Join(root, "sub"), filepath.Join(root, "other")
	if err := os.MkdirAll(filepath.Join(from, "dir", "below"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(from, "dir", "below", "f"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(from, "dir"), filepath.Join(to, "dir")); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(to, "dir", "below", "f"), filepath.Join(from, "link")); err != nil {
		t.Fatal(err)
	}
	err := unix.Renameat2(unix.AT_FDCWD, filepath.Join(from, "link"), unix.AT_FDCWD, filepath.Join(to, "dir"), unix.RENAME_EXCHANGE)
	if err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(from, "link", "below", "f")); err != nil || string(data) != "x" {
		t.Errorf("%q, %v", data, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(to, "dir"), &st); err != nil || st.Nlink != 2 {
		t.Errorf("%d links, %v", st.Nlink, err)
	}
}
