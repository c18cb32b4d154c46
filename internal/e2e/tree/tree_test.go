package tree

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func take(t *testing.T, dir string) Snapshot {
	t.Helper()
	snap, err := Take(dir)
	if err != nil {
		t.Fatal(err)
	}
	return snap
}

func everything(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := Everything(dir, 1); err != nil {
		t.Fatal(err)
	}
	return dir
}

// A copy by cp -a is identical: the comparison finds nothing where there is nothing.
func TestCopyIsIdentical(t *testing.T) {
	dir, to := everything(t), t.TempDir()
	want := take(t, dir)
	if len(want) < 600 {
		t.Fatalf("the tree has only %d names", len(want))
	}
	if out, err := exec.Command("cp", "-a", "--sparse=always", dir+"/.", to).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v\n%s", err, out)
	}
	for _, d := range Diff(want, take(t, to), 20) {
		t.Error(d)
	}
}

// Each change of one thing is found, under the name at which it was made.
func TestChangesAreFound(t *testing.T) {
	dir := everything(t)
	write := func(p string, data []byte, off int64) error {
		f, err := os.OpenFile(p, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.WriteAt(data, off)
		return err
	}
	keep := func(p string, change func() error) error { // change, with the old modification time put back
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		if err := change(); err != nil {
			return err
		}
		return unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
	}
	for _, c := range []struct {
		path   string
		change func(p string) error
	}{
		{"modes/f4755", func(p string) error { return unix.Chmod(p, 0o755) }},
		{"modes/f0644", func(p string) error { return os.Lchown(p, 0, 1) }},
		{"contents/random9437189", func(p string) error { return write(p, []byte{1}, 9437188) }},
		{"contents/zeros4096", func(p string) error { return write(p, []byte{1}, 4095) }},
		{"contents/zeros0", func(p string) error { return os.Truncate(p, 1) }},
		{"sparse/10g-empty", func(p string) error { return write(p, []byte{1}, 9<<30) }},
		{"sparse/10g-data", func(p string) error { return write(p, make([]byte, 1), 5<<30) }},
		{"times/f3", func(p string) error {
			return unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{{}, {Sec: -1, Nsec: 6}}, 0)
		}},
		{"xattrs/user", func(p string) error { return unix.Setxattr(p, "user.empty", []byte("x"), 0) }},
		{"xattrs/link", func(p string) error { return unix.Lremovexattr(p, "trusted.on-link") }},
		{"special/fifo", os.Remove},
		{"names/new\nline", func(p string) error { return os.Rename(p, p+"2") }},
	} {
		want := take(t, dir)
		p := filepath.Join(dir, c.path)
		if err := keepTime(p, c.change, keep); err != nil {
			t.Fatal(err)
		}
		found := false
		for _, d := range Diff(want, take(t, dir), 20) {
			found = found || len(d) > len(c.path) && containsQuoted(d, c.path)
		}
		if !found {
			t.Errorf("the change of %q was not found", c.path)
		}
	}
}

// keepTime makes a change; where the file still exists and its time was not the change, the time is put back.
func keepTime(p string, change func(string) error, keep func(string, func() error) error) error {
	if filepath.Base(filepath.Dir(p)) == "times" || filepath.Base(p) == "fifo" || filepath.Base(filepath.Dir(p)) == "names" {
		return change(p)
	}
	return keep(p, func() error { return change(p) })
}

func containsQuoted(line, path string) bool {
	q := Diff(Snapshot{path: {}}, Snapshot{}, 1)[0]
	q = q[:len(q)-len(" is missing")]
	return len(line) >= len(q) && line[:len(q)] == q
}

// A hard link that became a copy is found although both files have the same bytes.
func TestBrokenHardLinkIsFound(t *testing.T) {
	dir := everything(t)
	want := take(t, dir)
	p := filepath.Join(dir, "links/b/many7")
	if err := os.Remove(p); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if len(Diff(want, take(t, dir), 20)) == 0 {
		t.Error("not found")
	}
}

func TestManyIsRepeatable(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	for _, dir := range []string{a, b} {
		if err := Many(dir, 2500, 9); err != nil {
			t.Fatal(err)
		}
	}
	want, got := take(t, a), take(t, b)
	if len(want) != 2500+3+1 {
		t.Fatalf("%d names", len(want))
	}
	for _, snap := range []Snapshot{want, got} {
		for p, rec := range snap {
			rec.Sec, rec.Nsec = time.Time{}.Unix(), 0
			snap[p] = rec
		}
	}
	if d := Diff(want, got, 5); len(d) > 0 {
		t.Error(d)
	}
}
