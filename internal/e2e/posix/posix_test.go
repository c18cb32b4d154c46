package posix

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMain(m *testing.M) {
	RunHelper()
	os.Exit(m.Run())
}

// The host's filesystem is what the table describes.
func TestHost(t *testing.T) {
	for _, c := range Checks() {
		t.Run(c.Name, func(t *testing.T) {
			// Other users must be able to enter, which they are not below t.TempDir.
			dir, err := os.MkdirTemp("/tmp", "dmposix")
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			for _, wrong := range c.Run(dir) {
				t.Error(wrong)
			}
		})
	}
}

// A check that meets what it does not expect says so, and goes no further than it can.
func TestChecksFail(t *testing.T) {
	for _, c := range Checks() {
		// A directory that does not exist fails every system call.
		if wrong := c.Run(filepath.Join(t.TempDir(), "missing")); len(wrong) == 0 {
			t.Errorf("%s: passes where there is no filesystem", c.Name)
		}
	}
}

func TestNamesAreDistinct(t *testing.T) {
	seen := make(map[string]bool)
	for _, c := range Checks() {
		if seen[c.Name] || strings.TrimSpace(c.Name) == "" {
			t.Errorf("%q twice", c.Name)
		}
		seen[c.Name] = true
	}
}
