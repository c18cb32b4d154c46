package remote

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"

	"dm/internal/errs"
	"dm/object"
	"dm/store/pack"
)

// SendOptions tune Send. The zero value is right for most.
type SendOptions struct {
	PackBytes int            // a pack is sent when it has this size; 0: 4 MiB
	Parallel  int            // packs of chunks on their way at a time; 0: 2
	Progress  func(Progress) // told now and then, never twice at a time; may be nil
}

const (
	// What is on its way when a push is killed is sent again: two packs that are together as large as one need be for the
	// bandwidth.
	defaultPack     = 4 << 20
	defaultParallel = 2

	// MaxChain is the longest chain of deltas made at a remote.
	MaxChain = 8

	// maxPlain bounds what a pack unpacks to, in bytes: who receives it has to.
	maxPlain = 256 << 20

	// askEvery is after how many chunks found the remote is asked which of them are missing.
	askEvery = 4096
)

// Send makes sure that the remote has the commits of tips with all that they need, history included. haves are commits that
// it has. What arrived before an error stays there, and the next Send sends only the rest.
func Send(ctx context.Context, local Local, to Objects, tips, haves []object.ID, o SendOptions) (Stats, error) {
	if o.PackBytes == 0 {
		o.PackBytes = defaultPack
	}
	if o.Parallel == 0 {
		o.Parallel = defaultParallel
	}
	codec, err := pack.NewCodec(pack.Fast)
	if err != nil {
		return Stats{}, err
	}
	defer codec.Close()
	s := &sender{
		local: local, to: to, opts: o, codec: codec, meter: meter{tell: o.Progress},
		commits: map[object.ID]*object.Commit{}, flying: map[object.ID]struct{}{}, room: make(chan struct{}, o.Parallel),
	}
	s.b = newBuilder(o.PackBytes)
	s.group, ctx = errgroup.WithContext(ctx)
	err = s.run(ctx, tips, haves)
	if werr := s.group.Wait(); werr != nil {
		err = werr // what ended the run was that its context ended
	}
	return s.meter.total(), err
}

// sender is one run of Send. Its own goroutine walks and packs; those of group send.
type sender struct {
	local   Local
	to      Objects
	opts    SendOptions
	codec   *pack.Codec
	meter   meter
	commits map[object.ID]*object.Commit

	seen       idSet // what the walk has met
	candidates []node
	metas      []node // lists, trees and commits, what they need before them
	b          *builder

	group *errgroup.Group
	room  chan struct{} // one for each pack on its way

	mu     sync.Mutex
	flying map[object.ID]struct{} // in packs on their way
	there  idSet                  // at the remote
}

func (s *sender) run(ctx context.Context, tips, haves []object.ID) error {
	missing, err := s.missingCommits(ctx, tips, haves)
	if err != nil || len(missing) == 0 {
		return err
	}
	for _, id := range missing {
		if ok, err := s.local.Has(id); err != nil {
			return err
		} else if !ok {
			return errs.WithHint(errs.New(errs.Conflict, "commit %s of the history was pruned before this remote had it: its content is gone",
				id.Short()), "push from a machine that has it; a remote that was pushed to before the prune takes what came after it")
		}
		if err := s.walkCommit(ctx, id); err != nil {
			return fmt.Errorf("walk commit %s: %w", id.Short(), err)
		}
	}
	// Few objects are asked for all at once.
	if len(s.metas)+len(s.candidates) <= MaxBatch {
		rest, err := s.missing(ctx, append(s.candidates, s.metas...))
		if err != nil {
			return err
		}
		return s.sendRest(ctx, rest, true)
	}
	if err := s.flushCandidates(ctx); err != nil {
		return err
	}
	return s.sendRest(ctx, s.metas, false)
}

// sendRest sends what is left: perhaps chunks, then lists, trees and commits. A pack with such goes out when all before it
// are there. asked says that the remote was asked for all of them.
func (s *sender) sendRest(ctx context.Context, rest []node, asked bool) error {
	for len(rest) > 0 {
		n := min(len(rest), MaxBatch)
		batch := rest[:n]
		rest = rest[n:]
		if !asked {
			var err error
			if batch, err = s.missing(ctx, batch); err != nil {
				return err
			}
		}
		for i := range batch {
			if batch[i].Kind != object.KindChunk {
				if err := s.land(ctx); err != nil {
					return err
				}
			}
			if err := s.pack(ctx, &batch[i]); err != nil {
				return err
			}
		}
	}
	if err := s.land(ctx); err != nil {
		return err
	}
	if err := s.flush(ctx); err != nil {
		return err
	}
	return s.land(ctx)
}

