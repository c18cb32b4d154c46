package e2e

import (
	"crypto/rand"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dm/internal/durable"
	"dm/internal/e2e/tree"
)

// smallDisk mounts an ext4 of that many MiB in a new directory.
func smallDisk(t *testing.T, mib int64) (base, disk string) {
	t.Helper()
	base = baseDir(t)
	image := filepath.Join(base, "image")
	disk = filepath.Join(base, "disk")
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(mib<<20), f.Close(), os.Mkdir(disk, 0o755)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-m", "0", image).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v\n%s", err, out)
	}
	// mount makes a loop device that goes with the mount.
	if out, err := exec.Command("mount", "-o", "loop", image, disk).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v\n%s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", disk).CombinedOutput(); err != nil {
			t.Errorf("umount: %v\n%s", err, out)
		}
	})
	return base, disk
}

// volumeOnSmallDisk is a volume of a server whose state is on a disk of that many MiB, with one file to be kept.
func volumeOnSmallDisk(t *testing.T, cache string, mib int64) (v *dmVolume, disk, sub string) {
	t.Helper()
	base, disk := smallDisk(t, mib)
	v = newVolume(newServerAt(t, cache, base, filepath.Join(disk, "home")), "d", "sub")
	sub = filepath.Join(v.path(), "sub")
	if err := writeRandom(filepath.Join(sub, "kept"), 4<<20); err != nil {
		t.Fatal(err)
	}
	return v, disk, sub
}

// writeRandom writes a file of n bytes and syncs it, and returns the first error of either.
func writeRandom(path string, n int) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	for ; n > 0; n -= len(buf) {
		rand.Read(buf)
		if _, err := f.Write(buf[:min(n, len(buf))]); err != nil {
			return err
		}
	}
	return f.Sync()
}

// A full disk fails what needs room, with a plain error, and nothing else: what is committed and what was written stays,
// and when there is room again everything goes on.
func TestFullDisk(t *testing.T) {
	for _, cache := range []string{through, writeback} {
		t.Run("writes "+cache, func(t *testing.T) { fullByWrites(t, cache) })
		t.Run("commit "+cache, func(t *testing.T) { fullAtCommit(t, cache) })
	}
}

