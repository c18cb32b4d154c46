package remote

import (
	"context"
	"fmt"
	"strings"

	"dm/internal/errs"
	"dm/object"
)

// Push is a branch or tag to be pushed.
type Push struct {
	Ref string    // at the remote
	Tip object.ID // the local commit
	// Force moves a ref that has diverged, if it is where this machine last saw it.
	Force    bool
	LastSeen object.ID
	// Stash keeps what has diverged at the remote, as another branch there.
	Stash bool
	Send  SendOptions
}

// Pushed says what a push did.
type Pushed struct {
	Stats
	Old, New object.ID // of the ref; equal: it was up to date
	Stashed  string    // the ref that keeps what has diverged; empty: none
}

// PushRef sends a commit and moves a ref to it, forward only unless told otherwise: Conflict where the two have diverged, or
// somebody else moved the ref meanwhile.
func PushRef(ctx context.Context, local Local, to Dot, p Push) (res Pushed, err error) {
	if err := CheckRef(p.Ref); err != nil {
		return res, err
	}
	refs, err := to.Refs(ctx)
	if err != nil {
		return res, err
	}
	cur := refs[p.Ref]
	res.Old, res.New = cur, cur
	if cur == p.Tip {
		return res, nil
	}
	diverged, err := mayMove(ctx, local, cur, &p)
	if err != nil {
		return res, err
	}
	var haves []object.ID
	for _, id := range refs {
		if ok, err := hasRecord(ctx, local, id); err != nil {
			return res, err
		} else if ok {
			haves = append(haves, id)
		}
	}
	if res.Stats, err = Send(ctx, local, to, []object.ID{p.Tip}, haves, p.Send); err != nil {
		return res, err
	}
	if diverged && p.Stash {
		kind, name, _ := strings.Cut(p.Ref, "/")
		stash := kind + "/" + StashName(name, cur)
		if refs[stash] != cur {
			if err := to.Move(ctx, stash, refs[stash], cur); err != nil {
				return res, fmt.Errorf("keep what has diverged as %s: %w", stash, err)
			}
		}
		res.Stashed = stash
	}
	if err := to.Move(ctx, p.Ref, cur, p.Tip); err != nil {
		if errs.KindOf(err) == errs.Conflict {
			err = errs.WithHint(err, "somebody pushed at the same time; pull, then push again")
		}
		return res, err
	}
	res.New = p.Tip
	return res, nil
}

// StashName is the name of the branch or tag that keeps a commit of another one that has diverged, cut where it would be too
// long.
func StashName(name string, at object.ID) string {
	suffix := "-diverged-" + at.Short()
	return name[:min(len(name), maxName-len(suffix))] + suffix
}

// hasRecord says whether a commit's record is here. What the commit needs may have been given up, or be at a remote: to tell
// how histories stand to each other the records are enough.
func hasRecord(ctx context.Context, src object.Source, id object.ID) (bool, error) {
	_, err := readCommit(ctx, src, id)
	if errs.KindOf(err) == errs.NotFound {
		return false, nil
	}
	return err == nil, err
}

// mayMove says whether a push may move a ref that is at cur. diverged says that it gives up commits there.
func mayMove(ctx context.Context, local Local, cur object.ID, p *Push) (diverged bool, err error) {
	if cur.IsZero() {
		return false, nil
	}
	rel := Diverged
	if known, err := hasRecord(ctx, local, cur); err != nil {
		return false, err
	} else if known {
		if rel, err = Relate(ctx, local, p.Tip, cur); err != nil {
			return false, err
		}
	}
	name := p.Ref[strings.Index(p.Ref, "/")+1:]
	if strings.HasPrefix(p.Ref, Tags) && !p.Force {
		return false, errs.WithHint(errs.New(errs.Conflict, "tag %s is at commit %s there, at %s here", name, cur.Short(), p.Tip.Short()),
			"use another name, or --force")
	}
	switch {
	case rel == Ahead || p.Stash:
		return rel != Ahead, nil
	case p.Force && cur == p.LastSeen:
		return true, nil
	case p.Force:
		return false, errs.WithHint(errs.New(errs.Conflict, "branch %s is at commit %s there, which is not where it was last seen (%s)",
			name, cur.Short(), nameOf(p.LastSeen)), "pull to see what is there; --force moves only what was seen")
	case rel == Behind:
		return false, errs.WithHint(errs.New(errs.Conflict, "branch %s is ahead there: it is at commit %s, here at %s",
			name, cur.Short(), p.Tip.Short()), "pull first")
	}
	return false, errDiverged(name, p.Tip, cur, "keep theirs as another branch with 'dm push --stash-on-divergence', or yours with 'dm pull --stash-on-divergence'")
}

func errDiverged(branch string, here, there object.ID, hint string) error {
	return errs.WithHint(errs.New(errs.Conflict, "branch %s has diverged: it is at commit %s here and at commit %s there", branch,
		here.Short(), there.Short()), "%s", hint)
}

// ErrDiverged is the error of a pull that cannot move a branch forward.
func ErrDiverged(branch string, here, there object.ID) error {
	return errDiverged(branch, here, there, "keep yours as another branch with 'dm pull --stash-on-divergence'")
}
