package remote

import (
	"context"

	"dm/object"
	"dm/store/pack"
)

// encode appends the object's record to the pack at hand: as it is stored, where the receiver can use it so; otherwise as
// a delta of what stood in its place, or whole.
func (s *sender) encode(ctx context.Context, n *node) error {
	off := len(s.b.data)
	if src, ok := s.local.(recordSource); ok {
		r, err := src.Record(ctx, n.Kind, n.ID)
		if err != nil {
			return err
		}
		depth, good := 0, !r.Encoding.HasBase()
		if !good {
			depth, good = s.baseDepth(r.Base, n)
		}
		if good {
			s.b.data = r.Append(s.b.data)
			s.b.add(r.Head, off, depth)
			return nil
		}
	}
	plain, err := s.local.Get(ctx, n.Kind, n.ID)
	if err != nil {
		return err
	}
	if ok := s.encodeDelta(ctx, n, plain); ok {
		return nil
	}
	var h pack.Head
	s.b.data, h = s.codec.Append(s.b.data, n.Kind, n.ID, plain)
	s.b.add(h, off, 0)
	return nil
}

// minDelta is the size from which on deltas are tried, in bytes.
const minDelta = 512

// encodeDelta tries the objects that stood in n's place as bases.
func (s *sender) encodeDelta(ctx context.Context, n *node, plain []byte) bool {
	if len(plain) < minDelta {
		return false
	}
	for _, o := range n.old {
		if o.Kind != n.Kind {
			continue
		}
		depth, good := s.baseDepth(o.ID, n)
		if !good {
			continue
		}
		base, err := s.local.Get(ctx, o.Kind, o.ID)
		if err != nil {
			continue
		}
		off := len(s.b.data)
		data, h, ok := s.codec.AppendDelta(s.b.data, n.Kind, n.ID, plain, o.ID, base, len(plain)/3)
		if ok {
			s.b.data = data
			s.b.add(h, off, depth)
			return true
		}
	}
	return false
}

// baseDepth says whether the receiver has an object, so that it can be n's base, and the depth that n then has. It is
// certain of what is in the pack at hand, of what it was told, and of what stood in n's place, which is of an older commit;
// unless that is still on its way.
func (s *sender) baseDepth(base object.ID, n *node) (depth int, good bool) {
	if d, ok := s.b.depth[base]; ok {
		return d + 1, d+1 <= MaxChain
	}
	s.mu.Lock()
	_, flying := s.flying[base]
	there := s.there.has(base)
	s.mu.Unlock()
	for i := 0; i < len(n.old) && !there; i++ {
		there = n.old[i].ID == base
	}
	if flying || !there {
		return 0, false
	}
	c, ok := s.to.(chains)
	if !ok {
		return 1, true
	}
	d, ok := c.Depth(base)
	return d + 1, ok && d+1 <= MaxChain
}
