package hub

import (
	"errors"
	"fmt"
	"io"

	"dm/internal/errs"
	"dm/object"
	"dm/remote/hubproto"
	"dm/store/pack"
)

// contents is what is known of a pack that is being taken in, and the rules that all packs keep to, whatever the engine.
type contents struct {
	kinds map[object.ID]object.Kind // of the objects in it
	needs map[object.ID]object.Kind // what those need
	chain map[object.ID]int         // of its deltas: how many records of it they take
	plain int64                     // bytes unpacked
	bytes int64                     // of records
}

func newContents() contents {
	return contents{kinds: map[object.ID]object.Kind{}, needs: map[object.ID]object.Kind{}, chain: map[object.ID]int{}}
}

// read calls fn with each record of a pack that keeps to the rules.
func (c *contents) read(r *pack.Reader, fn func(*pack.Record) error) error {
	for {
		rec, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = c.enter(&rec.Head)
		}
		if err == nil {
			err = fn(rec)
		}
		if err != nil {
			return err
		}
	}
}

// enter takes note of a record. A few bytes can unpack to four million and cost the hub the time for them, so the sum is
// bounded, too.
func (c *contents) enter(h *pack.Head) error {
	if _, twice := c.kinds[h.ID]; twice {
		return errs.New(errs.Damaged, "%s %s is in the pack twice", h.Kind, h.ID.Short())
	}
	if c.plain += int64(h.PlainLen); c.plain > hubproto.MaxPlain {
		return errs.New(errs.Damaged, "the pack unpacks to more than %d bytes", hubproto.MaxPlain)
	}
	if h.Encoding.HasBase() {
		n := c.chain[h.Base] + 1
		if n > hubproto.MaxChain {
			return errs.New(errs.Damaged, "%s %s is the end of a chain of more than %d deltas", h.Kind, h.ID.Short(), hubproto.MaxChain)
		}
		c.chain[h.ID] = n
	}
	c.kinds[h.ID] = h.Kind
	c.bytes += int64(h.RecordLen())
	return nil
}

// need takes note of what an object of the pack needs.
func (c *contents) need(h *pack.Head, plain []byte) error {
	if err := addNeeds(c.needs, h.Kind, plain); err != nil {
		return fmt.Errorf("check %s %s: %w", h.Kind, h.ID.Short(), err)
	}
	return nil
}

// outside returns what the pack's objects need and is not among them.
func (c *contents) outside() (map[object.ID]object.Kind, error) {
	for id, kind := range c.needs {
		got, ok := c.kinds[id]
		if !ok {
			continue
		}
		if got != kind {
			return nil, errs.New(errs.Damaged, "object %s is needed as a %s and is a %s", id.Short(), kind, got)
		}
		delete(c.needs, id)
	}
	return c.needs, nil
}

// addNeeds notes what an object needs. One id is of one kind.
func addNeeds(needs map[object.ID]object.Kind, kind object.Kind, plain []byte) error {
	var bad error
	err := object.References(kind, plain, func(r object.Reference) {
		if was, ok := needs[r.ID]; ok && was != r.Kind {
			bad = errs.New(errs.Damaged, "object %s is needed as a %s and as a %s", r.ID.Short(), was, r.Kind)
		}
		needs[r.ID] = r.Kind
	})
	return errors.Join(err, bad)
}

// notHere is the error for an object that something needs and that nobody has sent.
func notHere(kind object.Kind, id object.ID) error {
	return errs.WithHint(errs.New(errs.Damaged, "%s %s is needed and not here", kind, id.Short()), "push again")
}
