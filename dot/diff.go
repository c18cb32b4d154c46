package dot

import (
	"context"
	"errors"
	"path"
	"sort"
	"strings"

	"dm/object"
)

// differ compares two states path by path. Inode numbers say what was renamed; a name that has another inode than before
// counts as rewritten, unless that inode came from elsewhere.
type differ struct {
	from, to state
	changes  []Change
	gone     map[uint64][]found // by inode number, what is only on the old side so far
	come     map[uint64][]found
}

type found struct {
	path  string
	entry object.Entry
}

// diffStates returns what differs from one state to the other, by path. Its cost is that of the difference: what both
// share is not read, with one exception: the names of changed hard-linked files have to be looked for.
func diffStates(ctx context.Context, from, to state) ([]Change, error) {
	d := &differ{from: from, to: to, gone: map[uint64][]found{}, come: map[uint64][]found{}}
	if err := d.dir(ctx, from.root.Tree, to.root.Tree, "", ""); err != nil {
		return nil, err
	}
	for len(d.gone) > 0 || len(d.come) > 0 {
		if err := d.settle(ctx); err != nil {
			return nil, err
		}
	}
	if err := d.linked(ctx); err != nil {
		return nil, err
	}
	sortChanges(d.changes)
	return d.changes, nil
}

func sortChanges(changes []Change) {
	sort.SliceStable(changes, func(i, j int) bool { return changes[i].Path < changes[j].Path })
}

// dir compares a directory's two trees. What is on one side only waits for settle.
func (d *differ) dir(ctx context.Context, from, to object.ID, oldDir, newDir string) error {
	if err := errors.Join(checkPath(oldDir), checkPath(newDir)); err != nil {
		return err
	}
	return diffDir(ctx, layered{d.from.src, d.to.src}, from, to, func(o, n *object.Entry) error {
		if o != nil && n != nil && o.Ino == n.Ino && o.Type() == n.Type() {
			return d.both(ctx, found{path.Join(oldDir, o.Name), *o}, found{path.Join(newDir, n.Name), *n}, false)
		}
		if o != nil {
			d.gone[o.Ino] = append(d.gone[o.Ino], found{path.Join(oldDir, o.Name), *o})
		}
		if n != nil {
			d.come[n.Ino] = append(d.come[n.Ino], found{path.Join(newDir, n.Name), *n})
		}
		return nil
	})
}

// settle pairs what came with what went: first by inode (renamed), then by path (rewritten). The rest was removed or
// added. Directories go first, because a file may have come from, or gone to, a place inside of one.
func (d *differ) settle(ctx context.Context) error {
	for _, ino := range sortedKeys(d.come) {
		for len(d.come[ino]) > 0 && len(d.gone[ino]) > 0 && d.gone[ino][0].entry.Type() == d.come[ino][0].entry.Type() {
			o, n := d.gone[ino][0], d.come[ino][0]
			d.gone[ino], d.come[ino] = d.gone[ino][1:], d.come[ino][1:]
			if err := d.both(ctx, o, n, o.path != n.path); err != nil {
				return err
			}
		}
	}
	gone, come := takeDirs(d.gone), takeDirs(d.come)
	if len(gone) == 0 && len(come) == 0 {
		gone, come = takeAll(d.gone), takeAll(d.come)
	}
	for _, p := range sortedKeys(come) {
		n := come[p]
		o, ok := gone[p]
		var err error
		if ok && o.entry.IsDir() == n.entry.IsDir() {
			delete(gone, p)
			err = d.both(ctx, o, n, false)
		} else {
			err = d.alone(ctx, d.to, n, Added)
		}
		if err != nil {
			return err
		}
	}
	for _, p := range sortedKeys(gone) {
		if err := d.alone(ctx, d.from, gone[p], Removed); err != nil {
			return err
		}
	}
	return nil
}

// takeDirs moves the directories out of a set, by path.
func takeDirs(set map[uint64][]found) map[string]found {
	return takeIf(set, func(f found) bool { return f.entry.IsDir() })
}

func takeAll(set map[uint64][]found) map[string]found {
	return takeIf(set, func(found) bool { return true })
}

func takeIf(set map[uint64][]found, want func(found) bool) map[string]found {
	taken := map[string]found{}
	for ino, list := range set {
		var rest []found
		for _, f := range list {
			if want(f) {
				taken[f.path] = f
			} else {
				rest = append(rest, f)
			}
		}
		if set[ino] = rest; len(rest) == 0 {
			delete(set, ino)
		}
	}
	return taken
}

