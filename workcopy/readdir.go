package workcopy

import (
	"context"
	"encoding/binary"
	"sort"

	"github.com/zeebo/blake3"

	"dm/object"
)

// listing is a directory's names in the order of their cookies, as they were when somebody began to read it.
type listing struct {
	dir     *node
	changes uint64
	names   []DirEntry
}

// maxListings is how many directories can be read at the same time without being merged again for each page.
const maxListings = 8

// cookie is where a name stands in its directory's listing: by its hash, as in ext4. It depends on the name alone, so a
// reader that comes back with a cookie goes on at the right place however the directory changed meanwhile, and after a
// restart of the server; no state has to be kept for it.
func cookie(name string) uint64 {
	sum := blake3.Sum256([]byte(name))
	return binary.LittleEndian.Uint64(sum[:])>>1 | 1<<62 // above those of . and .., below the sign
}

// ReadDir calls fn for the names of a directory behind the one with the given cookie; 0 is the start. It stops when fn
// says false. "." and ".." are not among them.
//
// A name that is there all the time is listed exactly once; one that comes or goes meanwhile may or may not be.
func (c *Copy) ReadDir(ctx context.Context, dir NodeID, after uint64, fn func(e DirEntry) bool) error {
	names, err := c.listing(ctx, dir, after)
	if err != nil {
		return err
	}
	start := sort.Search(len(names), func(i int) bool { return names[i].Cookie > after })
	for _, e := range names[start:] {
		if !fn(e) {
			return nil
		}
	}
	return nil
}

// listing returns a directory's names. Who goes on reading gets what the directory was when reading began, or was begun
// last: POSIX leaves open whether names that came or went meanwhile are listed.
func (c *Copy) listing(ctx context.Context, dir NodeID, after uint64) ([]DirEntry, error) {
	c.mu.RLock()
	n, err := c.getDir(dir)
	if err != nil {
		c.mu.RUnlock()
		return nil, err
	}
	changes := n.dir.changes
	c.mu.RUnlock()

	c.listMu.Lock()
	for _, l := range c.listings {
		if l.dir == n && (l.changes == changes || after != 0) {
			c.listMu.Unlock()
			return l.names, nil
		}
	}
	c.listMu.Unlock()

	l, err := c.list(ctx, n)
	if err != nil {
		return nil, err
	}
	c.listMu.Lock()
	defer c.listMu.Unlock()
	kept := []listing{l}
	for _, old := range c.listings {
		if old.dir != n && len(kept) < maxListings {
			kept = append(kept, old)
		}
	}
	c.listings = kept
	return l.names, nil
}

// list merges a directory's committed names with its overlay.
func (c *Copy) list(ctx context.Context, n *node) (listing, error) {
	for {
		c.mu.RLock()
		tree := n.dir.tree
		c.mu.RUnlock()

		var committed []DirEntry
		err := object.WalkTree(ctx, c.cfg.Source, tree, "", func(e *object.Entry) error {
			committed = append(committed, DirEntry{Name: e.Name, Ino: e.Ino, Type: e.Type()})
			return nil
		})
		if err != nil {
			return listing{}, err
		}
		l, ok := c.merge(n, tree, committed)
		if !ok {
			continue
		}
		for i := range l.names {
			l.names[i].Cookie = cookie(l.names[i].Name)
		}
		sort.Slice(l.names, func(i, j int) bool {
			a, b := &l.names[i], &l.names[j]
			return a.Cookie < b.Cookie || a.Cookie == b.Cookie && a.Name < b.Name
		})
		return l, nil
	}
}

// merge applies the overlay to the committed names; ok is false where a commit has given the directory another tree.
func (c *Copy) merge(n *node, tree object.ID, committed []DirEntry) (l listing, ok bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if n.dir.tree != tree {
		return l, false
	}
	overlay := n.changed()
	l = listing{dir: n, changes: n.dir.changes, names: make([]DirEntry, 0, len(committed)+len(overlay))}
	for _, e := range committed {
		if _, changed := overlay[e.Name]; !changed {
			l.names = append(l.names, e)
		}
	}
	for name, child := range overlay {
		if child != nil {
			l.names = append(l.names, DirEntry{Name: name, Ino: child.ino, Type: child.mode & object.ModeType})
		}
	}
	return l, true
}
