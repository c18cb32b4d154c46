package dot

import (
	"context"
	"fmt"
	"sync"

	"dm/internal/errs"
	"dm/object"
	"dm/workcopy"
)

// Diff returns what differs from one state to the other, by path. An empty from is HEAD; an empty to is the working copy.
// Against HEAD the working copy knows what changed, to the block; against another commit its dirty files are chunked, as
// a commit would, but nothing is stored.
func (d *Dots) Diff(ctx context.Context, n Name, from, to string) ([]Change, error) {
	if to != "" {
		return d.diffCommits(ctx, n, from, to)
	}
	u, err := d.change(ctx, n)
	if err != nil {
		return nil, err
	}
	defer u.done()
	if from == "" || from == "HEAD" {
		return liveChanges(ctx, u.Copy)
	}
	id, c, err := d.resolve(ctx, u.branchState, from)
	if err != nil {
		return nil, err
	}
	if id == u.Copy.Head() {
		return liveChanges(ctx, u.Copy)
	}
	live, release, err := d.liveState(ctx, u.Copy)
	if err != nil {
		return nil, err
	}
	defer release()
	changes, err := diffStates(ctx, stateOf(d.src, c), live)
	return notNil(changes), err
}

func notNil(changes []Change) []Change {
	if changes == nil {
		return []Change{}
	}
	return changes
}

func (d *Dots) diffCommits(ctx context.Context, n Name, from, to string) ([]Change, error) {
	b, err := d.branch(ctx, n)
	if err != nil {
		return nil, err
	}
	_, old, err := d.resolve(ctx, b, from)
	if err != nil {
		return nil, err
	}
	_, new, err := d.resolve(ctx, b, to)
	if err != nil {
		return nil, err
	}
	changes, err := diffStates(ctx, stateOf(d.src, old), stateOf(d.src, new))
	return notNil(changes), err
}

// liveChanges asks a working copy what differs from its commit.
func liveChanges(ctx context.Context, c *workcopy.Copy) ([]Change, error) {
	changes := []Change{}
	removed := "" // the file that the change before says is gone
	err := c.Changes(ctx, func(ch workcopy.Change) error {
		kind := ChangeKind(ch.Kind)
		// Programs replace a file by renaming a new one over it: another inode, but to whoever reads the path a change.
		if kind == Added && !ch.Dir && ch.Path == removed {
			changes[len(changes)-1] = Change{Kind: Modified, Path: ch.Path, Bytes: ch.Bytes}
			return nil
		}
		if removed = ""; kind == Removed && !ch.Dir {
			removed = ch.Path
		}
		changes = append(changes, Change{Kind: kind, Path: ch.Path, OldPath: ch.OldPath, Bytes: ch.Bytes})
		return nil
	})
	sortChanges(changes)
	return changes, err
}

// liveState freezes a working copy and builds its trees and lists in memory. release ends the freeze, changing nothing.
func (d *Dots) liveState(ctx context.Context, c *workcopy.Copy) (s state, release func(), err error) {
	snap, err := c.Freeze(ctx)
	if err != nil {
		return s, nil, fmt.Errorf("freeze the working copy: %w", err)
	}
	mem := &scratch{objects: map[object.ID][]byte{}}
	built, err := d.build(ctx, snap, mem, nil, &CommitResult{})
	if err != nil {
		snap.Abort()
		return s, nil, err
	}
	return stateOf(layered{mem, d.src}, built), snap.Abort, nil
}

// scratch is a sink that keeps lists and trees in memory and of chunks nothing but their ids.
type scratch struct {
	mu      sync.Mutex
	objects map[object.ID][]byte
}

// Put implements object.Sink.
func (s *scratch) Put(_ context.Context, kind object.Kind, plain []byte) (object.ID, error) {
	id := object.Sum(kind, plain)
	if kind != object.KindChunk {
		s.mu.Lock()
		s.objects[id] = append([]byte(nil), plain...)
		s.mu.Unlock()
	}
	return id, nil
}

// PutOver implements chunkSink.
func (s *scratch) PutOver(ctx context.Context, kind object.Kind, plain []byte, _ object.ID) (object.ID, error) {
	return s.Put(ctx, kind, plain)
}

// Get implements object.Source.
func (s *scratch) Get(_ context.Context, kind object.Kind, id object.ID) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b, ok := s.objects[id]; ok {
		return b, nil
	}
	return nil, errs.New(errs.NotFound, "no %s %s", kind, id.Short())
}
