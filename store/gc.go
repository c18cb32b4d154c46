package store

import (
	"context"
	"maps"
	"slices"
	"time"

	"dm/internal/errs"
	"dm/object"
)

// GCOptions tune a collection. The zero value is right for most.
type GCOptions struct {
	// Waste is the share of a pack, in percent, that must be dead for the pack to be rewritten; 0: 25.
	Waste int
	// Progress is told what is being done and how far that is; total may be 0, unknown. nil: nobody is.
	Progress func(phase string, done, total int64)
}

// GCStats says what a collection did.
type GCStats struct {
	Kept           int   // objects
	Freed          int   // objects
	BytesFreed     int64 // on disk, packs only
	BytesDead      int64 // still on disk, in packs with too little of them to be rewritten or in use by a batch
	NoRoom         int64 // of the dead bytes: could not be freed because the disk is too full to write what lives beside them
	PacksRemoved   int   // with nothing alive in them
	PacksRewritten int
	Duration       time.Duration
}

const defaultWaste = 25

// GC removes every object that neither a ref, a pin nor an open batch needs, and gives back the space of packs with enough
// dead bytes in them. It may run beside everything else and may be cut short anywhere; one GC
// runs at a time. If an object that must be kept cannot be read, nothing is removed: what is behind it is not known.
//
// Marking runs beside the writers. Only the end of it, over what they have added meanwhile, and the removal from the index, a
// bounded number of objects at a time, keep them waiting. Objects that go but are the base of deltas that stay are hidden first: nothing finds them but those
// deltas, until these are stored anew.
func (s *Store) GC(ctx context.Context, opts GCOptions) (GCStats, error) {
	if opts.Waste == 0 {
		opts.Waste = defaultWaste
	}
	if opts.Progress == nil {
		opts.Progress = func(string, int64, int64) {}
	}
	if err := s.usable(); err != nil {
		return GCStats{}, err
	}
	s.collect.Lock()
	defer s.collect.Unlock()
	start := time.Now()
	g := &collection{s: s, opts: opts, mark: newMarker(s)}
	err := g.run(ctx)
	g.stats.Duration = time.Since(start)
	if err != nil {
		return g.stats, errs.New(errs.KindOf(err), "collect garbage: %w", err)
	}
	return g.stats, nil
}

// collection is one run of GC.
type collection struct {
	s    *Store
	opts GCOptions
	mark *marker
	// Candidates to go, by id: all, those that are no chunks, and the chunks.
	dead, meta []object.ID
	chunks     []deadChunk
	// needed is those of them that are bases of what stays.
	needed map[object.ID]struct{}
	stats  GCStats
	aside  bool // packs that are written anew go to quarantine
}

func (g *collection) run(ctx context.Context) error {
	g.s.noteBases(true)
	defer g.s.noteBases(false)
	if err := g.markRoots(ctx, nil); err != nil {
		return err
	}
	if err := g.candidates(ctx); err != nil {
		return err
	}
	if err := g.sweepAll(ctx); err != nil {
		return err
	}
	return g.compact(ctx)
}

// markRoots marks what is kept. tx sees refs that others cannot; nil: any state of the refs will do.
func (g *collection) markRoots(ctx context.Context, tx *Tx) error {
	var roots []object.ID
	add := func(tx *Tx) (err error) {
		if roots, err = g.mark.loadPruned(tx); err != nil {
			return err
		}
		for _, id := range tx.Refs("") {
			roots = append(roots, id)
		}
		return tx.err
	}
	var err error
	if tx != nil {
		err = add(tx)
	} else {
		err = g.s.View(add)
	}
	if err != nil {
		return err
	}
	g.s.mu.Lock()
	roots = slices.AppendSeq(roots, maps.Keys(g.s.pins))
	g.s.mu.Unlock()
	for _, id := range roots {
		if err := g.mark.walk(ctx, id, true, g.progress); err != nil {
			return err
		}
	}
	return g.mark.rest(ctx)
}

func (g *collection) progress(n int64) { g.opts.Progress("mark", n, 0) }

// marker walks from roots to everything they need.
type marker struct {
	s      *Store
	seen   map[object.ID]struct{} // with all that they need
	bare   map[object.ID]struct{} // pruned commits: the record alone, and the parents
	pruned map[object.ID]string
	todo   []visit
	track  bool        // note in late what is marked
	late   []object.ID // since the candidates were collected

	// What partial commits need is marked last, when all that must be there has been: of it, much may be missing.
	partial map[object.ID]struct{}
	later   []visit
}

