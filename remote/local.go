package remote

import (
	"context"

	"dm/object"
)

// storeOf is what package store's Store is to this package, which does not import it.
type storeOf[B any] interface {
	object.Source
	Has(id object.ID) (bool, error)
	Begin(ctx context.Context) (B, error)
}

// batchOf is what its Batch is. Tx is a transaction, Stats what a commit returns.
type batchOf[Tx, Stats any] interface {
	object.Source
	Has(id object.ID) (bool, error)
	PutOver(ctx context.Context, kind object.Kind, plain []byte, old object.ID) (object.ID, error)
	Commit(ctx context.Context, fn func(tx *Tx) error) (Stats, error)
	Abort()
}

// FromStore makes a Local of a *store.Store.
func FromStore[B batchOf[Tx, Stats], Tx, Stats any](s storeOf[B]) Local {
	l := local[B, Tx, Stats]{s}
	if r, ok := s.(recordSource); ok {
		return struct {
			local[B, Tx, Stats]
			recordSource
		}{l, r}
	}
	return l
}

type local[B batchOf[Tx, Stats], Tx, Stats any] struct{ storeOf[B] }

func (l local[B, Tx, Stats]) Begin(ctx context.Context) (Batch, error) {
	b, err := l.storeOf.Begin(ctx)
	if err != nil {
		return nil, err
	}
	wrapped := localBatch[B, Tx, Stats]{b}
	if sink, ok := any(b).(recordSink); ok {
		return struct {
			localBatch[B, Tx, Stats]
			recordSink
		}{wrapped, sink}, nil
	}
	return wrapped, nil
}

// localBatch does not embed the batch: its Commit has other parameters.
type localBatch[B batchOf[Tx, Stats], Tx, Stats any] struct{ b B }

func (l localBatch[B, Tx, Stats]) Get(ctx context.Context, kind object.Kind, id object.ID) ([]byte, error) {
	return l.b.Get(ctx, kind, id)
}

func (l localBatch[B, Tx, Stats]) Has(id object.ID) (bool, error) { return l.b.Has(id) }

func (l localBatch[B, Tx, Stats]) PutOver(ctx context.Context, kind object.Kind, plain []byte, old object.ID) (object.ID, error) {
	return l.b.PutOver(ctx, kind, plain, old)
}

func (l localBatch[B, Tx, Stats]) Commit(ctx context.Context) error {
	_, err := l.b.Commit(ctx, nil)
	return err
}

func (l localBatch[B, Tx, Stats]) Abort() { l.b.Abort() }