// fullByWrites: the volume itself fills the disk.
func fullByWrites(t *testing.T, cache string) {
	v, _, sub := volumeOnSmallDisk(t, cache, 160)
	want := take(t, sub)
	first := v.commit("kept")
	if err := writeRandom(filepath.Join(sub, "small"), 1<<20); err != nil {
		t.Fatal(err)
	}
	small := take(t, sub)["small"]
	if err := writeRandom(filepath.Join(sub, "big"), 400<<20); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("writing more than the disk holds: %v, want ENOSPC", err)
	}
	if got := take(t, sub); got["kept"] != want["kept"] || got["small"] != small {
		t.Errorf("files changed when the disk became full")
	}
	refused(t, v, first)
	if err := os.Remove(filepath.Join(sub, "big")); err != nil {
		t.Fatalf("remove a file on the full disk: %v", err)
	}
	// The kernel says that it is done with a removed file some time after the removal.
	began := time.Now()
	for {
		if err := writeRandom(filepath.Join(sub, "again"), 4<<20); err == nil {
			break
		} else if time.Since(began) > 30*time.Second {
			t.Fatalf("write after room was made: %v", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Logf("there was room %v after the removal", time.Since(began))
	goesOn(t, v, sub, first, want)
}

// fullAtCommit: something else fills the disk, and a commit has no room for what it has to store.
func fullAtCommit(t *testing.T, cache string) {
	v, disk, sub := volumeOnSmallDisk(t, cache, 160)
	want := take(t, sub)
	first := v.commit("kept")
	if err := writeRandom(filepath.Join(sub, "dirty"), 24<<20); err != nil {
		t.Fatal(err)
	}
	dirty := take(t, sub)
	ballast := filepath.Join(disk, "ballast")
	if err := fillLeaving(disk, ballast, 6<<20); err != nil {
		t.Fatal(err)
	}
	refused(t, v, first)
	same(t, "after a commit that had no room", dirty, take(t, sub))
	v.restart() // with the disk still full
	same(t, "after a restart on a full disk", dirty, take(t, sub))
	refused(t, v, first)
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	goesOn(t, v, sub, first, want)
}

// A server that starts on a full disk shows its volumes, as who wants to make room has to get at the files. However often it
// is tried, nothing is lost.
func TestFullDiskAtStart(t *testing.T) {
	for _, cache := range []string{through, writeback} {
		for name, end := range map[string]func(*server){"stopped": (*server).stop, "killed": (*server).kill} {
			t.Run(name+" "+cache, func(t *testing.T) { fullAtStart(t, cache, end) })
		}
	}
}

func fullAtStart(t *testing.T, cache string, end func(*server)) {
	v, disk, sub := volumeOnSmallDisk(t, cache, 192) // also with a removed file that is still there
	want := take(t, sub)
	first := v.commit("kept")
	for _, name := range []string{"dirty", "large"} {
		if err := writeRandom(filepath.Join(sub, name), 24<<20); err != nil {
			t.Fatal(err)
		}
	}
	dirty, list := take(t, sub), v.dm("list", "-H")
	end(v.server)
	ballast := filepath.Join(disk, "ballast")
	if err := errors.Join(fillLeaving(disk, ballast, 1<<20), crumbs(disk)); err != nil {
		t.Fatal(err)
	}
	for i, end := range []func(*server){end, (*server).kill, (*server).stop} {
		v.start()
		same(t, "after a start on a full disk", dirty, take(t, sub))
		if got := v.dm("list", "-H"); got != list {
			t.Errorf("start %d: %q, want %q", i, got, list)
		}
		end(v.server)
		if err := crumbs(disk); err != nil { // also what the server has given back
			t.Fatal(err)
		}
	}
	v.start()
	if err := os.Remove(filepath.Join(sub, "large")); err != nil {
		t.Fatalf("remove a file on the full disk: %v", err)
	}
	dirty = take(t, sub)
	end(v.server)
	v.start()
	same(t, "after a file was removed", dirty, take(t, sub))
	if err := errors.Join(os.Remove(ballast), os.Remove(filepath.Join(disk, "crumbs")), durable.SyncDir(disk)); err != nil {
		t.Fatal(err) // ext4 gives the room back when it has written down that the file is gone
	}
	goesOn(t, v, sub, first, want)
}

// A checkout for which there is no room leaves the dot on its branch, and its path where it was.
func TestFullDiskAtCheckout(t *testing.T) {
	v, disk, sub := volumeOnSmallDisk(t, writeback, 160)
	v.commit("kept")
	if err := writeRandom(filepath.Join(sub, "more"), 1<<20); err != nil {
		t.Fatal(err)
	}
	now, branches := take(t, sub), v.dm("branch")
	ballast := filepath.Join(disk, "ballast")
	if err := errors.Join(fillLeaving(disk, ballast, 1<<20), crumbs(disk)); err != nil {
		t.Fatal(err)
	}
	if _, stderr, code := v.try("checkout", "-b", "q"); code != 1 || !strings.Contains(stderr, "space") {
		t.Errorf("a checkout on a full disk: exit code %d, %q", code, stderr)
	}
	if got := v.dm("branch"); got != branches {
		t.Errorf("branches after a checkout that had no room:\n%s\nwant:\n%s", got, branches)
	}
	same(t, "after a checkout that had no room", now, take(t, sub))
	if err := errors.Join(os.Remove(ballast), os.Remove(filepath.Join(disk, "crumbs")), durable.SyncDir(disk)); err != nil {
		t.Fatal(err)
	}
	id := v.commit("room again")
	if log := v.dm("log", "-n", "1"); !strings.Contains(log, id) {
		t.Errorf("the log after a commit: %s, want %s", log, id)
	}
	v.dm("checkout", "-b", "q")
	same(t, "on the branch that is made with room", now, take(t, filepath.Join(v.path(), "sub")))
}

// crumbs takes the last blocks of a disk, with one more file, until nothing can be written.
func crumbs(disk string) error {
	f, err := os.OpenFile(filepath.Join(disk, "crumbs"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	for block := make([]byte, 4096); err == nil; {
		if _, err = f.Write(block); err == nil {
			err = f.Sync()
		}
	}
	if errors.Is(err, unix.ENOSPC) {
		return nil
	}
	return err
}

// fillLeaving takes all room but so many bytes.
func fillLeaving(disk, ballast string, leave int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(disk, &st); err != nil {
		return err
	}
	f, err := os.Create(ballast)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Fallocate(int(f.Fd()), 0, 0, int64(st.Bavail)*st.Bsize-leave)
}

// refused: a commit says in one line that there is no room, with exit code 1, and the branch stays.
func refused(t *testing.T, v *dmVolume, head string) {
	t.Helper()
	out, stderr, code := v.try("commit", "-m", "no room")
	low := strings.ToLower(stderr)
	if code != 1 || out != "" || !strings.HasPrefix(stderr, "dm: ") || !strings.Contains(low, "space") && !strings.Contains(low, "full") {
		t.Errorf("a commit on a full disk: exit code %d, %q, %q", code, out, stderr)
	}
	if lines := strings.Count(stderr, "\n"); lines > 2 {
		t.Errorf("the error has %d lines: %s", lines, stderr)
	}
	if got := v.dm("log", "-n", "1"); !strings.Contains(got, head) {
		t.Errorf("the branch moved: %s, want %s", got, head)
	}
}

// goesOn: with room again a commit works, holds everything, and so does the old one.
func goesOn(t *testing.T, v *dmVolume, sub, first string, want tree.Snapshot) {
	t.Helper()
	now := take(t, sub)
	id := v.commit("room again")
	dir, done := v.show(id)
	same(t, "the commit made when there was room again", now, take(t, filepath.Join(dir, "sub")))
	done()
	v.fsck()
	v.reset(first)
	same(t, "after a reset to the first commit", want, take(t, sub))
}
