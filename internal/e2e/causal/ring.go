// Package causal finds out whether a copy of several directories shows them at one instant.
//
// A ring is a set of processes that go round all subdots taking numbered steps, one after the other: step s begins only
// after step s-1 has returned, in whatever process. Each step changes one file in one subdot in one way (overwrite, append,
// create, rename over, truncate, store through a mapping, O_DIRECT ...) so that what is left tells s. The steps cycle
// through slots, one per way and subdot, so each slot always shows the last step that it got:
//
//	slot of step s     s mod (kinds × subdots)
//	subdot of slot i   i mod subdots
//	kind of slot i     i / subdots
//
// A state is real if there is a step m such that every slot shows its last step up to m. Check takes m to be the latest
// step that shows anywhere; a slot that shows less than its last step up to m is an effect without its cause. Only the
// step in progress may be half there.
package causal

import (
	"fmt"
	"path/filepath"
	"slices"
)

// Kind is a way to change a file.
type Kind int

// The kinds.
const (
	Write    Kind = iota // overwrite two blocks in place
	Append               // O_APPEND a record
	Create               // O_EXCL a new name, which Unlink removes later in the round
	Grow                 // ftruncate to a larger size
	Unlink               // remove the name that Create made
	Rename               // rename a file within its directory
	Replace              // write a new file and rename it over the old one
	Shrink               // ftruncate to a smaller size
	Map                  // store through a shared mapping, then msync
	Direct               // overwrite a block with O_DIRECT
	Move                 // rename a directory from subdot to subdot
	SetXattr             // set an extended attribute
	SetTime              // set the modification time
	kinds
)

var kindNames = [kinds]string{
	"write", "append", "create", "grow", "unlink", "rename", "replace", "shrink", "map", "direct", "move", "xattr", "time",
}

func (k Kind) String() string { return kindNames[k] }

// AllKinds returns every kind, in the order in which a ring takes them.
func AllKinds() []Kind {
	all := make([]Kind, kinds)
	for i := range all {
		all[i] = Kind(i)
	}
	return all
}

// Ring describes a ring. Its files are in a directory of its name in each subdot.
type Ring struct {
	Name    string
	Subdots []string
	Kinds   []Kind // Unlink needs Create before it
}

// shrinkFrom is the size from which Shrink's sizes count down.
const shrinkFrom = 1 << 30

func (r *Ring) period() int64 { return int64(len(r.Kinds) * len(r.Subdots)) }

func (r *Ring) slot(step int64) int { return int(step % r.period()) }

func (r *Ring) kind(slot int) Kind { return r.Kinds[slot/len(r.Subdots)] }

func (r *Ring) subdot(slot int) string { return r.Subdots[slot%len(r.Subdots)] }

// last returns the last step up to m that slot got, negative if none.
func (r *Ring) last(slot int, m int64) int64 {
	return m - (m-int64(slot)+r.period())%r.period()
}

// first returns the slot of a kind in the first subdot.
func (r *Ring) first(k Kind) int { return slices.Index(r.Kinds, k) * len(r.Subdots) }

// created returns the step at which Create made the name that the Unlink of the given step removes.
func (r *Ring) created(unlink int64) int64 {
	return unlink - int64(r.first(Unlink)-r.first(Create))
}

// movedBefore returns the step that moved the directory before the Move of the given step did.
func (r *Ring) movedBefore(step int64) int64 {
	if r.slot(step) > r.first(Move) {
		return step - 1
	}
	return step - r.period() + int64(len(r.Subdots)) - 1
}

// dir returns the directory of a slot's files below root.
func (r *Ring) dir(root string, slot int) string {
	return filepath.Join(root, r.subdot(slot), r.Name)
}

func (r *Ring) describe(slot int) string {
	return fmt.Sprintf("%s in %s", r.kind(slot), r.subdot(slot))
}
