package object

import (
	"context"

	"dm/internal/errs"
)

// spans walks one file's chunk list from the front, opening a list only when asked to.
type spans struct {
	ctx   context.Context
	src   Source
	stack [][]Span
	level []uint8 // of the spans in each frame; 0: chunks
	pos   uint64
}

func newSpans(ctx context.Context, src Source, c Content) *spans {
	s := &spans{ctx: ctx, src: src}
	if c.Size > 0 {
		s.stack, s.level = [][]Span{{{Size: c.Size, ID: c.Root}}}, []uint8{c.Depth}
	}
	return s
}

func (s *spans) head() (sp *Span, level uint8) {
	for n := len(s.stack); n > 0; n-- {
		if top := s.stack[n-1]; len(top) > 0 {
			return &top[0], s.level[n-1]
		}
		s.stack, s.level = s.stack[:n-1], s.level[:n-1]
	}
	return nil, 0
}

// skip passes n bytes of the head, or all of it.
func (s *spans) skip(n uint64) {
	top := &s.stack[len(s.stack)-1]
	n = min(n, (*top)[0].Size)
	s.pos += n
	if n == (*top)[0].Size {
		*top = (*top)[1:]
		return
	}
	// The frame is this walk's alone: a list is decoded anew each time it is opened.
	(*top)[0].Size -= n
}

func (s *spans) open() error {
	n := len(s.stack) - 1
	sp, level := s.stack[n][0], s.level[n]
	s.stack[n] = s.stack[n][1:]
	b, err := s.src.Get(s.ctx, KindList, sp.ID)
	if err != nil {
		return err
	}
	l, err := DecodeList(b)
	if err != nil {
		return err
	}
	if l.Level != level || l.Size() != sp.Size {
		return errs.New(errs.Damaged, "list %s has level %d and size %d where %d and %d are expected",
			sp.ID.Short(), l.Level, l.Size(), level, sp.Size)
	}
	s.stack, s.level = append(s.stack, l.Spans), append(s.level, level-1)
	return nil
}

// ChangedBytes returns how many bytes of a file's content differ between two of its states, counted in whole chunks, with
// what was cut off its end. Lists that both share are not read.
func ChangedBytes(ctx context.Context, src Source, from, to Content) (n uint64, err error) {
	if from == to {
		return 0, nil
	}
	if from.Size > to.Size {
		n = from.Size - to.Size
	}
	a, b := newSpans(ctx, src, from), newSpans(ctx, src, to)
	for {
		x, xl := a.head()
		y, yl := b.head()
		switch {
		case y == nil:
			return n, nil
		case x == nil:
			return n + to.Size - b.pos, nil
		case a.pos == b.pos && x.ID == y.ID && (x.ID.IsZero() || xl == yl && x.Size == y.Size):
			k := min(x.Size, y.Size) // less than all of both only in holes
			a.skip(k)
			b.skip(k)
			continue
		case xl > 0 && xl >= yl:
			err = a.open()
			if err == nil && xl == yl {
				err = b.open()
			}
		case yl > 0:
			err = b.open()
		case a.pos < b.pos && !x.ID.IsZero(): // a chunk that begins inside of what is passed is met by none
			a.skip(x.Size)
		case a.pos < b.pos:
			a.skip(b.pos - a.pos)
		case b.pos < a.pos && y.ID.IsZero():
			n += a.pos - b.pos
			b.skip(a.pos - b.pos)
		case b.pos < a.pos:
			n += y.Size
			b.skip(y.Size)
		case y.ID.IsZero(): // both begin here: what ends first goes first
			k := min(x.Size, y.Size)
			n += k
			b.skip(k)
			a.skip(x.Size)
		default:
			n += y.Size
			b.skip(y.Size)
		}
		if err != nil {
			return 0, err
		}
	}
}
