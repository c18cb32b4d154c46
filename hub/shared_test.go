package hub

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"dm/internal/errs"
	"dm/object"
	"dm/remote"
	"dm/remote/bucket"
	"dm/remote/hubproto"
	"dm/remote/remotetest"
	"dm/remote/remotetest/s3server"
	"dm/remote/s3"
	"dm/store/pack"
)

// onS3 makes a bucket on a real server and returns it opened, each time under the prefix that hubs have in common.
func onS3(t testing.TB, addr, prefix string) func() bucket.Bucket {
	return func() bucket.Bucket {
		c, err := s3.Parse(fmt.Sprintf("s3://%s@dm-test/%s?endpoint=http://%s&region=%s", s3server.AccessKey, prefix, addr, s3server.Region))
		must(t, err)
		c.SecretKey = s3server.SecretKey
		b, err := s3.Open(c)
		must(t, err)
		return b
	}
}

// Two hubs serve one bucket, and clients come to either of them by turns: nobody can tell them from one hub.
func TestTwoHubsOneBucket(t *testing.T) {
	run := func(t *testing.T, open func(t *testing.T) func() bucket.Bucket) {
		remotetest.Run(t, func(t *testing.T) remotetest.Setup {
			hubs := serveHubs(t, open(t), 2, Limits{}, "alice")
			var turn atomic.Int64
			return remotetest.Setup{
				Open: func(t testing.TB) remote.Remote {
					return hubs[turn.Add(1)%2].as(t, "alice")
				},
			}
		})
	}
	t.Run("directory", func(t *testing.T) { run(t, func(t *testing.T) func() bucket.Bucket { return inDirectory(t) }) })
	for _, name := range s3server.Names() {
		t.Run(name, func(t *testing.T) {
			addr := s3server.Start(t, name)
			s3server.MakeBucket(t, addr, "dm-test")
			var n atomic.Int64
			run(t, func(t *testing.T) func() bucket.Bucket { return onS3(t, addr, fmt.Sprintf("hub%d", n.Add(1))) })
		})
	}
}

