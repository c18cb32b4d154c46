package daemon

import (
	"context"
	"slices"

	"dm/api"
	"dm/dot"
	"dm/internal/errs"
	"dm/object"
	"dm/remote"
)

// originOf makes an origin of a request's remote.
func originOf(u dot.Upstream, rem api.Remote) dot.Origin {
	return dot.Origin{Upstream: u, URL: rem.URL, Key: rem.Key, Fingerprint: rem.Fingerprint}
}

// fetchRecords brings the records of commits, for a lazy dot. Until release is called gc leaves them alone.
func (s *server) fetchRecords(ctx context.Context, from remote.Objects, tips []object.ID, o remote.FetchOptions) (remote.Stats, func(), error) {
	known := func(id object.ID) (bool, error) { return s.dots.HasRecord(ctx, id) }
	records, st, err := remote.FetchRecords(ctx, s.local(), from, tips, known, o)
	if err != nil {
		return st, nil, err
	}
	plain := make([][]byte, len(records))
	for i := range records {
		plain[i] = records[i].Plain
	}
	release, err := s.dots.AddRecords(ctx, plain)
	return st, release, err
}

// whole returns those of commits that the store has with all they need: what package remote may take for granted.
func (s *server) whole(ids []object.ID) ([]object.ID, error) {
	var list []object.ID
	for _, id := range ids {
		has, err := s.store.Has(id)
		if err != nil {
			return nil, err
		}
		if has {
			list = append(list, id)
		}
	}
	return list, nil
}

// lazyLocal is the store as a push of a lazy dot reads it: what is not here is fetched.
type lazyLocal struct {
	remote.Local
	src object.Source
	has func(object.ID) (bool, error)
}

func (l lazyLocal) Get(ctx context.Context, kind object.Kind, id object.ID) ([]byte, error) {
	return l.src.Get(ctx, kind, id)
}

// Has says that a partial commit is here: what it needs can be read.
func (l lazyLocal) Has(id object.ID) (bool, error) { return l.has(id) }

// completeTries is how often a dot is completed that gets more commits meanwhile.
const completeTries = 5

// complete fetches all that is not here yet of a lazy dot, of all its branches and tags.
func (p *pulling) complete(ctx context.Context) error {
	p.t.on("everything")
	for try := 0; ; try++ {
		partial, err := p.s.dots.Partial(ctx, p.n)
		if err != nil {
			return err
		}
		release, err := p.fetchPartial(ctx, partial)
		if err != nil {
			return err
		}
		err = p.s.dots.Complete(ctx, p.n, partial)
		release()
		if errs.KindOf(err) == errs.Conflict && try < completeTries {
			continue
		}
		p.s.faults.changed()
		return err
	}
}

// fetchPartial brings all that partial commits need. Those that the remote does not have were made here: what is theirs
// alone is here, and what they share with others comes with those.
func (p *pulling) fetchPartial(ctx context.Context, partial []object.ID) (release func(), err error) {
	var there, own []object.ID
	for part := range slices.Chunk(partial, remote.MaxBatch) {
		gone, err := p.there.Missing(ctx, part)
		if err != nil {
			return nil, err
		}
		for _, id := range part {
			if slices.Contains(gone, id) {
				own = append(own, id)
			} else {
				there = append(there, id)
			}
		}
	}
	st, release, err := remote.Fetch(ctx, p.s.local(), p.there, there, nil, remote.FetchOptions{Progress: p.t.progress})
	p.t.add(st)
	if err != nil {
		return nil, err
	}
	if err := p.s.verifyWhole(ctx, own); err != nil {
		release()
		return nil, err
	}
	return release, nil
}

// verifyWhole says what is missing of commits, their parents aside.
func (s *server) verifyWhole(ctx context.Context, commits []object.ID) error {
	seen := map[object.ID]bool{}
	for _, id := range commits {
		var todo []object.Reference
		next := func(r object.Reference) {
			if r.Kind != object.KindCommit && !seen[r.ID] {
				seen[r.ID] = true
				todo = append(todo, r)
			}
		}
		plain, err := s.store.Get(ctx, object.KindCommit, id)
		if err == nil {
			err = object.References(object.KindCommit, plain, next)
		}
		for err == nil && len(todo) > 0 {
			r := todo[len(todo)-1]
			todo = todo[:len(todo)-1]
			if r.Kind == object.KindChunk {
				var has bool
				if has, err = s.store.Has(r.ID); err == nil && !has {
					err = errs.New(errs.NotFound, "chunk %s is not in the store", r.ID.Short())
				}
				continue
			}
			if plain, err = s.store.Get(ctx, r.Kind, r.ID); err == nil {
				err = object.References(r.Kind, plain, next)
			}
		}
		if errs.KindOf(err) == errs.NotFound {
			return errs.WithHint(errs.New(errs.Damaged, "commit %s cannot be completed: the remote does not have it, and %w", id.Short(), err),
				"pull --complete from a remote that has it")
		}
		if err != nil {
			return err
		}
	}
	return nil
}
