package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"dm/internal/errs"
)

// bindHelper is the name under which this program runs as the helper that binds.
//
// A bind mount begins with a look-up of its source, which the server answers itself. A process that waits for its own
// mount and is killed can hang in exit for ever, so a short-lived child makes it.
const bindHelper = "dm-bind"

// runBind is the helper: arguments are source directory, subdot ("" for the source itself), target, "ro" or "rw".
// It replaces what is bound at the target if the fifth argument is "replace". It writes the target's path without symlinks
// to stdout. Errors go to stderr, with their errno as the exit code.
func runBind(args []string) int {
	if len(args) != 5 {
		fmt.Fprintf(os.Stderr, "%s needs 5 arguments", bindHelper)
		return int(unix.EINVAL)
	}
	if err := bindOnce(args[0], args[1], args[2], args[3] == "ro", args[4] == "replace"); err != nil {
		fmt.Fprint(os.Stderr, err)
		var errno syscall.Errno
		if errors.As(err, &errno) {
			return int(errno)
		}
		return int(unix.EIO)
	}
	return 0
}

func bindOnce(source, subdot, target string, readOnly, replace bool) error {
	// The subdot's name comes from the user and its content from whoever writes to the dot: it must not lead outside.
	from, err := openInside(source, subdot)
	if err != nil {
		return fmt.Errorf("open %s in %s: %w", subdot, source, err)
	}
	defer unix.Close(from)
	if replace {
		if err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %s: %w", target, err)
		}
	}
	to, err := unix.Open(target, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", target, err)
	}
	defer unix.Close(to)
	path, err := os.Readlink(fdPath(to))
	if err != nil {
		return fmt.Errorf("find out where %s is: %w", target, err)
	}
	fmt.Fprint(os.Stdout, path)
	if err := unix.Mount(fdPath(from), fdPath(to), "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount at %s: %w", target, err)
	}
	if !readOnly {
		return nil
	}
	// A bind is made read-only by a second step, on the mount that the first put over the target.
	if err := unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		return errors.Join(fmt.Errorf("make the mount at %s read-only: %w", target, err), unix.Unmount(target, unix.MNT_DETACH))
	}
	return nil
}

// openInside opens a directory directly in dir, or dir itself where name is empty, without following symlinks.
func openInside(dir, name string) (int, error) {
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil || name == "" {
		return root, err
	}
	defer unix.Close(root)
	return unix.Openat(root, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

func fdPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// bind shows the subdot of what is mounted at source at target.
func bind(ctx context.Context, source, subdot, target string, readOnly, replace bool) (mountPoint, error) {
	mode, how := "rw", "new"
	if readOnly {
		mode = "ro"
	}
	if replace {
		how = "replace"
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = []string{bindHelper, source, subdot, target, mode, how}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err == nil {
		at, err := mountsAt(stdout.String())
		if err != nil || len(at) == 0 {
			return mountPoint{}, err
		}
		return at[len(at)-1], nil
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() < 1 {
		return mountPoint{}, errs.New(errs.Internal, "run the helper that mounts: %w", err)
	}
	errno := syscall.Errno(exit.ExitCode())
	kind := errs.KindOf(errno)
	if errno == unix.ENOTDIR || errno == unix.ELOOP {
		kind = errs.Usage
	}
	return mountPoint{}, errs.New(kind, "%s", strings.TrimSpace(stderr.String()))
}
