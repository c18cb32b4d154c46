package hub

import (
	"context"
	"fmt"

	"go.etcd.io/bbolt"

	"dm/internal/errs"
	"dm/object"
	"dm/remote/hubproto"
	"dm/store/pack"
)

func (e *localEngine) load(ctx context.Context, d *dotRecord, req *hubproto.LoadRequest, out *pack.Writer) error {
	l := &loader{e: e, out: out, dot: d, sent: map[object.ID]bool{}, met: map[object.ID]bool{}}
	err := e.db.View(func(tx *bbolt.Tx) error {
		own := members(tx, d.ID)
		for _, w := range req.Wants {
			if kind, ok := kindIn(own, w.ID); ok && kind == w.Kind && !l.met[w.ID] {
				l.met[w.ID] = true
				l.wants = append(l.wants, object.Reference{Kind: w.Kind, ID: w.ID})
			}
		}
		for _, id := range req.Haves {
			if kind, ok := kindIn(own, id); ok && kind == object.KindCommit {
				l.haves = append(l.haves, object.Reference{Kind: object.KindCommit, ID: id})
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, w := range l.wants {
		if err := l.send(ctx, w); err != nil {
			return err
		}
	}
	return l.ahead(ctx)
}

// loader is one answer to a LoadRequest.
type loader struct {
	e     *localEngine
	dot   *dotRecord
	out   *pack.Writer
	wants []object.Reference // each once
	haves []object.Reference
	sent  map[object.ID]bool
	met   map[object.ID]bool // wanted, or found below what is: looked at once
	extra int                // bytes of records beyond those wanted
}

// send sends an object as it is stored, unless it is a delta of one that is not the dot's.
func (l *loader) send(ctx context.Context, r object.Reference) error {
	if l.sent[r.ID] {
		return nil
	}
	l.sent[r.ID] = true
	rec, err := l.record(ctx, r)
	if err != nil {
		return fmt.Errorf("read %s %s: %w", r.Kind, r.ID.Short(), err)
	}
	return l.out.Write(&rec)
}

func (l *loader) record(ctx context.Context, r object.Reference) (pack.Record, error) {
	rec, err := l.e.store.Record(ctx, r.Kind, r.ID)
	if err != nil || !rec.Encoding.HasBase() {
		return rec, err
	}
	visible := false
	err = l.e.db.View(func(tx *bbolt.Tx) error {
		b := members(tx, l.dot.ID)
		visible = b != nil && b.Get(rec.Base[:]) != nil
		return nil
	})
	if err != nil || visible {
		return rec, err
	}
	plain, err := l.e.store.Get(ctx, r.Kind, r.ID)
	if err != nil {
		return rec, err
	}
	b, _ := l.e.codec.Append(nil, r.Kind, r.ID, plain)
	return pack.ParseRecord(b)
}

// maxAhead bounds the nodes that are looked at to find out what the asker has already, and those of one level that are sent
// ahead.
const maxAhead = 1 << 16

// ahead sends what the asker will want next: the history and the trees and lists below what is wanted, level by level, as
// far as what the asker has does not hold them in the same places or nearly so. It is a guess: what it sends in vain costs
// some bytes, what it does not send is asked for.
func (l *loader) ahead(ctx context.Context) error {
	fresh, err := l.history(ctx)
	if err != nil {
		return err
	}
	old := l.haves
	oldSeen := map[object.ID]bool{}
	for len(fresh) > 0 && l.extra < hubproto.MaxExtra {
		if old, err = l.below(ctx, old, oldSeen, maxAhead-len(oldSeen)); err != nil {
			return err
		}
		var next []object.Reference
		for _, r := range fresh {
			if oldSeen[r.ID] {
				continue
			}
			if ok, err := l.sendExtra(ctx, r); err != nil || !ok {
				return err
			}
			next = append(next, r)
		}
		if fresh, err = l.below(ctx, next, l.met, maxAhead); err != nil {
			return err
		}
	}
	return nil
}

// history sends the ancestors of the commits wanted and returns what all of these, and the other objects wanted, need.
func (l *loader) history(ctx context.Context) ([]object.Reference, error) {
	for _, r := range l.haves {
		l.met[r.ID] = true
	}
	var rest []object.Reference
	queue := l.wants
	for len(queue) > 0 {
		r := queue[0]
		queue = queue[1:]
		if r.Kind == object.KindChunk {
			continue
		}
		if ok, err := l.sendExtra(ctx, r); err != nil || !ok {
			return rest, err
		}
		err := l.needs(ctx, r, func(n object.Reference) {
			switch {
			case n.Kind == object.KindChunk || l.met[n.ID]:
				return
			case n.Kind == object.KindCommit:
				queue = append(queue, n)
			case len(rest) < maxAhead:
				rest = append(rest, n)
			}
			l.met[n.ID] = true
		})
		if err != nil {
			return nil, err
		}
	}
	return rest, nil
}

// sendExtra sends an object that was not asked for, if there is room.
func (l *loader) sendExtra(ctx context.Context, r object.Reference) (bool, error) {
	if l.sent[r.ID] {
		return true, nil
	}
	n, err := l.e.store.StoredSize(r.ID)
	if err != nil {
		return false, err
	}
	if l.extra += int(n) + pack.MaxHeadLen; l.extra > hubproto.MaxExtra {
		return false, nil
	}
	return true, l.send(ctx, r)
}

// below returns the trees and lists that objects need, and notes them in seen, as long as there are not more than limit.
func (l *loader) below(ctx context.Context, list []object.Reference, seen map[object.ID]bool, limit int) (next []object.Reference, err error) {
	for _, r := range list {
		if len(next) >= limit {
			break
		}
		err := l.needs(ctx, r, func(n object.Reference) {
			if n.Kind != object.KindChunk && n.Kind != object.KindCommit && !seen[n.ID] {
				seen[n.ID] = true
				next = append(next, n)
			}
		})
		if err != nil {
			return nil, err
		}
	}
	return next, nil
}

// needs calls fn for what an object needs.
func (l *loader) needs(ctx context.Context, r object.Reference, fn func(object.Reference)) error {
	plain, err := l.e.store.Get(ctx, r.Kind, r.ID)
	if err == nil {
		err = object.References(r.Kind, plain, fn)
	}
	if err != nil {
		return errs.New(errs.KindOf(err), "look what %s %s needs: %w", r.Kind, r.ID.Short(), err)
	}
	return nil
}
