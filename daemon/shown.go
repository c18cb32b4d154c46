package daemon

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"dm/dot"
	"dm/fusefs"
	"dm/internal/errs"
)

// branches is the mounts of working copies, at mnt/.branches/ID. A working copy that was mounted stays so until its branch
// is deleted or the server ends: the mount of a branch that is no longer current shows it to whoever still has files open,
// and a checkout back to it finds it there.
type branches struct {
	dir     string // mnt/.branches
	log     *slog.Logger
	flusher *fusefs.Flusher
	cache   fusefs.Cache // of dots that do not choose

	busy keyed // by working copy id: mounting and unmounting

	mu   sync.Mutex
	open map[string]*fusefs.Mount // by working copy id
}

// cacheOf returns the cache mode of a dot's mounts. A dot may ask for less than the server offers, not for more.
func (b *branches) cacheOf(asked dot.CacheMode) fusefs.Cache {
	if asked == dot.CacheThrough {
		return fusefs.Through
	}
	return b.cache
}

// show mounts a working copy if it is not mounted, and returns where.
func (b *branches) show(ctx context.Context, wc *dot.WorkingCopy) (string, error) {
	unlock, err := b.busy.alone(ctx, wc.ID)
	if err != nil {
		return "", err
	}
	defer unlock()
	dir := filepath.Join(b.dir, wc.ID)
	if m := b.get(wc.ID); m != nil {
		if there, err := isMounted(dir); err != nil || there {
			return dir, err
		}
		// It was unmounted here, by an unmount that gave up or by somebody else, and lives on in a container.
		select {
		case <-m.Done():
			if err := m.Unmount(ctx); err != nil { // it is gone; this frees what belonged to it
				return "", err
			}
		case <-time.After(time.Second):
			return "", errs.WithHint(errs.New(errs.Conflict, "%s is still mounted in a container or another mount namespace", dir),
				"stop what uses it there and try again")
		}
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", errs.New(errs.KindOf(err), "make a mount point: %w", err)
	}
	m, err := fusefs.New(ctx, wc.Copy, dir, fusefs.Options{Cache: b.cacheOf(wc.Cache), Flusher: b.flusher, Log: b.log})
	if err != nil {
		os.Remove(dir) //nolint:errcheck // the next start removes it
		return "", err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.open[wc.ID] = m
	return dir, nil
}

func (b *branches) get(copyID string) *fusefs.Mount {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.open[copyID]
}

func (b *branches) ids() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	ids := make([]string, 0, len(b.open))
	for id := range b.open {
		ids = append(ids, id)
	}
	return ids
}

// unused is a Conflict that names the processes which have files of a working copy open: what they have read would not be
// what is there any more.
func (b *branches) unused(copyID string, n dot.Name) error {
	m := b.get(copyID)
	if m == nil {
		return nil
	}
	if users := m.DataUsers(); len(users) > 0 {
		return errs.WithHint(errs.New(errs.Conflict, "%s is in use by %s", n, strings.Join(users, ", ")),
			"stop these processes, then pull again")
	}
	return nil
}

// users names the processes which have files of a working copy open or are in a directory of it, at most ten.
func (b *branches) users(copyID string) []string {
	if m := b.get(copyID); m != nil {
		return m.Users()
	}
	return nil
}

// hide unmounts a working copy. If processes use it that is a Conflict which names them, and it stays mounted.
func (b *branches) hide(ctx context.Context, copyID string) error {
	unlock, err := b.busy.alone(ctx, copyID)
	if err != nil {
		return err
	}
	defer unlock()
	m := b.get(copyID)
	if m == nil {
		return nil
	}
	// A mount that a container has copied into its namespace lives on there: that is not waited for without end.
	ctx, cancel := context.WithTimeout(ctx, unmountGrace)
	defer cancel()
	if err := m.Unmount(ctx); err != nil {
		return err
	}
	b.forget(copyID)
	return nil
}

// detach takes the mount of a working copy away from processes that use it.
func (b *branches) detach(ctx context.Context, copyID string) error {
	unlock, err := b.busy.alone(ctx, copyID)
	if err != nil {
		return err
	}
	defer unlock()
	m := b.get(copyID)
	if m == nil {
		return nil
	}
	if err := errors.Join(m.Lazy(), m.Abort()); err != nil {
		return err
	}
	b.forget(copyID)
	return nil
}

func (b *branches) forget(copyID string) {
	b.mu.Lock()
	delete(b.open, copyID)
	b.mu.Unlock()
	// Remove, not RemoveAll: should something be mounted there after all, it must not be emptied.
	os.Remove(filepath.Join(b.dir, copyID)) //nolint:errcheck // the next start removes it
}
