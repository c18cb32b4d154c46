package remote_test

import (
	"context"
	"strings"
	"testing"

	"dm/internal/errs"
	"dm/object"
	"dm/remote"
	"dm/remote/bucket"
	"dm/remote/dir"
	"dm/remote/remotetest"
)

func openDir(t testing.TB, path string) remote.Dot {
	t.Helper()
	b, err := dir.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	r, err := bucket.Open(b, bucket.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	d, err := r.Dot("alice/app")
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// Two people work on one branch: forward only, told when they have diverged, and nothing is lost.
func TestPushAndPullOfABranch(t *testing.T) {
	ctx := context.Background()
	path := t.TempDir()
	a, b := remotetest.OpenStore(t), remotetest.OpenStore(t)
	da, db := openDir(t, path), openDir(t, path)
	w := remotetest.NewWorld(t, a, 1)
	w.Write("db/one", 10)
	first := w.Commit("first")
	ref := "heads/" + strings.Repeat("m", 60) // what is kept of it must have a name, too
	push := func(local remote.Local, d remote.Dot, p remote.Push) (remote.Pushed, error) {
		p.Ref = ref
		return remote.PushRef(ctx, local, d, p)
	}
	if res, err := push(a, da, remote.Push{Tip: first}); err != nil || res.Old == res.New || res.Objects == 0 {
		t.Fatalf("%+v, %v", res, err)
	}
	if res, err := push(a, da, remote.Push{Tip: first}); err != nil || res.Old != res.New || res.Bytes != 0 {
		t.Fatalf("up to date: %+v, %v", res, err)
	}
	pulled, release, err := remotetest.PullRef(ctx, b, db, remotetest.Pull{Ref: ref})
	if err != nil || pulled.Tip != first || pulled.Relation != remote.Behind {
		t.Fatalf("%+v, %v", pulled, err)
	}
	release()

	w.Touch("db/one", 1)
	second := w.Commit("second")
	if _, err := push(a, da, remote.Push{Tip: second}); err != nil {
		t.Fatal(err)
	}
	side := remotetest.NewWorld(t, b, 2)
	side.Tip = first
	side.Write("db/other", 2)
	other := side.Commit("other")
	if _, err := push(b, db, remote.Push{Tip: other}); errs.KindOf(err) != errs.Conflict || errs.HintOf(err) == "" {
		t.Fatalf("diverged, not fetched: %v", err)
	}
	pulled, release, err = remotetest.PullRef(ctx, b, db, remotetest.Pull{Ref: ref, Tip: other})
	if err != nil || pulled.Relation != remote.Diverged || pulled.Objects > 10 {
		t.Fatalf("%+v, %v", pulled, err)
	}
	release()
	if _, err := push(b, db, remote.Push{Tip: first}); errs.KindOf(err) != errs.Conflict {
		t.Fatalf("behind: %v", err)
	}
	if _, err := push(b, db, remote.Push{Tip: other, Force: true, LastSeen: first}); errs.KindOf(err) != errs.Conflict {
		t.Fatalf("force over what was not seen: %v", err)
	}
	res, err := push(b, db, remote.Push{Tip: other, Stash: true})
	if err != nil || res.Stashed == "" {
		t.Fatalf("stash: %+v, %v", res, err)
	}
	refs, err := da.Refs(ctx)
	if err != nil || refs[ref] != other || refs[res.Stashed] != second {
		t.Fatalf("refs %v, %v", refs, err)
	}
	if _, err := push(a, da, remote.Push{Tip: second, Force: true, LastSeen: other}); err != nil {
		t.Fatalf("force over what was seen: %v", err)
	}
	if _, _, err := remotetest.PullRef(ctx, b, db, remotetest.Pull{Ref: "heads/none"}); errs.KindOf(err) != errs.NotFound {
		t.Fatalf("a branch that is not there: %v", err)
	}
	if rel, err := remote.Relate(ctx, a, second, first); err != nil || rel != remote.Ahead {
		t.Errorf("relation %v, %v", rel, err)
	}
	if rel, err := remote.Relate(ctx, a, object.ID{}, first); err != nil || rel != remote.Behind {
		t.Errorf("relation of nothing %v, %v", rel, err)
	}
}
