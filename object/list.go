package object

import (
	"context"
	"encoding/binary"

	"dm/internal/errs"
)

// Cut names the way in which a file's content is cut into chunks. It is kept with the file's list, so that a changed
// file is cut again in the same way and meets its old chunks.
type Cut uint8

// The ways to cut. The values are part of the format.
const (
	CutFixed Cut = 0 // every 64 KiB: files that are overwritten in place
	CutGear  Cut = 1 // where a rolling hash says: files that grow or shift
)

// Content says what a regular file holds.
type Content struct {
	Size  uint64 // in bytes
	Depth uint8  // 0: Root is one chunk (zero: a hole). n: Root is a list of level n.
	Root  ID
}

// Span is a stretch of a file's content: one chunk, or in higher levels one list. A zero ID is a hole: Size zero bytes.
type Span struct {
	Size uint64
	ID   ID
}

// List is a node of a file's chunk list. Level 1 holds chunks, level n lists of level n-1.
type List struct {
	Level uint8
	Cut   Cut
	Spans []Span
}

// Size returns the bytes of content the list stands for.
func (l *List) Size() (n uint64) {
	for _, s := range l.Spans {
		n += s.Size
	}
	return n
}

// maxFile is the largest file: 2^32 blocks of 4 KiB, the limit of ext4.
const maxFile = 1 << 44

// maxDepth is far above what the largest file needs; deeper lists are refused as hostile.
const maxDepth = 16

// Encode returns the canonical bytes.
func (l *List) Encode() []byte {
	b := make([]byte, 0, 8+len(l.Spans)*(IDSize+4))
	b = append(b, formatVersion, l.Level, byte(l.Cut))
	b = binary.AppendUvarint(b, uint64(len(l.Spans)))
	for _, s := range l.Spans {
		b = binary.AppendUvarint(b, s.Size)
		b = append(b, s.ID[:]...)
	}
	return b
}

// DecodeList reads what Encode wrote and refuses everything else.
func DecodeList(b []byte) (*List, error) {
	r := &reader{kind: KindList, b: b}
	r.version()
	l := &List{Level: r.byte(), Cut: Cut(r.byte())}
	if l.Level < 1 || l.Level > maxDepth {
		r.fail("bad level")
	}
	if l.Cut > CutGear {
		r.fail("unknown cut")
	}
	n := r.count(IDSize + 1)
	if n == 0 || n > maxNode {
		r.fail("bad number of spans")
	}
	l.Spans = make([]Span, 0, n)
	var total uint64
	for range n {
		s := Span{Size: r.uint(maxFile), ID: r.id()}
		total += s.Size
		switch {
		case s.Size == 0:
			r.fail("empty span")
		case total > maxFile:
			r.fail("size overflows")
		case s.ID.IsZero() && l.Level > 1:
			r.fail("hole above level 1")
		}
		l.Spans = append(l.Spans, s)
	}
	if err := r.end(); err != nil {
		return nil, err
	}
	return l, nil
}

// listShape cuts lists on average every 128 spans, where the last bits of an ID are zero.
func listShape(ctx context.Context, src Source, sink Sink, cut Cut) shape[Span] {
	var olds oldLists
	return shape[Span]{
		closes: func(_ int, s Span) bool { return !s.ID.IsZero() && s.ID[IDSize-1]&127 == 0 },
		weight: func(Span) int { return IDSize + 4 },
		seal: func(level int, spans []Span) (Span, error) {
			l := &List{Level: uint8(level + 1), Cut: cut, Spans: spans}
			id, err := putOver(ctx, sink, KindList, l.Encode(), olds.like(level+1, spans))
			return Span{l.Size(), id}, err
		},
		open: func(level int, s Span) ([]Span, error) {
			l, err := openList(ctx, src, level, s)
			if err != nil {
				return nil, err
			}
			olds.opened(level, s.ID, l.Spans)
			return l.Spans, nil
		},
	}
}

// oldLists is the two lists of each level that were opened last: what stands in the place of a list that is being made is
// one of them.
type oldLists [][2]oldList