// visit is an object to be looked into. Of a bare one, a pruned commit, only parents count.
type visit struct {
	kind object.Kind
	id   object.ID
	bare bool
}

// rest marks what there is of what partial commits need. What is missing may come at any time, so it is looked for again
// each time.
func (m *marker) rest(ctx context.Context) error {
	var missing []visit
	for len(m.later) > 0 {
		v := m.later[len(m.later)-1]
		m.later = m.later[:len(m.later)-1]
		m.seen[v.id] = struct{}{}
		if m.track {
			m.late = append(m.late, v.id)
		}
		if v.kind == object.KindChunk {
			continue
		}
		err := m.visitWith(ctx, v, func(kind object.Kind, id object.ID) {
			if _, ok := m.seen[id]; !ok {
				m.later = append(m.later, visit{kind: kind, id: id})
			}
		})
		switch {
		case isUnknown(err):
			missing = append(missing, v)
		case err != nil:
			return errs.WithHint(errs.New(errs.KindOf(err), "%s %s must be kept and cannot be read: %w", v.kind, v.id.Short(), err),
				"run 'dm fsck'")
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	m.later = missing
	return nil
}

func newMarker(s *Store) *marker {
	return &marker{s: s, seen: map[object.ID]struct{}{}, bare: map[object.ID]struct{}{}}
}

func (m *marker) has(id object.ID) bool {
	if _, ok := m.seen[id]; ok {
		return true
	}
	_, ok := m.bare[id]
	return ok
}

// walk marks id and all it needs. strict says that whatever is missing or damaged is an error; otherwise it is passed over.
func (m *marker) walk(ctx context.Context, id object.ID, strict bool, progress func(int64)) error {
	if _, ok := m.seen[id]; ok {
		return nil
	}
	e, ok, err := m.s.lookup(id)
	if err != nil {
		return err
	}
	if !ok {
		if strict {
			return errs.WithHint(errs.New(errs.Damaged, "object %s must be kept and is missing", id), "run 'dm fsck'")
		}
		return nil
	}
	m.push(e.kind, id, m.pruned[id] == hollow)
	for len(m.todo) > 0 {
		v := m.todo[len(m.todo)-1]
		m.todo = m.todo[:len(m.todo)-1]
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := m.visit(ctx, v); err != nil && strict {
			m.todo = nil
			return errs.WithHint(errs.New(errs.KindOf(err), "%s %s must be kept and cannot be read: %w", v.kind, v.id.Short(), err),
				"run 'dm fsck'")
		}
		if len(m.seen)%1024 == 0 {
			progress(int64(len(m.seen)))
		}
	}
	return nil
}

// push marks an object when it is first met. Chunks name nothing, so they need no visit.
func (m *marker) push(kind object.Kind, id object.ID, bare bool) {
	if _, ok := m.seen[id]; ok {
		return
	}
	if !bare {
		m.seen[id] = struct{}{}
	} else if _, ok := m.bare[id]; ok {
		return
	} else {
		m.bare[id] = struct{}{}
	}
	if m.track {
		m.late = append(m.late, id)
	}
	if kind != object.KindChunk {
		m.todo = append(m.todo, visit{kind, id, bare})
	}
}

func (m *marker) visit(ctx context.Context, v visit) error {
	return m.visitWith(ctx, v, func(kind object.Kind, id object.ID) {
		if v.bare {
			return
		}
		if _, ok := m.partial[v.id]; ok {
			m.later = append(m.later, visit{kind: kind, id: id})
		} else {
			m.push(kind, id, false)
		}
	})
}

// visitWith marks the parents of a commit and calls fn for what else an object needs.
func (m *marker) visitWith(ctx context.Context, v visit, fn func(kind object.Kind, id object.ID)) error {
	plain, ok := m.s.cache.get(v.kind, v.id)
	if !ok {
		var err error
		if plain, err = m.s.load(ctx, v.kind, v.id, m.s.lookup); err != nil {
			return err
		}
	}
	return object.References(v.kind, plain, func(r object.Reference) {
		if r.Kind == object.KindCommit {
			_, pruned := m.pruned[r.ID]
			m.push(r.Kind, r.ID, pruned)
		} else {
			fn(r.Kind, r.ID)
		}
	})
}