// What one hub is told about users, keys and shares holds at the other one from the next request on. Changes at the same
// time are all made.
func TestAccountsOfTwoHubs(t *testing.T) {
	ctx := context.Background()
	hubs := serveHubs(t, inDirectory(t), 2, Limits{}, "alice", "bob")
	a, b := hubs[0], hubs[1]
	w, _ := pushed(t, a, "alice/app")
	bob := b.as(t, "bob")
	sees := func() bool {
		t.Helper()
		refs, err := dotOfUser(t, bob, "alice/app").Refs(ctx)
		must(t, err)
		return refs["heads/master"] == w.Tip
	}
	alice := a.as(t, "alice")
	for range 3 {
		if sees() {
			t.Fatal("bob sees what is not shared")
		}
		must(t, alice.Share(ctx, "alice/app", hubproto.Share{User: "bob", Access: hubproto.Read}))
		if !sees() {
			t.Fatal("bob does not see what was shared at the other hub")
		}
		must(t, alice.Share(ctx, "alice/app", hubproto.Share{User: "bob", Access: hubproto.None}))
	}
	_, err := a.NewKey(ctx, "bob")
	must(t, err)
	mustBe(t, bob.Check(ctx), errs.NotAllowed)

	const each = 20
	var wg sync.WaitGroup
	var won atomic.Int64
	for i, h := range hubs {
		wg.Go(func() {
			for k := range each {
				if _, err := h.AddUser(ctx, fmt.Sprintf("user%d-%d", i, k)); err != nil {
					t.Error(err)
				}
				if _, err := h.AddUser(ctx, fmt.Sprintf("both-%d", k)); err == nil {
					won.Add(1)
				} else if errs.KindOf(err) != errs.Conflict {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	users, err := b.Users(ctx)
	must(t, err)
	if len(users) != 2+3*each || won.Load() != each {
		t.Errorf("%d users, %d of %d names given once", len(users), won.Load(), each)
	}
	must(t, a.as(t, "alice").Delete(ctx, "alice/app"))
	list, err := b.as(t, "alice").Dots(ctx)
	must(t, err)
	if len(list) != 0 {
		t.Errorf("dots after deletion at the other hub: %v", list)
	}
}

// A dot takes over from another one of its owner's an object that is stored as a delta. Who may read the one and not the
// other gets the object, and not what it is a delta of.
func TestBaseOfAnotherDotStaysHidden(t *testing.T) { eachEngine(t, testBaseOfAnotherDotStaysHidden) }

func testBaseOfAnotherDotStaysHidden(t *testing.T, engine string) {
	ctx := context.Background()
	h := serveHub(t, engine, Limits{}, "alice", "bob")
	alice, bob := h.as(t, "alice"), h.as(t, "bob")
	local := remotetest.OpenStore(t)
	w := remotetest.NewWorld(t, local, 1)
	w.Write("db/one", 20)
	first := w.Commit("secret")
	secret := anyChunk(t, local, first)
	for page := range 20 {
		w.Touch("db/one", page)
	}
	w.Commit("redacted")
	push := func(name, ref string, tip object.ID) remote.Pushed {
		t.Helper()
		res, err := remote.PushRef(ctx, local, dotOfUser(t, alice, name), remote.Push{Ref: ref, Tip: tip})
		must(t, err)
		return res
	}
	push("alice/private", "heads/master", w.Tip)
	w.Tip = object.ID{}
	tip := w.Commit("without history")
	if res := push("alice/shown", "heads/master", tip); res.Bytes > 50000 {
		t.Errorf("%d bytes travel for what another dot has", res.Bytes)
	}
	// Touched again, the pages travel as deltas of what is in the other dot only.
	for page := range 20 {
		w.Touch("db/one", page)
	}
	next := w.Commit("next")
	push("alice/private", "heads/other", next)
	push("alice/shown", "heads/master", next)
	must(t, alice.Share(ctx, "alice/shown", hubproto.Share{User: "bob", Access: hubproto.Read}))
	shown := dotOfUser(t, bob, "alice/shown")
	other := remotetest.OpenStore(t)
	_, release, err := remotetest.PullRef(ctx, other, shown, remotetest.Pull{Ref: "heads/master"})
	must(t, err)
	release()
	remotetest.Verify(t, other, next)
	err = shown.Load(ctx, remote.Request{Wants: []remote.Want{
		{Kind: object.KindChunk, ID: secret}, {Kind: object.KindCommit, ID: first},
	}}, func(r *pack.Record) error { return fmt.Errorf("%s %s is shown", r.Kind, r.ID.Short()) })
	must(t, err)
}

// What a dot takes over as a delta of what is at the end of a chain there does not make the chain longer than it may be.
func TestAdoptedChain(t *testing.T) {
	ctx := context.Background()
	h := serveHub(t, "bucket", Limits{}, "alice")
	alice := h.as(t, "alice")
	content := func(i int) []byte {
		b := make([]byte, 4096)
		rand.NewChaCha8([32]byte{1}).Read(b)
		b[i] ^= 1
		return b
	}
	sum := func(i int) object.ID { return object.Sum(object.KindChunk, content(i)) }
	chain := newPack().whole(object.KindChunk, content(0))
	for i := range remote.MaxChain {
		chain.delta(object.KindChunk, content(i+1), sum(i), content(i))
	}
	const end, next = remote.MaxChain, remote.MaxChain + 1
	must(t, dotOfUser(t, alice, "alice/own").Store(ctx, chain.seal()))
	must(t, dotOfUser(t, alice, "alice/other").Store(ctx, newPack().whole(object.KindChunk, content(end)).
		delta(object.KindChunk, content(next), sum(end), content(end)).seal()))
	list := &object.List{Level: 1, Spans: []object.Span{{Size: 4096, ID: sum(next)}, {Size: 4096, ID: sum(0)}}}
	must(t, dotOfUser(t, alice, "alice/own").Store(ctx, newPack().whole(object.KindList, list.Encode()).seal()))
	s, err := h.see(ctx, "alice", "alice/own", readable)
	must(t, err)
	own, err := h.engine.(*sharedEngine).dot(s.own)
	must(t, err)
	for i := range next + 1 {
		head, depth, ok := own.r.Head(sum(i))
		want := 0
		if head.Encoding.HasBase() {
			_, want, _ = own.r.Head(head.Base)
			want++
		}
		if !ok || depth != want || depth > remote.MaxChain {
			t.Errorf("object %d: depth %d, %v; its base makes it %d", i, depth, ok, want)
		}
	}
}

// A hub takes no bucket that has something else, and no client takes a hub's bucket for a remote.
func TestBucketOfAnother(t *testing.T) {
	ctx := context.Background()
	open := inDirectory(t)
	serveHubs(t, open, 1, Limits{})
	r, err := bucket.Open(open(), bucket.Options{})
	must(t, err)
	mustBe(t, r.Check(ctx), errs.Conflict)

	for name, content := range map[string]string{"thesis.txt": "", hubMarker: "dm hub 2\n"} {
		b := inDirectory(t)()
		must(t, os.WriteFile(filepath.Join(b.String(), name), []byte(content), 0o600))
		if _, err := openIn(ctx, Config{Dir: t.TempDir()}, b); errs.KindOf(err) != errs.Conflict && errs.KindOf(err) != errs.Usage {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Accounts that are damaged or newer are refused, and nobody gets in.
func TestDamagedAccounts(t *testing.T) {
	ctx := context.Background()
	open := inDirectory(t)
	h := serveHubs(t, open, 1, Limits{}, "alice")[0]
	good, tag, err := open().Get(ctx, accountsKey, maxAccounts)
	must(t, err)
	flipped := append([]byte(nil), good...)
	flipped[len(good)/2] ^= 1
	for _, bad := range [][]byte{{}, flipped, good[:len(good)-1], []byte("dm hub accounts 2\n")} {
		must(t, open().Swap(ctx, accountsKey, bad, tag))
		if err := h.as(t, "alice").Check(ctx); err == nil {
			t.Errorf("%.40q is taken", bad)
		}
		if _, tag, err = open().Get(ctx, accountsKey, maxAccounts); err != nil {
			t.Fatal(err)
		}
	}
}

func FuzzAccounts(f *testing.F) {
	m := newMemAccounts()
	m.putUser("alice", &userRecord{Hash: make([]byte, 32)})
	m.putDot("alice/app", &dotRecord{ID: "0123", Shares: map[string]hubproto.Access{"bob": hubproto.Read}})
	b, err := m.encode()
	must(f, err)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		// The checksum is put right, so that what is behind it is reached.
		if n := len(b) - len("end 00000000\n"); n > 0 {
			b = fmt.Appendf(b[:n:n], "end %08x\n", castagnoli(b[:n]))
		}
		m, err := decodeAccounts(b)
		if err != nil {
			return
		}
		again, err := m.encode()
		must(t, err)
		if _, err := decodeAccounts(again); err != nil {
			t.Errorf("what was decoded cannot be written and read: %v", err)
		}
	})
}
