package hub

import (
	"context"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dm/internal/errs"
	"dm/object"
	"dm/remote"
	"dm/remote/hubproto"
	"dm/remote/hubremote"
	"dm/remote/remotetest"
)

func mustBe(t testing.TB, err error, kind errs.Kind) {
	t.Helper()
	if err == nil || errs.KindOf(err) != kind {
		t.Fatalf("error %v, want one of kind %v", err, kind)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func dotOfUser(t testing.TB, r remote.Remote, name string) remote.Dot {
	t.Helper()
	d, err := r.Dot(name)
	must(t, err)
	return d
}

// pushed is a dot of alice's with one commit.
func pushed(t testing.TB, h *served, name string) (w *remotetest.World, local remote.Local) {
	t.Helper()
	local = remotetest.OpenStore(t)
	w = remotetest.NewWorld(t, local, 1)
	w.Write("db/one", 20)
	w.Commit("first")
	_, err := remote.PushRef(context.Background(), local, dotOfUser(t, h.as(t, strings.Split(name, "/")[0]), name),
		remote.Push{Ref: "heads/master", Tip: w.Tip})
	must(t, err)
	return w, local
}

// anyChunk returns a chunk that a commit needs.
func anyChunk(t testing.TB, local remote.Local, tip object.ID) object.ID {
	t.Helper()
	w := remote.Want{Kind: object.KindCommit, ID: tip}
	for w.Kind != object.KindChunk {
		plain, err := local.Get(context.Background(), w.Kind, w.ID)
		must(t, err)
		must(t, object.References(w.Kind, plain, func(r object.Reference) {
			if r.Kind != object.KindCommit {
				w = remote.Want{Kind: r.Kind, ID: r.ID}
			}
		}))
	}
	return w.ID
}

// Three users: alice shares with bob, first to read, then to write, and never with carol.
func TestSharing(t *testing.T) { eachEngine(t, testSharing) }

func testSharing(t *testing.T, engine string) {
	ctx := context.Background()
	h := serveHub(t, engine, Limits{}, "alice", "bob", "carol")
	w, _ := pushed(t, h, "alice/app")
	const name = "alice/app"
	bob, carol, anybody := h.as(t, "bob"), h.as(t, "carol"), h.as(t, "")

	sees := func(r *hubremote.Remote) bool {
		t.Helper()
		list, err := r.Dots(ctx)
		must(t, err)
		refs, err := dotOfUser(t, r, name).Refs(ctx)
		must(t, err)
		_, release, ferr := remote.Fetch(ctx, remotetest.OpenStore(t), dotOfUser(t, r, name), []object.ID{w.Tip}, nil, remote.FetchOptions{})
		if ferr == nil {
			release()
		}
		if (len(list) == 1) != (len(refs) == 1) || (ferr == nil) != (len(refs) == 1) {
			t.Fatalf("lists %v, refs %v, fetch %v", list, refs, ferr)
		}
		return len(refs) == 1
	}
	for _, r := range []*hubremote.Remote{bob, carol, anybody} {
		if sees(r) {
			t.Fatal("seen by somebody it was not shared with")
		}
		mustBe(t, dotOfUser(t, r, name).Move(ctx, "heads/x", object.ID{}, w.Tip), errs.NotAllowed)
		mustBe(t, r.Share(ctx, name, hubproto.Share{User: "bob", Access: hubproto.Write}), errs.NotAllowed)
		mustBe(t, r.Delete(ctx, name), errs.NotAllowed)
	}
	alice := h.as(t, "alice")
	mustBe(t, alice.Share(ctx, name, hubproto.Share{User: "nobody", Access: hubproto.Read}), errs.NotFound)
	must(t, alice.Share(ctx, name, hubproto.Share{User: "bob", Access: hubproto.Read}))
	if !sees(bob) || sees(carol) || sees(anybody) {
		t.Fatal("shared with bob to read")
	}
	mustBe(t, dotOfUser(t, bob, name).Move(ctx, "heads/x", object.ID{}, w.Tip), errs.NotAllowed)
	must(t, alice.Share(ctx, name, hubproto.Share{User: "bob", Access: hubproto.Write}))
	must(t, dotOfUser(t, bob, name).Move(ctx, "heads/x", object.ID{}, w.Tip))
	mustBe(t, bob.Delete(ctx, name), errs.NotAllowed)
	must(t, dotOfUser(t, bob, name).Move(ctx, "heads/x", w.Tip, object.ID{}))
	must(t, alice.Share(ctx, name, hubproto.Share{User: hubproto.Everyone, Access: hubproto.Read}))
	if !sees(carol) || !sees(anybody) {
		t.Fatal("public")
	}
	mustBe(t, alice.Share(ctx, name, hubproto.Share{User: hubproto.Everyone, Access: hubproto.Write}), errs.Usage)
	must(t, alice.Share(ctx, name, hubproto.Share{User: hubproto.Everyone, Access: hubproto.None}))
	must(t, alice.Share(ctx, name, hubproto.Share{User: "bob", Access: hubproto.None}))
	if sees(bob) || sees(carol) || sees(anybody) {
		t.Fatal("not shared any more")
	}
}

// Nothing that carol asks or sends tells her that an object exists in a dot of alice's.
func TestNothingIsLearntOfOthersObjects(t *testing.T) {
	eachEngine(t, testNothingIsLearntOfOthersObjects)
}

func testNothingIsLearntOfOthersObjects(t *testing.T, engine string) {
	ctx := context.Background()
	h := serveHub(t, engine, Limits{}, "alice", "carol")
	w, local := pushed(t, h, "alice/app")
	carol := h.as(t, "carol")
	mine := dotOfUser(t, carol, "carol/app")
	theirs := dotOfUser(t, carol, "alice/app")
	for _, d := range []remote.Dot{mine, theirs} {
		missing, err := d.Missing(ctx, []object.ID{w.Tip, {9}})
		must(t, err)
		if len(missing) != 2 {
			t.Errorf("missing: %v", missing)
		}
	}
	mustBe(t, mine.Move(ctx, "heads/x", object.ID{}, w.Tip), errs.NotFound)
	mustBe(t, mine.Move(ctx, "heads/x", object.ID{}, object.ID{9}), errs.NotFound)

	// Her own commit of what she has not sent, but alice has.
	plain, err := local.Get(ctx, object.KindCommit, w.Tip)
	must(t, err)
	c, err := object.DecodeCommit(plain)
	must(t, err)
	c.Message = "carol's"
	for _, tree := range []object.ID{c.Root.Tree, {8}} {
		c.Root.Tree = tree
		p := newPack().whole(object.KindCommit, c.Encode()).seal()
		mustBe(t, mine.Store(ctx, p), errs.Damaged)
	}
	// A delta of what alice has.
	chunk := anyChunk(t, local, w.Tip)
	base, err := local.Get(ctx, object.KindChunk, chunk)
	must(t, err)
	p := newPack().delta(object.KindChunk, append([]byte("x"), base[1:]...), chunk, base).seal()
	mustBe(t, mine.Store(ctx, p), errs.Damaged)
	if n := h.members(t, "carol/app"); n != 0 {
		t.Errorf("%d objects of refused packs are members", n)
	}
}

func TestKeys(t *testing.T) { eachEngine(t, testKeys) }

func testKeys(t *testing.T, engine string) {
	ctx := context.Background()
	const wait = 3 * time.Second // the request after the wrong keys has to come within it, also on a busy machine
	h := serveHub(t, engine, Limits{Logins: 3, LoginWait: wait}, "alice", "bob")
	must(t, h.as(t, "alice").Check(ctx))
	_, err := h.AddUser(ctx, "alice")
	mustBe(t, err, errs.Conflict)
	_, err = h.AddUser(ctx, "a/b")
	mustBe(t, err, errs.Usage)
	old := h.keys["alice"]
	h.keys["alice"], err = h.NewKey(ctx, "alice")
	must(t, err)
	must(t, h.as(t, "alice").Check(ctx))
	for _, key := range []string{old, h.keys["bob"], ""} {
		r, err := hubremote.Open(hubremote.Config{URL: h.url, User: "alice", Key: key})
		must(t, err)
		mustBe(t, r.Check(ctx), errs.NotAllowed)
	}
	// After too many wrong keys even the right one has to wait.
	req, err := http.NewRequest(http.MethodGet, h.url+"/v1/", nil)
	must(t, err)
	req.SetBasicAuth("alice", h.keys["alice"])
	resp, err := http.DefaultClient.Do(req)
	must(t, err)
	resp.Body.Close()
	if resp.StatusCode != http.StatusTooManyRequests {
		t.Errorf("status %d after too many wrong keys", resp.StatusCode)
	}
	time.Sleep(wait)
	must(t, h.as(t, "alice").Check(ctx))
	must(t, h.RemoveUser(ctx, "bob"))
	mustBe(t, h.RemoveUser(ctx, "bob"), errs.NotFound)
	mustBe(t, h.as(t, "bob").Check(ctx), errs.NotAllowed)
	// A push that broke off has left a dot that nobody sees. Its owner can delete it, so that the user can be removed.
	alice := h.as(t, "alice")
	must(t, dotOfUser(t, alice, "alice/app").Store(ctx, newPack().whole(object.KindChunk, []byte("x")).seal()))
	if err := h.RemoveUser(ctx, "alice"); errs.KindOf(err) != errs.Conflict || !strings.Contains(err.Error(), "alice/app") {
		t.Errorf("a user with a dot is removed: %v", err)
	}
	must(t, alice.Delete(ctx, "alice/app"))
	mustBe(t, alice.Delete(ctx, "alice/app"), errs.NotFound)
	must(t, h.RemoveUser(ctx, "alice"))
}

// A hub with a certificate of its own: clients pin it, and notice another one. It is administered while it runs, stops when
// told to, and what it has is there again afterwards.
func TestServe(t *testing.T) {
	dir := t.TempDir()
	var tip object.ID
	var key string
	local := remotetest.OpenStore(t)
	for round := range 2 {
		ctx, cancel := context.WithCancel(context.Background())
		type ready struct {
			addr        net.Addr
			fingerprint string
		}
		up := make(chan ready, 1)
		done := make(chan error, 1)
		go func() {
			done <- Serve(ctx, ServeConfig{
				Config: Config{Dir: dir, MinFree: 1}, Listen: "127.0.0.1:0",
				Ready: func(a net.Addr, f string) { up <- ready{a, f} },
			})
		}()
		var r ready
		select {
		case r = <-up:
		case err := <-done:
			t.Fatal(err)
		}
		admin, err := OpenAdmin(ctx, Config{Dir: dir})
		must(t, err)
		if _, ok := admin.(*Hub); ok {
			t.Fatal("a running hub was opened a second time")
		}
		if round == 0 {
			key, err = admin.AddUser(ctx, "alice")
			must(t, err)
		}
		users, err := admin.Users(ctx)
		must(t, err)
		if len(users) != 1 || users[0].Name != "alice" {
			t.Errorf("users: %v", users)
		}
		_, err = admin.NewKey(ctx, "nobody")
		mustBe(t, err, errs.NotFound)
		url := "https://" + r.addr.String()
		got, trusted, err := hubremote.Fingerprint(ctx, url)
		if err != nil || trusted || got != r.fingerprint {
			t.Fatalf("fingerprint %s, trusted %v, %v", got, trusted, err)
		}
		c := hubremote.Config{URL: url, User: "alice", Key: key, Fingerprint: strings.Repeat("ab", 32)}
		wrong, err := hubremote.Open(c)
		must(t, err)
		mustBe(t, wrong.Check(ctx), errs.NotAllowed)
		c.Fingerprint = r.fingerprint
		client, err := hubremote.Open(c)
		must(t, err)
		d := dotOfUser(t, client, "alice/app")
		if round == 0 {
			w := remotetest.NewWorld(t, local, 1)
			w.Write("db/one", 3)
			tip = w.Commit("first")
			_, err = remote.PushRef(ctx, local, d, remote.Push{Ref: "heads/master", Tip: tip})
			must(t, err)
		}
		other := remotetest.OpenStore(t)
		_, release, err := remotetest.PullRef(ctx, other, d, remotetest.Pull{Ref: "heads/master"})
		must(t, err)
		release()
		remotetest.Verify(t, other, tip)
		must(t, admin.Close())
		must(t, client.Close())
		cancel()
		must(t, <-done)
	}
	admin, err := OpenAdmin(context.Background(), Config{Dir: dir})
	must(t, err)
	if _, ok := admin.(*Hub); !ok {
		t.Error("a hub that does not run is administered in its directory", filepath.Join(dir, socketName))
	}
	must(t, admin.Close())
}
