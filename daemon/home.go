package daemon

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"dm/internal/durable"
	"dm/internal/errs"
)

// homeFormat is the version of the state directory's layout; a newer one is refused.
const homeFormat = 1

// The names in a state directory.
const (
	identityFile = "server.json"
	lockFile     = "lock"
	logFile      = "dm.log"
	storeDir     = "store"
	workDir      = "work"
	lookDir      = "look"
	cacheDir     = "cache"
	mountsFile   = "mounts.json"
	mountDir     = "mnt"
	branchesDir  = ".branches" // in mountDir
	volumesDir   = ".volumes"  // in mountDir
	volumesFile  = "volumes.json"
	stoppedFile  = "stopped.json"
	pluginFile   = "docker-plugin"
	spareFile    = "spare"
)

// identity is the content of server.json.
type identity struct {
	Format  int       `json:"format"`
	ID      string    `json:"id"` // 16 hex digits
	Created time.Time `json:"created"`
}

// home is a state directory that this process has locked.
type home struct {
	dir  string
	id   identity
	lock *os.File
}

// path returns the path of something in the state directory.
func (h *home) path(elem ...string) string {
	return filepath.Join(append([]string{h.dir}, elem...)...)
}

// openHome locks the state directory dir and makes what is missing in it.
func openHome(dir string) (*home, error) {
	if err := durable.MkdirAll(dir, 0o711); err != nil {
		return nil, errs.WithHint(errs.New(errs.KindOf(err), "make the state directory: %w", err),
			"choose another with DM_HOME or --home")
	}
	// The kernel writes what is mounted without symlinks, and so does everything here that compares with it.
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, errs.New(errs.KindOf(err), "find the state directory: %w", err)
	}
	lock, err := lockHome(dir)
	if err != nil {
		return nil, err
	}
	h := &home{dir: dir, lock: lock}
	if err := errors.Join(h.freeSpare(), h.fill()); err != nil {
		h.close()
		return nil, err
	}
	return h, nil
}

// fill reads what is in the state directory and makes what is missing.
func (h *home) fill() (err error) {
	if h.id, err = readIdentity(h.path(identityFile)); err != nil {
		return err
	}
	for name, perm := range map[string]os.FileMode{storeDir: 0o700, workDir: 0o700, lookDir: 0o700, cacheDir: 0o700, mountDir: 0o755} {
		if err := os.MkdirAll(h.path(name), perm); err != nil {
			return errs.New(errs.KindOf(err), "make the state directory: %w", err)
		}
	}
	for _, name := range []string{branchesDir, volumesDir} {
		if err := os.MkdirAll(h.path(mountDir, name), 0o755); err != nil {
			return errs.New(errs.KindOf(err), "make the state directory: %w", err)
		}
	}
	return durable.SyncDir(h.dir)
}

// close lets another server have the state directory. The lock file stays: to remove it would let two servers lock two
// files of the same name.
func (h *home) close() { h.lock.Close() }

// lockHome locks dir for this process, or says who has it.
func lockHome(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, errs.New(errs.KindOf(err), "lock the state directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errs.New(errs.Internal, "lock the state directory %s: %w", dir, err)
		}
		return nil, errs.WithHint(errs.New(errs.Conflict, "another dm server%s runs on %s", lockOwner(f), dir),
			"use that one, stop it with 'dm cluster stop', or choose another directory with DM_HOME or --home")
	}
	pid := strconv.Itoa(os.Getpid()) + "\n"
	// Written over, not cut off first: a full disk gives no block for it a second time.
	if err := errors.Join(writeAt(f, pid), f.Truncate(int64(len(pid)))); err != nil {
		f.Close()
		return nil, errs.New(errs.KindOf(err), "write the lock of the state directory: %w", err)
	}
	return f, nil
}

func writeAt(f *os.File, s string) error {
	_, err := f.WriteAt([]byte(s), 0)
	return err
}

// lockOwner returns " (pid N)" of the process that wrote the lock file, or "".
func lockOwner(f *os.File) string {
	b := make([]byte, 32)
	n, _ := f.ReadAt(b, 0)
	pid, err := strconv.Atoi(strings.TrimSpace(string(b[:n])))
	if err != nil {
		return ""
	}
	return fmt.Sprintf(" (pid %d)", pid)
}

// readIdentity reads server.json, or makes it for a new state directory.
func readIdentity(path string) (identity, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		// The store of a hub is the hub's: each of the two would free what only the other reaches.
		if _, err := os.Lstat(filepath.Join(filepath.Dir(path), "hub.db")); err == nil {
			return identity{}, errs.WithHint(errs.New(errs.Conflict, "%s is the state directory of a hub", filepath.Dir(path)),
				"give the server one of its own with DM_HOME or --home")
		}
		return newIdentity(path)
	}
	if err != nil {
		return identity{}, errs.New(errs.KindOf(err), "read the server's identity: %w", err)
	}
	var id identity
	if err := json.Unmarshal(text, &id); err != nil || id.Format < 1 || len(id.ID) != 16 {
		return identity{}, errs.WithHint(errs.New(errs.Damaged, "%s is not what dm wrote", path),
			"move it away: a new one is made and nothing else is touched, but the server gets a new id")
	}
	if id.Format > homeFormat {
		return identity{}, errs.WithHint(errs.New(errs.Conflict, "the state directory %s has format %d, this dm knows up to %d",
			filepath.Dir(path), id.Format, homeFormat), "use the newer dm that wrote it")
	}
	return id, nil
}

func newIdentity(path string) (identity, error) {
	var b [8]byte
	rand.Read(b[:]) //nolint:errcheck // never fails
	id := identity{Format: homeFormat, ID: hex.EncodeToString(b[:]), Created: time.Now().UTC()}
	text, err := json.Marshal(id)
	if err != nil {
		return id, errs.New(errs.Internal, "encode the server's identity: %w", err)
	}
	if err := durable.WriteFile(path, append(text, '\n'), 0o600); err != nil {
		return id, errs.New(errs.KindOf(err), "write the server's identity: %w", err)
	}
	return id, nil
}