type oldList struct {
	id    ID
	spans []Span
}

func (o *oldLists) opened(level int, id ID, spans []Span) {
	for len(*o) <= level {
		*o = append(*o, [2]oldList{})
	}
	l := &(*o)[level]
	l[0], l[1] = oldList{id, spans}, l[0]
}

// like returns the one of them that has most of the spans, and more than half, or the zero ID.
func (o *oldLists) like(level int, spans []Span) (id ID) {
	if level >= len(*o) {
		return id
	}
	most := len(spans) / 2
	for _, old := range (*o)[level] {
		if len(old.spans) <= most {
			continue
		}
		has := make(map[ID]struct{}, len(old.spans))
		for _, s := range old.spans {
			has[s.ID] = struct{}{}
		}
		same := 0
		for _, s := range spans {
			if _, ok := has[s.ID]; ok {
				same++
			}
		}
		if same > most {
			most, id = same, old.id
		}
	}
	return id
}

// overSink is an optional power of a Sink: it is told which object stood in the same place before, and may store less then.
type overSink interface {
	PutOver(ctx context.Context, kind Kind, plain []byte, old ID) (ID, error)
}

func putOver(ctx context.Context, sink Sink, kind Kind, plain []byte, old ID) (ID, error) {
	if over, ok := sink.(overSink); ok && !old.IsZero() {
		return over.PutOver(ctx, kind, plain, old)
	}
	return sink.Put(ctx, kind, plain)
}

func openList(ctx context.Context, src Source, level int, s Span) (*List, error) {
	b, err := src.Get(ctx, KindList, s.ID)
	if err != nil {
		return nil, err
	}
	l, err := DecodeList(b)
	if err != nil {
		return nil, err
	}
	if int(l.Level) != level || l.Size() != s.Size {
		return nil, errs.New(errs.Damaged, "list %s has level %d and size %d where %d and %d are expected",
			s.ID.Short(), l.Level, l.Size(), level, s.Size)
	}
	return l, nil
}

// CutOf returns the way a file's content was cut; ok is false where it is a single chunk or empty and nothing is known.
func CutOf(ctx context.Context, src Source, c Content) (cut Cut, ok bool, err error) {
	if c.Depth == 0 {
		return 0, false, nil
	}
	l, err := openList(ctx, src, int(c.Depth), Span{c.Size, c.Root})
	if err != nil {
		return 0, false, err
	}
	return l.Cut, true, nil
}

// WalkSpans calls fn for each chunk or hole of a file, in order, from the one that holds offset from on. off is where
// the span begins. It opens only the lists it needs and stops at fn's first error.
func WalkSpans(ctx context.Context, src Source, c Content, from uint64, fn func(off uint64, s Span) error) error {
	if from >= c.Size {
		return nil
	}
	var pos uint64
	cur := newCursor(listShape(ctx, src, nil, 0), Span{c.Size, c.Root}, int(c.Depth))
	cur.passed = func(_ int, s Span) { pos += s.Size }
	for {
		err := cur.advance(nil, func(_ int, s Span) verdict {
			if pos+s.Size <= from {
				return take
			}
			return split
		})
		if err != nil {
			return err
		}
		s, _, ok := cur.peek()
		if !ok {
			return nil
		}
		if err := fn(pos, s); err != nil {
			return err
		}
		cur.step()
	}
}

// ListEditor makes a file's new content out of its old one. The caller goes through the file once, from the front,
// and for each stretch either keeps the old spans (CopyTo) or adds new ones (Add) and passes the old (Boundary).
// Lists that are kept whole are neither read nor written. It is not safe for concurrent use.
type ListEditor struct {
	b    builder[Span]
	c    cursor[Span]
	pos  uint64 // where the cursor stands in the old content; inside of a hole it may be anywhere
	hole uint64 // how much of the hole at the cursor is used up
	size uint64 // of the new content so far
}

