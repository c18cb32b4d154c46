package hub

import (
	"bytes"
	"context"
	"fmt"

	"dm/internal/errs"
	"dm/object"
	"dm/remote"
	"dm/remote/bucket"
	"dm/remote/hubproto"
	"dm/store/pack"
)

// adopt adds what must become a member of a dot so that it has the objects given, with all they need: those that are
// members of other dots in sight. What is in none of them is not here: Damaged. It returns how many were added.
func (e *sharedEngine) adopt(ctx context.Context, add *bucket.Addition, own *sharedDot, others []*sharedDot,
	wants map[object.ID]object.Kind,
) (int, error) {
	a := &adoption{own: own, others: others, from: map[object.ID]*sharedDot{}}
	frontier := wants
	for len(frontier) > 0 {
		fresh, err := a.locate(ctx, frontier)
		if err != nil {
			return 0, err
		}
		frontier = map[object.ID]object.Kind{}
		for sd, ids := range fresh {
			err := e.read(ctx, sd, ids, func(kind object.Kind, _ object.ID, plain []byte) error {
				return addNeeds(frontier, kind, plain)
			})
			if err != nil {
				return 0, err
			}
		}
		for id := range frontier {
			if _, ok := a.from[id]; ok {
				delete(frontier, id)
			}
		}
	}
	bySource := map[*sharedDot][]object.ID{}
	for id, sd := range a.from {
		bySource[sd] = append(bySource[sd], id)
	}
	for sd, ids := range bySource {
		if rest := add.Share(sd.r, ids); len(rest) > 0 {
			if err := e.storeAgain(ctx, add, sd, rest); err != nil {
				return 0, err
			}
		}
	}
	return len(a.from), nil
}

// adoption is a walk over what is adopted.
type adoption struct {
	own       *sharedDot
	others    []*sharedDot
	refreshed bool
	from      map[object.ID]*sharedDot
}

// locate finds those of wants that the dot does not have in other dots. It returns those whose needs must be looked at,
// by where they are.
func (a *adoption) locate(ctx context.Context, wants map[object.ID]object.Kind) (map[*sharedDot][]object.ID, error) {
	fresh := map[*sharedDot][]object.ID{}
	for id, kind := range wants {
		sd, err := a.find(ctx, kind, id)
		if err != nil {
			return nil, err
		}
		if sd == a.own {
			continue
		}
		a.from[id] = sd
		if kind != object.KindChunk {
			fresh[sd] = append(fresh[sd], id)
		}
	}
	return fresh, nil
}

func (a *adoption) find(ctx context.Context, kind object.Kind, id object.ID) (*sharedDot, error) {
	for {
		for _, sd := range append([]*sharedDot{a.own}, a.others...) {
			if k, ok := sd.r.Kind(id); ok && k == kind {
				return sd, nil
			}
		}
		if a.refreshed {
			return nil, notHere(kind, id)
		}
		a.refreshed = true
		if err := refresh(ctx, append([]*sharedDot{a.own}, a.others...)...); err != nil {
			return nil, err
		}
	}
}

// storeAgain stores whole what is a delta of what the dot has not.
func (e *sharedEngine) storeAgain(ctx context.Context, add *bucket.Addition, from *sharedDot, ids []object.ID) error {
	const packSize = 8 << 20
	if err := e.again.Acquire(ctx, 1); err != nil {
		return err
	}
	defer e.again.Release(1)
	out := newPackBuilder(packSize)
	err := e.read(ctx, from, ids, func(kind object.Kind, id object.ID, plain []byte) error {
		if len(out.data)+len(plain)+pack.MaxHeadLen > packSize && len(out.records) > 0 {
			if err := add.Pack(ctx, out.seal()); err != nil {
				return err
			}
			out.reset()
		}
		out.whole(e.codec, kind, id, plain)
		return nil
	})
	if err != nil || len(out.records) == 0 {
		return err
	}
	return add.Pack(ctx, out.seal())
}

// readBatch is how many bytes of objects are read at a time.
const readBatch = 4 << 20

// read calls fn with each object of ids, which the dot is known to have, unpacked and compared with its id. What fn is
// given is its own.
func (e *sharedEngine) read(ctx context.Context, sd *sharedDot, ids []object.ID, fn func(object.Kind, object.ID, []byte) error) error {
	for len(ids) > 0 {
		size, n := 0, 0
		for ; n < len(ids) && n < hubproto.MaxIDs && size < readBatch; n++ {
			h, _, _ := sd.r.Head(ids[n])
			size += h.PlainLen
		}
		u := &unpacking{e: e, sd: sd, plain: map[object.ID][]byte{}, asked: map[object.ID]bool{}}
		if err := u.run(ctx, ids[:n]); err != nil {
			return err
		}
		for _, id := range ids[:n] {
			h, _, _ := sd.r.Head(id)
			if err := fn(h.Kind, id, u.plain[id]); err != nil {
				return err
			}
		}
		ids = ids[n:]
	}
	return nil
}

