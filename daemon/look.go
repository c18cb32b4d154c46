package daemon

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"

	"dm/fusefs"
	"dm/internal/errs"
	"dm/object"
	"dm/store"
	"dm/workcopy"
)

// look is a commit that is shown read-only: a working copy of its own, that nobody can write to, in scratch space.
type look struct {
	dir   string // look/ID: holds the working copy and the mount point
	copy  *workcopy.Copy
	mount *fusefs.Mount
	unpin func() // lets gc have the commit
}

// openLook shows a commit. Nothing of it is read before somebody reads it. cfg is of the working copy that shows it.
func openLook(ctx context.Context, dir string, st *store.Store, cfg workcopy.Config, id object.ID, c *object.Commit) (l *look, err error) {
	var b [8]byte
	rand.Read(b[:]) //nolint:errcheck // never fails
	l = &look{dir: filepath.Join(dir, hex.EncodeToString(b[:])), unpin: st.Pin(id)}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close(context.WithoutCancel(ctx), true))
		}
	}()
	if err := os.MkdirAll(l.mountPoint(), 0o755); err != nil {
		return l, errs.New(errs.KindOf(err), "make a mount point: %w", err)
	}
	cfg.ReadOnly = true
	l.copy, err = workcopy.Create(ctx, filepath.Join(l.dir, "copy"), cfg, id, c)
	if err != nil {
		return l, err
	}
	l.mount, err = fusefs.New(ctx, l.copy, l.mountPoint(), fusefs.Options{ReadOnly: true, Log: cfg.Log})
	return l, err
}

func (l *look) mountPoint() string { return filepath.Join(l.dir, "mnt") }

// close takes it away with its scratch space. In use: a Conflict, and it stays, unless force.
func (l *look) close(ctx context.Context, force bool) error {
	if l.mount != nil {
		err := l.mount.Unmount(ctx)
		if errs.KindOf(err) == errs.Conflict && force {
			err = errors.Join(l.mount.Lazy(), l.mount.Abort())
		}
		if err != nil {
			return err
		}
		l.mount = nil
	}
	var err error
	if l.copy != nil {
		err = l.copy.Close(ctx)
		l.copy = nil
	}
	l.unpin()
	return errors.Join(err, removeLook(l.dir))
}

// removeLook deletes a look's scratch space. The mount point goes first, by Remove: if something is mounted there after
// all, nothing is deleted.
func removeLook(dir string) error {
	if err := os.Remove(filepath.Join(dir, "mnt")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return errs.New(errs.KindOf(err), "remove scratch space: %w", err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return errs.New(errs.KindOf(err), "remove scratch space: %w", err)
	}
	return nil
}
