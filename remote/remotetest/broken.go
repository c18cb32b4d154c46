package remotetest

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"dm/object"
	"dm/remote"
	"dm/store/pack"
)

// flaky is a Dot whose connection breaks after so many bytes of records.
type flaky struct {
	remote.Dot
	left atomic.Int64
}

func (f *flaky) Load(ctx context.Context, req remote.Request, fn func(*pack.Record) error) error {
	return f.Dot.Load(ctx, req, func(r *pack.Record) error {
		if f.left.Add(-int64(r.RecordLen())) < 0 {
			return errCut
		}
		return fn(r)
	})
}

// interruptedFetch breaks a pull again and again. Each one goes on where the last one stopped.
func interruptedFetch(t *testing.T, s Setup) {
	ctx := context.Background()
	local, other := OpenStore(t), OpenStore(t)
	w := NewWorld(t, local, 8)
	w.Write("db/one", 100)
	tip := w.Commit("first")
	_, d := open(t, s)
	whole := send(t, local, d, tip)
	must(t, d.Move(ctx, "heads/master", object.ID{}, tip))
	var got int64
	for n := 1; ; n++ {
		if n > 20 {
			t.Fatal("the fetch never comes to its end")
		}
		f := &flaky{Dot: d}
		f.left.Store(whole.Bytes / 5)
		st, release, err := remote.Fetch(ctx, other, f, []object.ID{tip}, nil, remote.FetchOptions{Parallel: 1})
		got += st.Bytes
		if err == nil {
			release()
			break
		}
		if !errors.Is(err, errCut) {
			t.Fatal(err)
		}
		if has, err := other.Has(tip); err != nil || has {
			t.Fatalf("an unfinished fetch shows the commit (%v)", err)
		}
	}
	Verify(t, other, tip)
	if got > whole.Bytes*3/2 {
		t.Errorf("%d bytes were fetched in all, without a break %d", got, whole.Bytes)
	}
}
