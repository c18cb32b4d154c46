package dot

import (
	"context"
	"path"
	"strings"

	"dm/internal/errs"
	"dm/object"
)

// state is a tree of files as a commit has it.
type state struct {
	src   object.Source
	root  object.Entry
	links object.ID
}

// emptyState is what is there before the first commit.
func emptyState(src object.Source) state {
	return state{src: src, root: object.Entry{Ino: 1, Mode: object.ModeDir | 0o755}}
}

func stateOf(src object.Source, c *object.Commit) state {
	return state{src: src, root: c.Root, links: c.Links}
}

// resolve returns a hard link with all that is known of its inode, and any other entry as it is.
func (s state) resolve(ctx context.Context, e object.Entry) (object.Entry, error) {
	if !e.Linked {
		return e, nil
	}
	full, ok, err := object.LookupTree(ctx, s.src, s.links, object.LinkName(e.Ino))
	switch {
	case err != nil:
		return e, err
	case !ok:
		return e, errs.New(errs.Damaged, "the link table has no inode %d, which %q stands for", e.Ino, e.Name)
	}
	full.Name = e.Name
	return full, nil
}

// size returns the bytes of all regular files.
func (s state) size(ctx context.Context) (uint64, error) {
	links, err := object.TreeTotals(ctx, s.src, s.links)
	return s.root.Totals.Bytes + links.Bytes, err
}

// cleanPath brings a user's path into the form without slashes at its ends; "" is the whole dot.
func cleanPath(p string) (string, error) {
	for part := range strings.SplitSeq(p, "/") {
		if part == ".." {
			return "", errs.New(errs.Usage, "path %q: '..' cannot stand in a path inside of a dot", p)
		}
	}
	return strings.TrimPrefix(path.Clean("/"+p), "/"), nil
}

// lookup finds a path. The entry is as its directory has it: a hard link is not resolved.
func (s state) lookup(ctx context.Context, p string) (object.Entry, error) {
	e := s.root
	if p == "" {
		return e, nil
	}
	walked := ""
	for name := range strings.SplitSeq(p, "/") {
		if !e.IsDir() {
			return e, errs.New(errs.NotFound, "%s: %s is not a directory", p, walked)
		}
		next, ok, err := object.LookupTree(ctx, s.src, e.Tree, name)
		if err != nil {
			return e, err
		}
		walked = path.Join(walked, name)
		if !ok {
			return e, errs.New(errs.NotFound, "%s: no such file or directory", walked)
		}
		e = next
	}
	return e, nil
}

// maxPath is the longest path that is gone through, in bytes: four times what Linux takes in one call. Directories may be
// nested deeper, and in a commit that somebody made up they may be so a million times; the paths of all together would take
// memory with the square of that.
const maxPath = 16 << 10

// checkPath refuses to go on below a directory with a longer path.
func checkPath(dir string) error {
	if len(dir) <= maxPath {
		return nil
	}
	return errs.WithHint(errs.New(errs.Usage, "directories are nested too deep below %.64q...: their paths have more than %d bytes",
		dir, maxPath), "'dm mount' shows them all the same")
}

// walk calls fn for everything below a directory, parents first, names in order, hard links unresolved.
func (s state) walk(ctx context.Context, tree object.ID, dir string, fn func(p string, e *object.Entry) error) error {
	if err := checkPath(dir); err != nil {
		return err
	}
	return object.WalkTree(ctx, s.src, tree, "", func(e *object.Entry) error {
		p := path.Join(dir, e.Name)
		if err := fn(p, e); err != nil {
			return err
		}
		if e.IsDir() {
			return s.walk(ctx, e.Tree, p, fn)
		}
		return nil
	})
}