// unpacking reads some objects with the bases of their deltas.
type unpacking struct {
	e      *sharedEngine
	sd     *sharedDot
	plain  map[object.ID][]byte
	asked  map[object.ID]bool
	parked []pack.Record // deltas that wait for their bases
}

func (u *unpacking) run(ctx context.Context, ids []object.ID) error {
	ask := ids
	for range hubproto.MaxChain {
		for _, id := range ask {
			u.asked[id] = true
		}
		err := u.sd.r.Read(ctx, ask, func(rec *pack.Record) error {
			kept := *rec
			kept.Payload = bytes.Clone(rec.Payload)
			u.parked = append(u.parked, kept)
			return nil
		})
		if err != nil {
			return err
		}
		if err := u.unpark(); err != nil {
			return err
		}
		ask = nil
		for i := range u.parked {
			if base := u.parked[i].Base; !u.asked[base] {
				u.asked[base] = true
				ask = append(ask, base)
			}
		}
		if len(ask) == 0 {
			break
		}
	}
	for _, id := range ids {
		if _, ok := u.plain[id]; !ok {
			return errs.New(errs.Damaged, "object %s cannot be put together: a base is missing", id.Short())
		}
	}
	return nil
}

// unpark unpacks what needs nothing else.
func (u *unpacking) unpark() error {
	for progress := true; progress; {
		progress = false
		var rest []pack.Record
		for i := range u.parked {
			rec := &u.parked[i]
			base, ok := u.plain[rec.Base]
			if rec.Encoding.HasBase() && !ok {
				rest = append(rest, *rec)
				continue
			}
			plain, err := u.e.codec.Decode(rec, base)
			if err != nil {
				return fmt.Errorf("unpack %s %s: %w", rec.Kind, rec.ID.Short(), err)
			}
			if object.Sum(rec.Kind, plain) != rec.ID {
				return errs.New(errs.Damaged, "%s %s is damaged in the bucket", rec.Kind, rec.ID.Short())
			}
			u.plain[rec.ID] = plain
			progress = true
		}
		u.parked = rest
	}
	return nil
}

// packBuilder makes a pack.
type packBuilder struct {
	data    []byte
	records []remote.Located
}

func newPackBuilder(size int) packBuilder {
	return packBuilder{data: pack.AppendHeader(make([]byte, 0, size+pack.MaxHeadLen))}
}

// record appends a record as it is.
func (b *packBuilder) record(r *pack.Record, depth int) {
	b.note(r.Head, depth)
	b.data = r.Append(b.data)
}

// whole appends an object that stands alone.
func (b *packBuilder) whole(codec *pack.Codec, kind object.Kind, id object.ID, plain []byte) {
	off := int64(len(b.data))
	var h pack.Head
	b.data, h = codec.Append(b.data, kind, id, plain)
	b.note(h, 0)
	b.records[len(b.records)-1].Off = off
}

func (b *packBuilder) note(h pack.Head, depth int) {
	b.records = append(b.records, remote.Located{Head: h, Off: int64(len(b.data)), Depth: depth})
}

// reset begins another pack in the same memory.
func (b *packBuilder) reset() {
	b.data, b.records = pack.AppendHeader(b.data[:0]), nil
}

func (b *packBuilder) seal() *remote.Pack {
	b.data = pack.AppendEnd(b.data, uint64(len(b.records)), uint64(len(b.data)))
	return &remote.Pack{Name: remote.PackName(b.data), Data: b.data, Records: b.records}
}

// plains remembers objects, of so many bytes in all, and forgets first what came first.
type plains struct {
	limit, size int
	byID        map[object.ID][]byte
	order       []object.ID
}

func newPlains(limit int) *plains { return &plains{limit: limit, byID: map[object.ID][]byte{}} }

func (p *plains) get(id object.ID) ([]byte, bool) {
	b, ok := p.byID[id]
	return b, ok
}

func (p *plains) put(id object.ID, b []byte) {
	p.byID[id] = b
	p.order = append(p.order, id)
	for p.size += len(b); p.size > p.limit && len(p.order) > 1; p.order = p.order[1:] {
		p.size -= len(p.byID[p.order[0]])
		delete(p.byID, p.order[0])
	}
}
