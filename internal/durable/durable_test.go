package durable

import (
	"os"
	"path/filepath"
	"testing"
)

func TestWriteFileReplacesWhole(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, content := range []string{"first, the longer one", "second", ""} {
		if err := WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != content {
			t.Fatalf("read %q, %v; want %q", got, err, content)
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
	if names, _ := os.ReadDir(dir); len(names) != 1 {
		t.Errorf("temporary files left behind: %v", names)
	}
}

func TestWriteFileFailsClean(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "d") // a directory that is not empty cannot be replaced by a file
	if err := MkdirAll(filepath.Join(target, "x", "y"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(target, []byte("x"), 0o600); err == nil {
		t.Fatal("replaced a directory")
	}
	if names, _ := os.ReadDir(dir); len(names) != 1 {
		t.Errorf("temporary files left behind: %v", names)
	}
	if err := Remove(filepath.Join(target, "nothing")); err != nil {
		t.Errorf("removing what is not there: %v", err)
	}
}
