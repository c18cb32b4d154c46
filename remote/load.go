package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"dm/internal/errs"
	"dm/object"
	"dm/store/pack"
)

// take is what happens to an object that was asked for. r is its record.
type take func(r *pack.Record, id object.ID, plain []byte) error

// load asks the remote for objects and hands each of them, once and compared with its id, to fn, which may keep nothing of
// it. Deltas wait until their bases are there, which are asked for where the local store does not have them.
func (f *fetcher) load(ctx context.Context, wants []Want, fn take) error {
	l := &loading{f: f, fn: fn, need: map[object.ID]Want{}, parked: map[object.ID]pack.Record{}, bases: map[object.ID][]byte{}}
	for _, w := range wants {
		l.need[w.ID] = w
	}
	ask := wants
	for round := 0; len(l.need) > 0; round++ {
		if round > chainLimit {
			return errs.New(errs.Damaged, "the remote sends deltas whose bases have no end")
		}
		if err := l.round(ctx, ask); err != nil {
			return err
		}
		if ask = l.missingBases(ctx); len(ask) == 0 && len(l.need) > 0 {
			return l.absent()
		}
	}
	return nil
}

// loading is one load.
type loading struct {
	f      *fetcher
	fn     take
	need   map[object.ID]Want
	parked map[object.ID]pack.Record // deltas that wait for their bases
	bases  map[object.ID][]byte      // bases that nobody asked for by themselves
	asked  map[object.ID]bool        // as bases
	extra  int                       // bytes of records that came unasked for in this round
	held   int                       // bytes in parked and bases
}

// hold counts bytes that are kept until others have come.
func (l *loading) hold(n int) error {
	if l.held += n; l.held > maxHeld {
		return errs.New(errs.Damaged, "the remote sends deltas whose bases take more than %d bytes", maxHeld)
	}
	return nil
}

func (l *loading) round(ctx context.Context, ask []Want) error {
	var rest []Want
	for _, w := range ask {
		r, ok := l.f.takeAhead(w)
		if !ok {
			rest = append(rest, w)
			continue
		}
		if err := l.record(ctx, &r, false); err != nil {
			return err
		}
	}
	for part := range slices.Chunk(rest, MaxBatch) {
		if err := l.ask(ctx, part); err != nil {
			return fmt.Errorf("load objects from the remote: %w", err)
		}
	}
	return l.unpark(ctx)
}

// ask asks the remote for objects. A connection that breaks is taken up where it broke, as long as something comes.
func (l *loading) ask(ctx context.Context, wants []Want) error {
	for {
		came := false
		l.extra = 0
		err := l.f.from.Load(ctx, Request{wants, l.f.haves}, func(r *pack.Record) error {
			l.f.meter.update(func(p *Progress, s *Stats) { s.Bytes += int64(r.RecordLen()); p.Wire += int64(r.RecordLen()) })
			if err := l.record(ctx, r, true); err != nil {
				return &final{err}
			}
			came = true
			return nil
		})
		var f *final
		if errors.As(err, &f) {
			if errors.Is(f.err, errEnough) {
				return nil
			}
			return f.err
		}
		if err == nil || !came || errs.KindOf(err) != errs.Unreachable || ctx.Err() != nil {
			return err
		}
		wants = slices.DeleteFunc(slices.Clone(wants), func(w Want) bool {
			_, needed := l.need[w.ID]
			_, parked := l.parked[w.ID]
			_, based := l.bases[w.ID]
			return parked || based || !needed && !l.asked[w.ID]
		})
		if len(wants) == 0 {
			return nil
		}
	}
}

// errEnough ends a load that has brought all that is needed.
var errEnough = errors.New("there is enough")

// final keeps an error of what is done with a record from being taken for one of the connection.
type final struct{ err error }

func (f *final) Error() string { return f.err.Error() }

// record takes a record in. fresh says that its bytes are somebody else's.
func (l *loading) record(ctx context.Context, r *pack.Record, fresh bool) error {
	_, needed := l.need[r.ID]
	if !needed && !l.asked[r.ID] {
		if l.extra += r.RecordLen(); l.extra > MaxExtra+pack.MaxRecord {
			return errs.New(errs.Damaged, "the remote sends what nobody asked for, without end")
		}
		l.f.putAhead(r)
		if l.f.enough > 0 && l.extra > l.f.enough && len(l.need) == 0 && len(l.parked) == 0 {
			return errEnough
		}
		return nil
	}
	ok, err := l.decode(ctx, r)
	if err == nil && !ok {
		p := *r
		if fresh {
			p.Payload = bytes.Clone(r.Payload)
		}
		l.parked[r.ID] = p
		err = l.hold(len(p.Payload))
	}
	return err
}

