package store

import (
	"context"

	"dm/internal/errs"
	"dm/object"
	"dm/store/pack"
)

// Record returns the record of an object as it stands in its pack, to be sent on without decoding it, or errs.NotFound as
// Get does. The payload has the right checksum; that it decodes to the object is for the receiver to verify. Its base may
// be an object that Get does not find, because only deltas need it any more.
func (s *Store) Record(ctx context.Context, kind object.Kind, id object.ID) (pack.Record, error) {
	for try := 0; ; try++ {
		if err := ctx.Err(); err != nil {
			return pack.Record{}, err
		}
		e, ok, err := s.lookup(id)
		if err != nil {
			return pack.Record{}, err
		}
		if !ok || e.kind != kind {
			return pack.Record{}, notFound(kind, id)
		}
		rec, err := s.readRecord(id, e)
		if movedAway(err) {
			if try < retries {
				continue
			}
			err = errs.New(errs.Damaged, "%w", err)
		}
		return rec, err
	}
}

// PutRecord stores an object that arrived as a record, in the form it came in. plain is what the record decodes to, which
// the caller has found out with a Codec; that it has the record's id is checked here. The record is not kept, its form is,
// unless a part of the chain below it is neither in the store nor in this batch, or the chain would become too long: then the
// object is stored anew, as by PutOver.
func (b *Batch) PutRecord(ctx context.Context, rec *pack.Record, plain []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !rec.Kind.Valid() || len(plain) != rec.PlainLen || object.Sum(rec.Kind, plain) != rec.ID {
		return errs.New(errs.Damaged, "object %s has other content than its id says", rec.ID.Short())
	}
	b.life.RLock()
	defer b.life.RUnlock()
	mine, err := b.claim(rec.ID, len(plain))
	if err != nil || !mine {
		return err
	}
	e := entryOf(&rec.Head)
	if e.enc.HasBase() {
		base, _, ok := b.candidate(e.base)
		if !ok || base.depth >= maxDepth {
			raw, e := b.encode(ctx, nil, rec.Kind, rec.ID, plain, rec.Base)
			return b.write(rec.ID, e, raw)
		}
		e.depth = base.depth + 1
	}
	return b.write(rec.ID, e, rec.Append(nil))
}