// holeAlign is where a hole may be cut in two: at block boundaries of CutFixed, so that what is chunked anew beside it
// keeps its alignment.
const holeAlign = 64 << 10

// NewListEditor starts at the front of base, which may be empty. src reads old lists; new ones go to sink with cut.
func NewListEditor(ctx context.Context, src Source, sink Sink, base Content, cut Cut) *ListEditor {
	s := listShape(ctx, src, sink, cut)
	e := &ListEditor{b: builder[Span]{shape: s}}
	e.c = cursor[Span]{shape: s}
	if base.Size > 0 {
		e.c = newCursor(s, Span{base.Size, base.Root}, int(base.Depth))
	}
	e.c.passed = func(_ int, s Span) {
		e.pos += s.Size - e.hole
		e.hole = 0
	}
	return e
}

// Add appends a new chunk or, with a zero ID, a hole.
func (e *ListEditor) Add(s Span) error {
	if s.Size == 0 {
		return nil
	}
	e.size += s.Size
	return e.add(s)
}

// add appends a span to level 0. Holes that touch become one.
func (e *ListEditor) add(s Span) error {
	if s.ID.IsZero() && len(e.b.levels) > 0 {
		if items := e.b.levels[0].items; len(items) > 0 && items[len(items)-1].ID.IsZero() {
			items[len(items)-1].Size += s.Size
			return nil
		}
	}
	return e.b.add(0, s)
}

// CopyTo keeps the old spans from where the cursor stands up to the last boundary at or before off, and returns that
// boundary.
func (e *ListEditor) CopyTo(off uint64) (uint64, error) {
	for {
		start := e.pos
		err := e.c.advance(&e.b, func(level int, s Span) verdict {
			// A hole goes by hand, below: it may have to merge with its neighbour, or a part of it may be used.
			if e.pos+s.Size-e.hole <= off && !(level == 0 && s.ID.IsZero()) {
				return take
			}
			return split
		})
		e.size += e.pos - start
		if err != nil {
			return e.pos, err
		}
		s, _, ok := e.c.peek()
		if !ok || !s.ID.IsZero() {
			return e.pos, nil
		}
		rest := s.Size - e.hole
		if e.pos+rest <= off {
			if err := e.add(Span{Size: rest}); err != nil {
				return e.pos, err
			}
			e.size += rest
			e.c.step()
			continue
		}
		if cut := off &^ (holeAlign - 1); cut > e.pos {
			n := cut - e.pos
			if err := e.add(Span{Size: n}); err != nil {
				return e.pos, err
			}
			e.size += n
			e.hole += n
			e.pos = cut
		}
		return e.pos, nil
	}
}

// Boundary drops the old spans that end at or before off and says whether the cursor then stands exactly at off, that
// is, whether an old span begins there (or a hole goes on there). The end of the old content is a boundary.
func (e *ListEditor) Boundary(off uint64) (bool, error) {
	err := e.c.advance(nil, func(_ int, s Span) verdict {
		if e.pos+s.Size-e.hole <= off {
			return take
		}
		return split
	})
	if err != nil {
		return false, err
	}
	if s, _, ok := e.c.peek(); ok && s.ID.IsZero() && off > e.pos {
		e.hole += off - e.pos
		e.pos = off
	}
	return e.pos == off, nil
}

// At returns the old span the cursor stands before: what stood there, as a base for deltas. ok is false at the end.
func (e *ListEditor) At() (off uint64, s Span, ok bool) {
	s, level, ok := e.c.peek()
	if !ok || level != 0 {
		return e.pos, Span{}, false
	}
	return e.pos - e.hole, s, true
}

// Size returns the bytes of new content so far.
func (e *ListEditor) Size() uint64 { return e.size }

// Finish stores the lists that are still open and returns the new content. Old spans not copied are not in it.
func (e *ListEditor) Finish() (Content, error) {
	root, level, err := e.b.finish(0)
	if err != nil || level < 0 {
		return Content{}, err
	}
	return Content{Size: root.Size, Depth: uint8(level), Root: root.ID}, nil
}
