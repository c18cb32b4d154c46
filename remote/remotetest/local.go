package remotetest

import (
	"context"
	"testing"

	"dm/internal/errs"
	"dm/object"
	"dm/remote"
	"dm/store"
)

// OpenStore opens a new empty local store, which is closed when the test ends.
func OpenStore(t testing.TB) remote.Local {
	t.Helper()
	s, err := store.Open(context.Background(), t.TempDir(), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return remote.FromStore(s)
}

// Pull is a branch or tag to be pulled.
type Pull struct {
	Ref   string    // at the remote
	Tip   object.ID // of the local branch; zero: there is none
	Fetch remote.FetchOptions
}

// Pulled says what a pull found and fetched.
type Pulled struct {
	remote.Stats
	Tip      object.ID       // the remote's
	Relation remote.Relation // how the local tip stands to it
}

// PullRef fetches what a ref of the remote points to: NotFound where there is none. What was fetched is kept from gc until
// release is called.
func PullRef(ctx context.Context, local remote.Local, from remote.Dot, p Pull) (res Pulled, release func(), err error) {
	refs, err := from.Refs(ctx)
	if err != nil {
		return res, nil, err
	}
	ok := false
	if res.Tip, ok = refs[p.Ref]; !ok {
		return res, nil, errs.New(errs.NotFound, "the remote has no %s", p.Ref)
	}
	var haves []object.ID
	if !p.Tip.IsZero() {
		haves = []object.ID{p.Tip}
	}
	if res.Stats, release, err = remote.Fetch(ctx, local, from, []object.ID{res.Tip}, haves, p.Fetch); err != nil {
		return res, nil, err
	}
	if res.Relation, err = remote.Relate(ctx, local, p.Tip, res.Tip); err != nil {
		release()
		return res, nil, err
	}
	return res, release, nil
}
