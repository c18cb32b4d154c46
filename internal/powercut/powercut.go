// Package powercut gives tests a disk whose power can be cut: an ext4 filesystem in a file, shut down as ext4's own crash
// tests do it (the ioctl EXT4_IOC_SHUTDOWN without flushing its journal). It needs root, mkfs.ext4 and loop devices.
package powercut

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Disk is a mounted filesystem that can lose its power.
type Disk struct {
	Dir string // where it is mounted

	t     testing.TB
	image string
}

// NewDisk makes and mounts a disk of size bytes, which goes with the test.
func NewDisk(t testing.TB, size int64) *Disk {
	t.Helper()
	d := &Disk{Dir: t.TempDir(), t: t, image: filepath.Join(t.TempDir(), "image")}
	if err := os.WriteFile(d.image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(d.image, size); err != nil {
		t.Fatal(err)
	}
	d.run("mkfs.ext4", "-q", "-F", d.image)
	t.Cleanup(func() { unix.Unmount(d.Dir, unix.MNT_DETACH) })
	d.mount()
	return d
}

func (d *Disk) run(name string, args ...string) {
	d.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		d.t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

func (d *Disk) mount() {
	d.t.Helper()
	d.run("mount", "-o", "loop", d.image, d.Dir)
}

// Cut takes the power away: every later access fails, and what was not synced is lost. It may be called from any goroutine.
func (d *Disk) Cut() {
	d.t.Helper()
	const ext4Shutdown, noLogFlush = 0x8004587d, 2
	f, err := os.Open(d.Dir)
	if err != nil {
		d.t.Error(err)
		return
	}
	defer f.Close()
	if err := d.check(f); err != nil {
		d.t.Errorf("cut the power: %v", err)
		return
	}
	if err := unix.IoctlSetPointerInt(int(f.Fd()), ext4Shutdown, noLogFlush); err != nil {
		d.t.Errorf("cut the power: %v", err)
	}
}

// check fails if f is not on the disk: where that is not mounted the path leads to the host's own filesystem, and the cut
// would shut that down.
func (d *Disk) check(f *os.File) error {
	var disk, host unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &disk); err != nil {
		return err
	}
	if err := unix.Stat(filepath.Dir(d.Dir), &host); err != nil {
		return err
	}
	if disk.Dev == host.Dev {
		return fmt.Errorf("no disk is mounted at %s", d.Dir)
	}
	return nil
}

// Restart mounts the filesystem again after Cut. Whoever had a file of it open must have closed it, or be about to.
func (d *Disk) Restart() {
	d.t.Helper()
	for try := 0; ; try++ {
		err := unix.Unmount(d.Dir, 0)
		if err == nil {
			break
		}
		if try == 1000 { // 10 s: on a busy machine who had a file open takes a while to close it
			d.t.Fatalf("unmount: %v", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	// Another mount namespace that was made meanwhile, a container's, may still hold the filesystem that was shut down, and
	// mounting the same image would show just that.
	next := d.image + "+"
	d.run("cp", "--sparse=always", d.image, next)
	if err := os.Remove(d.image); err != nil {
		d.t.Fatal(err)
	}
	d.image = next
	d.mount()
}

// CommitNames makes durable what the filesystem has been told of names and sizes, but not the bytes of files.
func (d *Disk) CommitNames() {
	d.t.Helper()
	f, err := os.Create(filepath.Join(d.Dir, "unrelated"))
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		d.t.Fatal(err)
	}
}
