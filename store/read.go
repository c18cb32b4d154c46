package store

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"

	"dm/internal/errs"
	"dm/object"
	"dm/store/pack"
)

// chainLimit is where a reader gives up on a chain of deltas. Writers stay far below.
const chainLimit = 64

// finder looks up where an object is stored.
type finder func(id object.ID) (e entry, ok bool, err error)

// Get returns the plain bytes of an object. They are shared: the caller must not change them. The error's kind is
// NotFound if there is no object of that kind and id, and Damaged if what is stored is not what was.
func (s *Store) Get(ctx context.Context, kind object.Kind, id object.ID) ([]byte, error) {
	return s.get(ctx, kind, id, s.lookup)
}

func (s *Store) get(ctx context.Context, kind object.Kind, id object.ID, find finder) ([]byte, error) {
	if plain, ok := s.cache.get(kind, id); ok {
		return plain, nil
	}
	plain, err := s.load(ctx, kind, id, find)
	if err != nil {
		return nil, err
	}
	s.cache.add(kind, id, plain)
	return plain, nil
}

// load reads an object from its pack and verifies it.
func (s *Store) load(ctx context.Context, kind object.Kind, id object.ID, find finder) ([]byte, error) {
	// A gc may move an object between the lookup and the reading, or store it without its base. Then the index knows better.
	for try := 0; ; try++ {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		plain, err := s.loadOnce(kind, id, find)
		if movedAway(err) {
			if try < retries {
				continue
			}
			err = errs.New(errs.Damaged, "%w", err)
		}
		if errs.KindOf(err) == errs.Damaged {
			err = errs.WithHint(err, "run 'dm fsck' to see what it affects")
		}
		return plain, err
	}
}

// retries is how often an object is looked for again whose pack was gone when it was to be read.
const retries = 3

// movedAway says whether err is that of a pack that is not there (any more), or of a base that a gc may have made needless
// since its delta was looked up.
func movedAway(err error) bool {
	var b baseMissing
	return errors.Is(err, fs.ErrNotExist) && !isUnknown(err) || errors.As(err, &b)
}

// baseMissing is the error for a delta without its base.
type baseMissing struct{ id object.ID }

func (b baseMissing) Error() string { return "delta base " + b.id.Short() + " is missing" }

// unknown is the error for an object that the index does not have.
type unknown struct {
	kind object.Kind
	id   object.ID
}

func (u unknown) Error() string {
	return u.kind.String() + " " + u.id.String() + " is not in the store"
}

func isUnknown(err error) bool {
	var u unknown
	return errors.As(err, &u)
}

func notFound(kind object.Kind, id object.ID) error {
	return errs.New(errs.NotFound, "%w", unknown{kind, id})
}

func (s *Store) loadOnce(kind object.Kind, id object.ID, find finder) ([]byte, error) {
	e, ok, err := find(id)
	if err != nil {
		return nil, err
	}
	if !ok || e.kind != kind {
		return nil, notFound(kind, id)
	}
	plain, err := s.decode(id, e, find)
	if err != nil {
		return nil, errs.New(errs.KindOf(err), "read %s %s: %w", kind, id.Short(), err)
	}
	if object.Sum(kind, plain) != id {
		return nil, errs.New(errs.Damaged, "%s %s is damaged: its content has another id", kind, id.Short())
	}
	return plain, nil
}

// link is one record of a chain: an object and, behind it, its base.
type link struct {
	id object.ID
	e  entry
}

// chain returns the object and its bases, down to one that needs none or is in the cache; its plain bytes in that case.
func (s *Store) chain(id object.ID, e entry, find finder) (links []link, base []byte, err error) {
	for {
		links = append(links, link{id, e})
		if !e.enc.HasBase() {
			return links, nil, nil
		}
		if len(links) > chainLimit {
			return nil, nil, errs.New(errs.Damaged, "the chain of deltas has no end")
		}
		next := e.base
		var ok bool
		if e, ok, err = find(next); err == nil && !ok {
			e, ok, err = s.lookupBase(next)
		}
		if err != nil {
			return nil, nil, err
		} else if !ok {
			return nil, nil, errs.New(errs.Damaged, "%w", baseMissing{next})
		}
		if plain, ok := s.cache.get(e.kind, next); ok {
			return links, plain, nil
		}
		id = next
	}
}

// decode returns an object's plain bytes, not yet compared with its id.
func (s *Store) decode(id object.ID, e entry, find finder) ([]byte, error) {
	links, plain, err := s.chain(id, e, find)
	if err != nil {
		return nil, err
	}
	for i := len(links) - 1; i >= 0; i-- {
		rec, err := s.readRecord(links[i].id, links[i].e)
		if err != nil {
			return nil, err
		}
		// A base from the cache is shared; one that was read here is not needed any more.
		decode := s.codec.DecodeOver
		if i == len(links)-1 {
			decode = s.codec.Decode
		}
		if plain, err = decode(&rec, plain); err != nil {
			return nil, errs.New(errs.KindOf(err), "decode record %s of pack %s: %w", links[i].id.Short(),
				packName(links[i].e.pack), err)
		}
	}
	return plain, nil
}

// readRecord reads the record that the index says is there.
func (s *Store) readRecord(id object.ID, e entry) (pack.Record, error) {
	f, err := s.packs.acquire(e.pack)
	if err != nil {
		return pack.Record{}, err
	}
	defer s.packs.release(f)
	b := make([]byte, e.recordLen())
	if _, err := f.f.ReadAt(b, e.off); err != nil {
		if errors.Is(err, io.EOF) {
			err = errs.New(errs.Damaged, "pack %s is cut short at %d", packName(e.pack), e.off)
		} else if !errors.Is(err, os.ErrClosed) {
			err = errs.New(errs.Damaged, "pack %s cannot be read at %d: %w", packName(e.pack), e.off, err)
		}
		return pack.Record{}, err
	}
	rec, err := pack.ParseRecord(b)
	if err != nil {
		return rec, errs.New(errs.Damaged, "pack %s at %d: %w", packName(e.pack), e.off, err)
	}
	if rec.ID != id || rec.Kind != e.kind || rec.Encoding != e.enc || rec.Base != e.base || rec.RecordLen() != len(b) {
		return rec, errs.New(errs.Damaged, "pack %s has another object at %d than the index says", packName(e.pack), e.off)
	}
	return rec, nil
}

// StoredSize returns the bytes that an object takes in its pack. For one stored as a delta that is the delta alone.
func (s *Store) StoredSize(id object.ID) (int64, error) {
	e, ok, err := s.lookup(id)
	if err != nil {
		return 0, err
	}
	if !ok {
		return 0, errs.New(errs.NotFound, "object %s is not in the store", id)
	}
	return int64(e.recordLen()), nil
}