// walkCommit finds what a commit has that its parents have not.
func (s *sender) walkCommit(ctx context.Context, id object.ID) error {
	c := s.commits[id]
	var parents []*object.Commit
	for _, p := range c.Parents {
		pc, err := s.commit(ctx, p)
		if err != nil {
			return err
		}
		parents = append(parents, pc)
	}
	type step struct {
		node
		done bool // what is below has been walked
	}
	var stack []step
	push := func(list []node) {
		for i := len(list) - 1; i >= 0; i-- {
			stack = append(stack, step{node: list[i]})
		}
	}
	read := func(w Want) []byte { b, _ := s.local.Get(ctx, w.Kind, w.ID); return b }
	push(commitNodes(c, parents))
	for len(stack) > 0 {
		top := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if top.done {
			s.metas = append(s.metas, top.node)
			continue
		}
		if !s.seen.add(top.ID) {
			continue
		}
		if top.Kind == object.KindChunk {
			if s.candidates = append(s.candidates, top.node); len(s.candidates) >= askEvery {
				if err := s.flushCandidates(ctx); err != nil {
					return err
				}
			}
			continue
		}
		plain, err := s.local.Get(ctx, top.Kind, top.ID)
		if err != nil {
			return err
		}
		below, err := expand(&top.node, plain, read)
		if err != nil {
			return err
		}
		top.announced = ofSize(uint64(len(plain)), 0) // from here on it only counts
		stack = append(stack, step{top.node, true})
		push(below)
	}
	s.metas = append(s.metas, node{place: place{Want: Want{object.KindCommit, id}}, announced: ofSize(uint64(len(c.Encode())), 0)})
	return ctx.Err()
}

// flushCandidates asks which of the chunks found are missing and packs those.
func (s *sender) flushCandidates(ctx context.Context) error {
	missing, err := s.missing(ctx, s.candidates)
	if err != nil {
		return err
	}
	for i := range missing {
		if err := s.pack(ctx, &missing[i]); err != nil {
			return err
		}
	}
	s.candidates = s.candidates[:0]
	return nil
}

// missing returns those of nodes that the remote does not have.
func (s *sender) missing(ctx context.Context, nodes []node) ([]node, error) {
	if len(nodes) == 0 {
		return nil, nil
	}
	ids := make([]object.ID, len(nodes))
	for i := range nodes {
		ids[i] = nodes[i].ID
	}
	gone, err := s.ask(ctx, ids)
	if err != nil {
		return nil, err
	}
	var list []node
	var bytes int64
	k := 0
	s.mu.Lock()
	for _, n := range nodes {
		if k < len(gone) && gone[k] == n.ID {
			k++
			list = append(list, n)
			bytes += int64(n.totals.Bytes)
			continue
		}
		s.there.add(n.ID)
	}
	s.mu.Unlock()
	s.meter.update(func(p *Progress, _ *Stats) {
		p.TotalBytes += bytes
		p.TotalObjects += int64(len(list))
	})
	return list, nil
}

// ask returns those of ids that the remote says are missing, in their order: an answer with anything else is Damaged.
func (s *sender) ask(ctx context.Context, ids []object.ID) ([]object.ID, error) {
	gone, err := s.to.Missing(ctx, ids)
	if err != nil {
		return nil, fmt.Errorf("ask the remote what is missing: %w", err)
	}
	k := 0
	for _, id := range ids {
		if k < len(gone) && gone[k] == id {
			k++
		}
	}
	if k < len(gone) {
		return nil, errs.New(errs.Damaged, "the remote says that object %s is missing, for which it was not asked", gone[k].Short())
	}
	return gone, nil
}

// pack adds an object to the pack at hand, which is sent when it is full.
func (s *sender) pack(ctx context.Context, n *node) error {
	if _, ok := s.b.depth[n.ID]; ok {
		return nil
	}
	if err := s.encode(ctx, n); err != nil {
		return fmt.Errorf("pack %s %s: %w", n.Kind, n.ID.Short(), err)
	}
	if len(s.b.data) < s.opts.PackBytes && s.b.plain < maxPlain {
		return nil
	}
	return s.flush(ctx)
}

// flush sends the pack at hand.
func (s *sender) flush(ctx context.Context) error {
	b := s.b
	if len(b.records) == 0 {
		return nil
	}
	s.b = newBuilder(s.opts.PackBytes)
	select {
	case s.room <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	s.mu.Lock()
	for id := range b.depth {
		s.flying[id] = struct{}{}
	}
	s.mu.Unlock()
	p := b.seal()
	s.group.Go(func() error {
		if err := s.to.Store(ctx, p); err != nil {
			return fmt.Errorf("send pack %s: %w", p.Name.Short(), err) // its room is kept: no other pack is begun
		}
		s.landed(b, p)
		<-s.room
		return nil
	})
	return nil
}

// landed notes that a pack has arrived.
func (s *sender) landed(b *builder, p *Pack) {
	s.mu.Lock()
	for id := range b.depth {
		delete(s.flying, id)
		s.there.add(id)
	}
	s.mu.Unlock()
	var commits int64
	for i := range p.Records {
		if p.Records[i].Kind == object.KindCommit {
			commits++
		}
	}
	s.meter.update(func(pr *Progress, st *Stats) {
		st.Bytes += int64(len(p.Data))
		st.Plain += b.plain
		st.Objects += int64(len(p.Records))
		st.Packs++
		st.Commits += commits
		pr.Bytes += b.plain
		pr.Objects += int64(len(p.Records))
		pr.Wire += int64(len(p.Data))
	})
}

// land waits until no pack is on its way.
func (s *sender) land(ctx context.Context) error {
	for i := range cap(s.room) {
		select {
		case s.room <- struct{}{}:
		case <-ctx.Done():
			for range i {
				<-s.room
			}
			return ctx.Err()
		}
	}
	for range cap(s.room) {
		<-s.room
	}
	return ctx.Err()
}
