package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dm/internal/e2e/tree"
)

// Any tree comes back identical: from a commit shown read-only, after a reset, after a visit to another branch, after a
// restart.
func TestRoundTrip(t *testing.T) {
	t.Run("host", func(t *testing.T) { roundTrip(t, newHostVolume(t, "sub")) })
	for _, cache := range []string{through, writeback} {
		t.Run(cache, func(t *testing.T) { roundTrip(t, newVolume(newServer(t, cache), "d", "sub", "other")) })
	}
}

func take(t *testing.T, dir string) tree.Snapshot {
	t.Helper()
	dir, err := filepath.EvalSymlinks(dir) // a dot's path is one, to the current branch
	if err != nil {
		t.Fatal(err)
	}
	snap, err := tree.Take(dir)
	if err != nil {
		t.Fatal(err)
	}
	return snap
}

func same(t *testing.T, when string, want, got tree.Snapshot) {
	t.Helper()
	for _, d := range tree.Diff(want, got, 10) {
		t.Errorf("%s: %s", when, d)
	}
}

// empty removes everything in a directory but not the directory.
func empty(t *testing.T, dir string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
}

func roundTrip(t *testing.T, v volume) {
	sub := func() string { return filepath.Join(v.path(), "sub") }
	if err := tree.Everything(sub(), 7); err != nil {
		t.Fatal(err)
	}
	mtime := []unix.Timespec{{Sec: 1}, {Sec: 1234567890, Nsec: 123456789}}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, sub(), mtime, 0); err != nil {
		t.Fatal(err)
	}
	want := take(t, sub())
	full := v.commit("everything")
	same(t, "after the commit", want, take(t, sub()))
	shown := func(when string) {
		t.Helper()
		dir, done := v.show(full)
		defer done()
		same(t, when, want, take(t, filepath.Join(dir, "sub")))
	}
	shown("the commit, shown")
	v.branch("away")
	same(t, "on a new branch", want, take(t, sub()))
	empty(t, sub())
	v.commit("nothing")
	v.branch("master")
	same(t, "back on the branch", want, take(t, sub()))
	empty(t, sub())
	v.reset(full)
	same(t, "after the reset", want, take(t, sub()))
	v.restart()
	same(t, "after a restart", want, take(t, sub()))
	v.branch("away")
	if n := len(take(t, sub())); n != 1 {
		t.Errorf("the emptied branch has %d names", n)
	}
	v.reset(full)
	same(t, "the other branch, reset to the commit", want, take(t, sub()))
	shown("the commit, shown again")
}

// A directory of the host imported into a subdot, and a commit exported to tar and unpacked, are identical to the source.
func TestImportExport(t *testing.T) {
	s := newServer(t, writeback)
	v := newVolume(s, "d")
	from := t.TempDir()
	if err := tree.Everything(from, 8); err != nil {
		t.Fatal(err)
	}
	want := take(t, from)
	s.dm("import", from, "d.sub")
	same(t, "imported", want, take(t, filepath.Join(v.path(), "sub")))
	rev := v.commit("imported")
	to := t.TempDir()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	export := s.command(ctx, "export", rev, "sub")
	untar := exec.CommandContext(ctx, "tar", "-C", to, "--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf", "-")
	pipe, err := export.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	untar.Stdin = pipe
	var complaints strings.Builder
	export.Stderr, untar.Stderr = &complaints, &complaints
	if err := export.Start(); err != nil {
		t.Fatal(err)
	}
	err = untar.Run()
	if exportErr := export.Wait(); err != nil || exportErr != nil {
		t.Fatalf("export: %v, tar: %v\n%s", exportErr, err, complaints.String())
	}
	root := to
	if _, err := os.Stat(filepath.Join(to, "sub", "modes")); err == nil {
		root = filepath.Join(to, "sub")
	}
	delete(want, "special/socket") // tar has no sockets
	same(t, "exported", want, take(t, root))
}

// Many small files come back, and a commit after touching ten of them is quick. What each step took is logged.
func TestManyFiles(t *testing.T) {
	const quick = 10 * time.Second // on a machine that does much else; alone it is a small part of a second
	files := number(t, "DM_FILES", 100_000)
	s := newServer(t, writeback)
	v := newVolume(s, "d", "sub")
	sub := filepath.Join(v.path(), "sub")
	began := time.Now()
	lap := func(what string) time.Duration {
		took := time.Since(began)
		t.Logf("%-40s %v", what, took.Round(time.Millisecond))
		began = time.Now()
		return took
	}
	if err := tree.Many(sub, files, 1); err != nil {
		t.Fatal(err)
	}
	lap("make the files")
	want := take(t, sub)
	lap("read them")
	rev := v.commit("many")
	lap("commit them")
	v.branch("other")
	if _, err := os.ReadFile(filepath.Join(sub, "d0001", "f001042")); err != nil {
		t.Fatal(err)
	}
	if took := lap("checkout -b and read one"); took > quick {
		t.Errorf("checkout -b and a first read took %v", took)
	}
	for i := range 10 {
		if err := os.WriteFile(filepath.Join(sub, "d0001", fmt.Sprintf("f00100%d", i)), []byte("touched"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	began = time.Now()
	v.commit("touched")
	if took := lap("commit ten touched files"); took > quick {
		t.Errorf("a commit of ten touched files took %v", took)
	}
	v.reset(rev)
	lap("reset")
	same(t, "after the reset", want, take(t, sub))
	lap("read them all after the reset")
	s.fsck()
	lap("fsck")
}
