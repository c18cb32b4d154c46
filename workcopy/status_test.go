package workcopy

import (
	"fmt"
	"slices"
	"testing"

	"dm/object"
)

func (r *rig) changes() (list []string) {
	r.t.Helper()
	r.ok(r.c.Changes(r.ctx, func(ch Change) error {
		if ch.Kind == 'R' && ch.Bytes != 0 {
			r.t.Errorf("%d bytes of %s were written", ch.Bytes, ch.Path)
		}
		s := fmt.Sprintf("%c %s", ch.Kind, ch.Path)
		if ch.OldPath != "" {
			s += " from " + ch.OldPath
		}
		list = append(list, s)
		return nil
	}))
	return list
}

func (r *rig) wantChanges(want ...string) {
	r.t.Helper()
	if got := r.changes(); !slices.Equal(got, want) {
		r.t.Errorf("changes: %q, want %q", got, want)
	}
}

// TestChangesOfDirectories: a directory is listed for itself and not for the names in it, before and behind a cut.
func TestChangesOfDirectories(t *testing.T) {
	r := newRig(t)
	d := r.mkdir(RootID, "d")
	r.commit()
	r.wantChanges()
	_, _, err := r.c.Make(r.ctx, d, "f", NewInode{Mode: object.ModeRegular | 0o600})
	r.ok(err)
	r.wantChanges("+ d/f")
	s, err := r.c.Freeze(r.ctx)
	r.ok(err)
	mode := uint32(0o700)
	_, err = r.c.SetAttr(r.ctx, d, AttrChange{Mode: &mode})
	r.ok(err)
	r.wantChanges("M d", "+ d/f")
	s.Abort()
	r.wantChanges("M d", "+ d/f")
	r.commit()
	r.wantChanges()
}

// TestChangesOfRestoredDirectory: a directory was renamed and the committed one brought back beside it: all of it is new,
// whatever is done to either.
func TestChangesOfRestoredDirectory(t *testing.T) {
	r := newRig(t)
	d := r.mkdir(RootID, "d")
	sub := r.mkdir(d, "sub")
	for _, name := range []string{"a", "b"} {
		_, _, err := r.c.Make(r.ctx, sub, name, NewInode{Mode: object.ModeRegular | 0o600})
		r.ok(err)
	}
	commit, err := readCommit(r.ctx, r.b.store, r.commit())
	r.ok(err)
	e, _, err := object.LookupTree(r.ctx, r.b.store, commit.Root.Tree, "d")
	r.ok(err)
	r.ok(r.c.Rename(r.ctx, RootID, "d", RootID, "moved", 0))
	r.wantChanges("R moved from d")
	r.ok(r.c.Graft(r.ctx, "d", &e, commit.Links))
	all := []string{"+ d", "+ d/sub", "+ d/sub/a", "+ d/sub/b"}
	r.wantChanges(append(all, "R moved from d")...)
	r.ok(r.c.Unlink(r.ctx, sub, "a"))
	r.wantChanges("+ d", "+ d/sub", "- d/sub/a", "+ d/sub/a", "+ d/sub/b", "R moved from d")
	r.ok(r.c.Rename(r.ctx, sub, "b", RootID, "b", 0))
	r.wantChanges("R b from d/sub/b", "+ d", "+ d/sub", "- d/sub/a", "+ d/sub/a", "+ d/sub/b", "R moved from d")
	r.committedAsLive()
}
