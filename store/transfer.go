package store

import (
	"context"

	"dm/internal/errs"
	"dm/object"
	"dm/store/pack"
)

// Stored returns the record of an object as it stands in its pack, to be sent on without decoding it. Its base, if it has
// one, is in the store, too, but may be an object that Get does not find, because only deltas need it any more. The payload
// has the right checksum; that it decodes to the object is for the receiver to verify.
func (s *Store) Stored(ctx context.Context, id object.ID) (pack.Record, error) {
	for try := 0; ; try++ {
		if err := ctx.Err(); err != nil {
			return pack.Record{}, err
		}
		e, ok, err := s.lookup(id)
		if err != nil {
			return pack.Record{}, err
		}
		if !ok {
			return pack.Record{}, errs.New(errs.NotFound, "object %s is not in the store", id)
		}
		rec, err := s.readRecord(id, e)
		if err == nil || try == retries || !movedAway(err) {
			return rec, err
		}
	}
}

// PutStored stores an object that arrives as a record, from a pack that someone else made, and keeps the form it came in.
// It decodes the record and refuses, with errs.Damaged, what is not the object it says it is. A base must be in the store
// or in this batch already; errs.NotFound says that it is not. A record whose chain of bases would become too long is stored
// anew.
func (b *Batch) PutStored(ctx context.Context, rec *pack.Record) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	b.life.RLock()
	defer b.life.RUnlock()
	var base []byte
	depth := uint8(0)
	if rec.Encoding.HasBase() {
		e, ok := b.candidate(rec.Base)
		if !ok {
			return errs.New(errs.NotFound, "object %s is a delta of %s, which is not here", rec.ID.Short(), rec.Base.Short())
		}
		var err error
		if base, err = b.get(ctx, e.kind, rec.Base); err != nil {
			return err
		}
		depth = e.depth + 1
	}
	plain, err := b.s.codec.Decode(rec, base)
	if err != nil {
		return errs.New(errs.KindOf(err), "object %s: %w", rec.ID.Short(), err)
	}
	if !rec.Kind.Valid() || object.Sum(rec.Kind, plain) != rec.ID {
		return errs.New(errs.Damaged, "object %s has other content than its id says", rec.ID.Short())
	}
	mine, err := b.claim(rec.ID, len(plain))
	if err != nil || !mine {
		return err
	}
	if depth > maxDepth {
		raw, h := b.s.codec.Append(nil, rec.Kind, rec.ID, plain)
		return b.write(rec.ID, entryOf(&h), raw)
	}
	e := entryOf(&rec.Head)
	e.depth = depth
	return b.write(rec.ID, e, rec.Append(nil))
}
