package dot

import (
	"context"
	"errors"
	"io"
	"path"
	"strings"
	"syscall"

	"dm/internal/errs"
	"dm/object"
	"dm/workcopy"
)

// Cat writes the content of a committed file. path is subdot/path.
func (d *Dots) Cat(ctx context.Context, n Name, rev, path string, w io.Writer) error {
	s, e, err := d.committed(ctx, n, rev, path)
	if err != nil {
		return err
	}
	if e, err = s.resolve(ctx, e); err != nil {
		return err
	}
	if !e.IsRegular() {
		return errs.New(errs.Usage, "%s is not a regular file", path)
	}
	return writeContent(ctx, s.src, e.Content, w)
}

// committed finds a path in a commit.
func (d *Dots) committed(ctx context.Context, n Name, rev, p string) (s state, e object.Entry, err error) {
	clean, err := cleanPath(p)
	if err != nil {
		return s, e, err
	}
	id, c, err := d.Resolve(ctx, n, rev)
	if err != nil {
		return s, e, err
	}
	s = stateOf(d.src, c)
	if e, err = s.lookup(ctx, clean); isNotFound(err) {
		err = errs.New(errs.NotFound, "commit %s has no %w", id.Short(), err)
	}
	return s, e, err
}

// zeroPage is what holes are written from. It is never changed.
var zeroPage [64 << 10]byte

// writeContent writes a file's bytes, holes as zeros.
func writeContent(ctx context.Context, src object.Source, c object.Content, w io.Writer) error {
	return object.WalkSpans(ctx, src, c, 0, func(_ uint64, s object.Span) error {
		return writeSpan(ctx, src, s, w)
	})
}

func writeSpan(ctx context.Context, src object.Source, s object.Span, w io.Writer) error {
	if s.ID.IsZero() {
		for left := s.Size; left > 0; {
			n, err := w.Write(zeroPage[:min(left, uint64(len(zeroPage)))])
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				return err
			}
			left -= uint64(n)
		}
		return nil
	}
	b, err := src.Get(ctx, object.KindChunk, s.ID)
	if err != nil {
		return err
	}
	if uint64(len(b)) != s.Size {
		return errs.New(errs.Damaged, "chunk %s has %d bytes where %d are expected", s.ID.Short(), len(b), s.Size)
	}
	_, err = w.Write(b)
	return err
}

// Restore brings back one subdot or path as a commit has it and leaves the rest of the working copy. Directories above it
// that are gone come back without what else was in them.
func (d *Dots) Restore(ctx context.Context, n Name, rev, p string) error {
	p, err := restorePath(p)
	if err != nil {
		return err
	}
	u, err := d.change(ctx, n)
	if err != nil {
		return err
	}
	defer u.done()
	n.Branch = u.name
	s, e, err := d.committed(ctx, n, rev, p)
	if err != nil {
		return err
	}
	if err := restoreParents(ctx, u.Copy, s, path.Dir(p)); err != nil {
		return err
	}
	return u.Copy.Graft(ctx, p, &e, s.links)
}

// MayRestore says whether a Restore would find each of the paths, for who has to prepare for it: of several paths all are
// restored, or none.
func (d *Dots) MayRestore(ctx context.Context, n Name, rev string, paths []string) error {
	for _, p := range paths {
		p, err := restorePath(p)
		if err != nil {
			return err
		}
		if _, _, err := d.committed(ctx, n, rev, p); err != nil {
			return err
		}
	}
	return nil
}

func restorePath(p string) (string, error) {
	p, err := cleanPath(p)
	if err == nil && p == "" {
		err = errs.WithHint(errs.New(errs.Usage, "restore needs the name of a subdot or a path in one"),
			"to bring back the whole dot use 'dm reset'")
	}
	return p, err
}

// restoreParents makes the missing ones of a path's directories, with the attributes they had.
func restoreParents(ctx context.Context, c *workcopy.Copy, s state, dir string) error {
	if dir == "." {
		return nil
	}
	id, attr, err := find(ctx, c, dir)
	switch {
	case err == nil:
		c.Forget(id, 1)
		if attr.Mode&object.ModeType != object.ModeDir {
			return errs.New(errs.Conflict, "%s is not a directory in the working copy", dir)
		}
		return nil
	case !errors.Is(err, syscall.ENOENT):
		return err
	}
	if err := restoreParents(ctx, c, s, path.Dir(dir)); err != nil {
		return err
	}
	e, err := s.lookup(ctx, dir)
	if err != nil {
		return err
	}
	e.Tree, e.Totals = object.ID{}, object.Totals{}
	return c.Graft(ctx, dir, &e, object.ID{})
}

// find looks a path up in a working copy. The node found has a kernel reference that the caller gives back.
func find(ctx context.Context, c *workcopy.Copy, p string) (id workcopy.NodeID, attr workcopy.Attr, err error) {
	id = workcopy.RootID
	for name := range strings.SplitSeq(p, "/") {
		parent := id
		id, attr, err = c.Lookup(ctx, parent, name)
		if parent != workcopy.RootID {
			c.Forget(parent, 1)
		}
		if err != nil {
			return 0, attr, err
		}
	}
	return id, attr, nil
}

// EnsureSubdot makes a subdot in the working copy if it is not there, and says whether it made it. n.Subdot may be empty:
// the default one.
func (d *Dots) EnsureSubdot(ctx context.Context, n Name) (made bool, err error) {
	name := subdotName(n)
	if err := CheckName("subdot", name); err != nil {
		return false, err
	}
	u, err := d.view(ctx, n)
	if err != nil {
		return false, err
	}
	defer u.done()
	id, attr, err := u.Copy.Lookup(ctx, workcopy.RootID, name)
	if errors.Is(err, syscall.ENOENT) {
		if err := CheckNew("subdot", name); err != nil {
			return false, err
		}
		id, attr, err = u.Copy.Make(ctx, workcopy.RootID, name, workcopy.NewInode{Mode: object.ModeDir | 0o755})
		if errors.Is(err, syscall.EEXIST) { // made by someone else just now
			return false, nil
		}
		made = err == nil
	}
	if err != nil {
		return false, err
	}
	u.Copy.Forget(id, 1)
	if attr.Mode&object.ModeType != object.ModeDir {
		return false, errs.New(errs.Conflict, "%s in dot %s is not a directory, so it cannot be a subdot", name, n.DotName())
	}
	return made, nil
}

func subdotName(n Name) string {
	if n.Subdot == "" {
		return DefaultSubdot
	}
	return n.Subdot
}

// HasSubdot says whether the working copy holds a subdot.
func (d *Dots) HasSubdot(ctx context.Context, n Name) (bool, error) {
	u, err := d.view(ctx, n)
	if err != nil {
		return false, err
	}
	defer u.done()
	id, attr, err := u.Copy.Lookup(ctx, workcopy.RootID, subdotName(n))
	if errors.Is(err, syscall.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	u.Copy.Forget(id, 1)
	return attr.Mode&object.ModeType == object.ModeDir, nil
}
