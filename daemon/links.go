package daemon

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"dm/dot"
	"dm/internal/errs"
)

// links is the symlinks mnt/NAMESPACE/DOT and mnt/NAMESPACE/DOT@BRANCH, which lead to the mounts of working copies. A path
// through the former stays the same over a checkout. They are made anew at every start.
type links struct{ dir string } // mnt

func (l links) path(n dot.Name) string {
	name := n.Dot
	if n.Branch != "" {
		name += "@" + n.Branch
	}
	return filepath.Join(l.dir, n.Namespace, name)
}

// set makes or replaces the link of a dot, or of one of its branches if n has one. Whoever looks sees the old or the new.
func (l links) set(n dot.Name, copyID string) error {
	path := l.path(n)
	want := filepath.Join("..", branchesDir, copyID)
	if have, err := os.Readlink(path); err == nil && have == want {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return errs.New(errs.KindOf(err), "show dot %s: %w", n, err)
	}
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errs.New(errs.KindOf(err), "show dot %s: %w", n, err)
	}
	if err := errors.Join(os.Symlink(want, tmp), os.Rename(tmp, path)); err != nil {
		return errs.New(errs.KindOf(err), "show dot %s: %w", n, err)
	}
	return nil
}

// get returns the working copy that a link leads to, or "".
func (l links) get(n dot.Name) string {
	target, err := os.Readlink(l.path(n))
	if err != nil {
		return ""
	}
	return filepath.Base(target)
}

// remove takes away the link of a dot or branch.
func (l links) remove(n dot.Name) error {
	if err := os.Remove(l.path(n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errs.New(errs.KindOf(err), "hide dot %s: %w", n, err)
	}
	return nil
}

// removeDot takes away the links of a dot and of its branches.
func (l links) removeDot(n dot.Name) error {
	n.Branch = ""
	matches, err := filepath.Glob(l.path(n) + "@*")
	if err != nil {
		return errs.New(errs.Internal, "hide dot %s: %w", n, err)
	}
	errAll := l.remove(n)
	for _, m := range matches {
		if err := os.Remove(m); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errAll = errors.Join(errAll, err)
		}
	}
	return errAll
}

// clear removes all links and the empty directories they were in; it removes nothing else.
func (l links) clear() error {
	namespaces, err := os.ReadDir(l.dir)
	if err != nil {
		return errs.New(errs.KindOf(err), "clear the mount directory: %w", err)
	}
	for _, ns := range namespaces {
		if ns.Name() == branchesDir || ns.Name() == volumesDir {
			continue
		}
		dir := filepath.Join(l.dir, ns.Name())
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue // a file somebody left there: not ours
		}
		for _, e := range entries {
			if e.Type()&fs.ModeSymlink != 0 {
				os.Remove(filepath.Join(dir, e.Name())) //nolint:errcheck // set replaces what is left
			}
		}
		os.Remove(dir) //nolint:errcheck // not empty: not only ours
	}
	return nil
}
