package workcopy

import (
	"fmt"
	"slices"
)

// broken says what is wrong inside of a working copy, or nil. It is called between operations.
func (c *Copy) broken() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, n := range c.nodes {
		if n.id != id || !n.stray && c.inodes[n.ino] != n {
			return fmt.Errorf("inode %d is not the node of its number", n.ino)
		}
		if _, in := c.dirty[n]; n.epoch == c.epoch && !in && !n.stray {
			return fmt.Errorf("inode %d changed and is not among the changed", n.ino)
		}
		if n.dir == nil {
			continue
		}
		for kind, names := range map[string]map[string]*node{"loaded": n.dir.loaded, "touched": n.dir.touched} {
			for name, child := range names {
				switch {
				case child == nil:
				case c.nodes[child.id] != child:
					return fmt.Errorf("%s name %s of inode %d leads to inode %d, which is not in memory", kind, name, n.ino, child.ino)
				case !slices.Contains(child.places, place{n, name}):
					return fmt.Errorf("%s name %s of inode %d leads to inode %d, which does not know", kind, name, n.ino, child.ino)
				}
			}
		}
	}
	for n := range c.dirty {
		if n.epoch != c.epoch {
			return fmt.Errorf("inode %d is among the changed and has epoch %d, not %d", n.ino, n.epoch, c.epoch)
		}
	}
	return nil
}