// alone records what is on one side only.
func (d *differ) alone(ctx context.Context, s state, f found, kind ChangeKind) error {
	full, err := s.resolve(ctx, f.entry)
	if err != nil {
		return err
	}
	d.changes = append(d.changes, Change{Kind: kind, Path: f.path, Bytes: full.Content.Size})
	if kind == Added {
		return d.dir(ctx, object.ID{}, full.Tree, f.path, f.path)
	}
	return d.dir(ctx, full.Tree, object.ID{}, f.path, f.path)
}

// both compares two entries that are the same directory, or the same file even where a symlink or a device took its place.
func (d *differ) both(ctx context.Context, o, n found, renamed bool) error {
	oldFull, err := d.from.resolve(ctx, o.entry)
	if err != nil {
		return err
	}
	newFull, err := d.to.resolve(ctx, n.entry)
	if err != nil {
		return err
	}
	if o.entry.Linked && n.entry.Linked && o.entry.Ino == n.entry.Ino && !renamed {
		return nil // the link tables tell, in linked
	}
	c, changed, err := d.compare(ctx, &oldFull, &newFull)
	if err != nil {
		return err
	}
	c.Path = n.path
	switch {
	case renamed:
		c.Kind, c.OldPath = Renamed, o.path
		d.changes = append(d.changes, c)
	case changed:
		d.changes = append(d.changes, c)
	}
	if newFull.IsDir() {
		return d.dir(ctx, oldFull.Tree, newFull.Tree, o.path, n.path)
	}
	return nil
}

// compare says whether a file or directory was modified, and by how many bytes. The times of a directory do not count:
// they change with whatever is in it.
func (d *differ) compare(ctx context.Context, o, n *object.Entry) (Change, bool, error) {
	changed := !sameAttributes(o, n) || !sameContent(o, n) || !n.IsDir() && !sameTime(o, n)
	if !changed || !n.IsRegular() {
		return Change{Kind: Modified}, changed, nil
	}
	bytes, err := object.ChangedBytes(ctx, layered{d.from.src, d.to.src}, o.Content, n.Content)
	return Change{Kind: Modified, Bytes: bytes}, true, err
}

// errFound ends a walk that has seen all it looked for.
var errFound = errors.New("all found")

// linked finds the modified files that have several names on both sides. Directories say nothing of what is in such a
// file, so its names on the new side are searched for.
func (d *differ) linked(ctx context.Context) error {
	changes := map[uint64]Change{}
	names := uint64(0)
	err := diffDir(ctx, layered{d.from.src, d.to.src}, d.from.links, d.to.links, func(o, n *object.Entry) error {
		if o == nil || n == nil {
			return nil
		}
		c, changed, err := d.compare(ctx, o, n)
		if changed {
			changes[n.Ino] = c
			names += uint64(n.Nlink)
		}
		return err
	})
	if err != nil || len(changes) == 0 {
		return err
	}
	known := map[string]bool{}
	for _, c := range d.changes {
		known[c.Path] = true
	}
	err = d.to.walk(ctx, d.to.root.Tree, "", func(p string, e *object.Entry) error {
		if c, ok := changes[e.Ino]; ok && e.Linked {
			if c.Path = p; !known[p] {
				d.changes = append(d.changes, c)
			}
			if names--; names == 0 {
				return errFound
			}
		}
		return nil
	})
	if errors.Is(err, errFound) {
		return nil
	}
	return err
}

// layered reads from the first of several sources that has an object.
type layered []object.Source

// Get implements object.Source.
func (l layered) Get(ctx context.Context, kind object.Kind, id object.ID) ([]byte, error) {
	for i, src := range l {
		if i > 0 && src == l[i-1] {
			continue
		}
		b, err := src.Get(ctx, kind, id)
		if i == len(l)-1 || err == nil || !isNotFound(err) {
			return b, err
		}
	}
	return nil, nil
}

// subdotOf returns the first name of a path.
func subdotOf(p string) string {
	name, _, _ := strings.Cut(p, "/")
	return name
}

// bySubdot sums changes up.
func bySubdot(changes []Change) []SubdotChanges {
	sums := map[string]*SubdotChanges{}
	for _, c := range changes {
		name := subdotOf(c.Path)
		s := sums[name]
		if s == nil {
			s = &SubdotChanges{Name: name}
			sums[name] = s
		}
		s.Bytes += c.Bytes
		switch c.Kind {
		case Added:
			s.Added++
		case Removed:
			s.Removed++
		case Modified:
			s.Modified++
		case Renamed:
			s.Renamed++
		}
	}
	list := make([]SubdotChanges, 0, len(sums))
	for _, s := range sums {
		list = append(list, *s)
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Name < list[j].Name })
	return list
}
