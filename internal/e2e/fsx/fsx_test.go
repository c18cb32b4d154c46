package fsx

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Two directories of the same filesystem never differ: operations and comparison themselves are sound.
func TestHostAgreesWithItself(t *testing.T) {
	for seed := range uint64(8) {
		r := New(t.TempDir(), t.TempDir(), seed)
		for range 5 {
			if err := r.Steps(1000); err != nil {
				t.Fatal(err)
			}
			if err := r.Check(); err != nil {
				t.Fatal(err)
			}
			r.Close()
		}
	}
}

// A byte, a name or a size that changes underneath is found.
func TestDifferencesAreFound(t *testing.T) {
	for what, spoil := range map[string]func(path string) error{
		"byte": func(p string) error { return flip(p, 1) },
		"size": func(p string) error {
			f, err := os.OpenFile(p, os.O_WRONLY|os.O_APPEND, 0)
			if err == nil {
				_, err = f.Write([]byte{0})
				f.Close()
			}
			return err
		},
		"name": os.Remove,
		"link": func(p string) error { return os.Link(p, p+"x") },
	} {
		real := t.TempDir()
		r := New(real, t.TempDir(), 5)
		path := ""
		for path == "" {
			if err := r.Steps(200); err != nil {
				t.Fatal(err)
			}
			list, _ := filepath.Glob(real + "/f*")
			for _, p := range list {
				if st, err := os.Stat(p); err == nil && st.Size() > 10 {
					path = p
				}
			}
		}
		if err := r.Check(); err != nil {
			t.Fatal(err)
		}
		if err := spoil(path); err != nil {
			t.Fatal(err)
		}
		err := r.Check()
		r.Close()
		if err == nil || !strings.Contains(err.Error(), "seed 5") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func flip(p string, at int64) error {
	f, err := os.OpenFile(p, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		return err
	}
	b[0]++
	_, err = f.WriteAt(b[:], at)
	return err
}