// decode hands on an object. ok is false where its base is not here yet.
func (l *loading) decode(ctx context.Context, r *pack.Record) (ok bool, err error) {
	var base []byte
	if r.Encoding.HasBase() {
		if base = l.base(ctx, r); base == nil {
			return false, nil
		}
	}
	plain, err := l.f.codec.Decode(r, base)
	if err != nil {
		return false, fmt.Errorf("unpack %s %s: %w", r.Kind, r.ID.Short(), err)
	}
	if object.Sum(r.Kind, plain) != r.ID {
		return false, errs.New(errs.Damaged, "%s %s from the remote is damaged: its content has another id", r.Kind, r.ID.Short())
	}
	w, needed := l.need[r.ID]
	if l.asked[r.ID] {
		if err := l.hold(len(plain)); err != nil {
			return false, err
		}
		l.bases[r.ID] = bytes.Clone(plain)
	}
	if !needed {
		return true, nil
	}
	if w.Kind != r.Kind {
		return false, errs.New(errs.Damaged, "the remote sends object %s as a %s, it is a %s", r.ID.Short(), r.Kind, w.Kind)
	}
	delete(l.need, r.ID)
	l.f.meter.update(func(p *Progress, s *Stats) {
		s.Plain += int64(len(plain))
		s.Objects++
		if r.Kind == object.KindChunk {
			p.Bytes += int64(len(plain))
			p.Objects++
		}
	})
	return true, l.fn(r, r.ID, plain)
}

// base returns the plain bytes of a delta's base, nil where it is not here.
func (l *loading) base(ctx context.Context, r *pack.Record) []byte {
	if b, ok := l.bases[r.Base]; ok {
		return b
	}
	b, err := l.f.get(ctx, r.Kind, r.Base)
	if err != nil {
		return nil
	}
	if b == nil {
		b = []byte{}
	}
	return b
}

// get reads what is in the local store or was received and is not durable yet.
func (f *fetcher) get(ctx context.Context, kind object.Kind, id object.ID) ([]byte, error) {
	f.turn.RLock()
	defer f.turn.RUnlock()
	return f.batch.Get(ctx, kind, id)
}

// unpark decodes what has waited for what is here now.
func (l *loading) unpark(ctx context.Context) error {
	for progress := true; progress && len(l.parked) > 0; {
		progress = false
		for id, r := range l.parked {
			ok, err := l.decode(ctx, &r)
			if err != nil {
				return err
			}
			if ok {
				delete(l.parked, id)
				l.held -= len(r.Payload)
				progress = true
			}
		}
	}
	return nil
}

// missingBases returns the bases that what is parked waits for and that were not asked for yet.
func (l *loading) missingBases(ctx context.Context) []Want {
	var ask []Want
	for _, r := range l.parked {
		if _, parked := l.parked[r.Base]; parked || l.asked[r.Base] {
			continue
		}
		if l.asked == nil {
			l.asked = map[object.ID]bool{}
		}
		l.asked[r.Base] = true
		ask = append(ask, Want{r.Kind, r.Base})
	}
	return ask
}

// absent is the error for objects that the remote has not sent.
func (l *loading) absent() error {
	for _, r := range l.parked {
		return errs.New(errs.Damaged, "the remote does not have the base %s of the delta %s, or goes in circles", r.Base.Short(), r.ID.Short())
	}
	for _, w := range l.need {
		return errs.WithHint(errs.New(errs.Damaged, "the remote does not have %s %s, which its own branch needs, and %d more",
			w.Kind, w.ID.Short(), len(l.need)-1), "push it again from a machine that has it")
	}
	return nil
}

// putAhead keeps a record that came before it was asked for. Chunks are never ahead. Where there is no room, what is there
// has turned out to be of no use.
func (f *fetcher) putAhead(r *pack.Record) {
	if r.Kind == object.KindChunk {
		return
	}
	f.aheadMu.Lock()
	defer f.aheadMu.Unlock()
	if _, ok := f.ahead[r.ID]; ok {
		return
	}
	if f.aheadBytes+r.RecordLen() > maxAhead {
		clear(f.ahead)
		f.aheadBytes = 0
	}
	kept := *r
	kept.Payload = bytes.Clone(r.Payload)
	f.ahead[r.ID] = kept
	f.aheadBytes += r.RecordLen()
}

func (f *fetcher) takeAhead(w Want) (pack.Record, bool) {
	f.aheadMu.Lock()
	defer f.aheadMu.Unlock()
	r, ok := f.ahead[w.ID]
	if ok {
		delete(f.ahead, w.ID)
		f.aheadBytes -= r.RecordLen()
	}
	return r, ok
}
