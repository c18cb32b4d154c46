// Package remotetest is the tests that every remote passes, whatever it is made of: what arrives is what was sent, refs
// move by compare-and-swap, a push that broke off shows nothing and is taken up, and what is there is not believed.
package remotetest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"dm/internal/errs"
	"dm/object"
	"dm/remote"
)

// Setup is a remote to be tested.
type Setup struct {
	// Open opens the remote, each time as another machine of the same user would.
	Open func(t testing.TB) remote.Remote
	// Rounds is how often two writers race, unless DM_ROUNDS says; 0: 40.
	Rounds int
}

// Run runs all tests. setup is called for each and returns a remote that is empty.
func Run(t *testing.T, setup func(t *testing.T) Setup) {
	for _, c := range []struct {
		name string
		test func(*testing.T, Setup)
	}{
		{"EmptyHasNothing", emptyHasNothing},
		{"RoundTrip", roundTrip},
		{"OnlyTheMissing", onlyTheMissing},
		{"ManyCommits", manyCommits},
		{"Refs", refs},
		{"Dots", dots},
		{"RaceOfTwoWriters", race},
		{"InterruptedSendIsInvisible", interruptedSend},
		{"InterruptedFetchGoesOn", interruptedFetch},
		{"ManyMachinesAtATime", manyMachines},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, setup(t)) })
	}
}

const dotName = "alice/app"

func open(t testing.TB, s Setup) (remote.Remote, remote.Dot) {
	t.Helper()
	r := s.Open(t)
	d, err := r.Dot(dotName)
	must(t, err)
	return r, d
}

func send(t testing.TB, local remote.Local, d remote.Dot, tip object.ID, haves ...object.ID) remote.Stats {
	t.Helper()
	st, err := remote.Send(context.Background(), local, d, []object.ID{tip}, haves, remote.SendOptions{})
	must(t, err)
	return st
}

func fetch(t testing.TB, local remote.Local, d remote.Dot, tip object.ID, haves ...object.ID) remote.Stats {
	t.Helper()
	st, release, err := remote.Fetch(context.Background(), local, d, []object.ID{tip}, haves, remote.FetchOptions{})
	must(t, err)
	release()
	return st
}

func emptyHasNothing(t *testing.T, s Setup) {
	ctx := context.Background()
	r, d := open(t, s)
	must(t, r.Check(ctx))
	list, err := r.Dots(ctx)
	must(t, err)
	if len(list) != 0 {
		t.Errorf("dots of an empty remote: %v", list)
	}
	refs, err := d.Refs(ctx)
	must(t, err)
	if len(refs) != 0 {
		t.Errorf("refs of an empty remote: %v", refs)
	}
	ids := []object.ID{{1}, {2}, {1}}
	missing, err := d.Missing(ctx, ids)
	must(t, err)
	if len(missing) != 3 || missing[0] != ids[0] || missing[1] != ids[1] {
		t.Errorf("missing: %v", missing)
	}
	_, _, err = remote.Fetch(ctx, OpenStore(t), d, []object.ID{{7}}, nil, remote.FetchOptions{})
	if err == nil {
		t.Error("a commit that is not there was fetched")
	}
	mustBe(t, r.Delete(ctx, "alice/nothing"), errs.NotFound)
	for _, bad := range []string{"", "x", "a/b/c", "../x", "a/..", "a/", "/b", "a/b\x00", "a/.hidden"} {
		if _, err := r.Dot(bad); errs.KindOf(err) != errs.Usage {
			t.Errorf("dot %q: %v", bad, err)
		}
	}
}

func roundTrip(t *testing.T, s Setup) {
	ctx := context.Background()
	local := OpenStore(t)
	w := NewWorld(t, local, 1)
	w.Write("db/one", 200)
	w.Write("db/two", 3)
	w.Write("cache/x", 1)
	tip := w.Commit("first")
	r, d := open(t, s)
	st := send(t, local, d, tip)
	must(t, d.Move(ctx, "heads/master", object.ID{}, tip))
	if st.Commits != 1 || st.Plain < 204*pageSize {
		t.Errorf("sent %+v", st)
	}
	missing, err := d.Missing(ctx, []object.ID{tip})
	must(t, err)
	if len(missing) != 0 {
		t.Error("what was sent is missing")
	}
	other := OpenStore(t)
	_, d2 := open(t, s)
	fetch(t, other, d2, tip)
	if a, b := Verify(t, local, tip), Verify(t, other, tip); a != b {
		t.Errorf("%d objects sent, %d arrived", a, b)
	}
	n, err := remote.Count(ctx, other, tip)
	must(t, err)
	if n != st.Objects {
		t.Errorf("%d objects sent, the commit has %d", st.Objects, n)
	}
	_ = r
}

// A second push, and a second fetch, cost about what was changed.
func onlyTheMissing(t *testing.T, s Setup) {
	ctx := context.Background()
	local, other := OpenStore(t), OpenStore(t)
	w := NewWorld(t, local, 2)
	w.Write("db/one", 300)
	first := w.Commit("first")
	_, d := open(t, s)
	all := send(t, local, d, first)
	must(t, d.Move(ctx, "heads/master", object.ID{}, first))
	fetch(t, other, d, first)

	w.Touch("db/one", 7)
	w.Touch("db/one", 250)
	second := w.Commit("second")
	_, d = open(t, s)
	st := send(t, local, d, second, first)
	must(t, d.Move(ctx, "heads/master", first, second))
	if st.Bytes > all.Bytes/50 || st.Objects > 20 {
		t.Errorf("two pages of 300 changed, and %d of %d bytes travel in %d objects", st.Bytes, all.Bytes, st.Objects)
	}
	if again := send(t, local, d, second); again.Bytes != 0 || again.Objects != 0 {
		t.Errorf("nothing was missing, and %+v travels", again)
	}
	got := fetch(t, other, d, second, first)
	if got.Objects > 20 || got.Plain > 3<<20 {
		t.Errorf("fetched %+v", got)
	}
	Verify(t, other, second)
	// The objects of one dot serve another of the same user.
	r := s.Open(t)
	d3, err := r.Dot("alice/other")
	must(t, err)
	if st := send(t, local, d3, second); st.Bytes > all.Bytes/50 {
		t.Errorf("all is in another dot of the user, and %+v travels", st)
	}
	must(t, d3.Move(ctx, "heads/x", object.ID{}, second))
	third := OpenStore(t)
	fetch(t, third, d3, second)
	Verify(t, third, second)
}

func manyCommits(t *testing.T, s Setup) {
	ctx := context.Background()
	local, other := OpenStore(t), OpenStore(t)
	w := NewWorld(t, local, 3)
	w.Write("db/one", 20)
	for i := range 300 {
		w.Touch("db/one", i%20)
		w.Commit(fmt.Sprint(i))
	}
	_, d := open(t, s)
	st := send(t, local, d, w.Tip)
	if st.Commits != 300 || st.Packs > 3 {
		t.Errorf("sent %+v", st)
	}
	must(t, d.Move(ctx, "heads/master", object.ID{}, w.Tip))
	_, d = open(t, s)
	if got := fetch(t, other, d, w.Tip); got.Commits != 300 {
		t.Errorf("fetched %+v", got)
	}
	if a, b := Verify(t, local, w.Tip), Verify(t, other, w.Tip); a != b {
		t.Errorf("%d objects sent, %d arrived", a, b)
	}
}

func refs(t *testing.T, s Setup) {
	ctx := context.Background()
	local := OpenStore(t)
	w := NewWorld(t, local, 4)
	w.Write("db/one", 2)
	a := w.Commit("a")
	w.Touch("db/one", 1)
	b := w.Commit("b")
	_, d := open(t, s)
	mustBe(t, d.Move(ctx, "heads/master", object.ID{}, a), errs.NotFound)
	send(t, local, d, b)
	must(t, d.Move(ctx, "heads/master", object.ID{}, a))
	mustBe(t, d.Move(ctx, "heads/master", object.ID{}, b), errs.Conflict)
	mustBe(t, d.Move(ctx, "heads/master", b, a), errs.Conflict)
	mustBe(t, d.Move(ctx, "heads/none", a, b), errs.Conflict)
	must(t, d.Move(ctx, "heads/master", a, b))
	must(t, d.Move(ctx, "tags/v1", object.ID{}, a))
	must(t, d.Move(ctx, "heads/other", object.ID{}, a))
	mustBe(t, d.Move(ctx, "heads/other", b, object.ID{}), errs.Conflict)
	must(t, d.Move(ctx, "heads/other", a, object.ID{}))
	for _, bad := range []string{"master", "heads/", "heads/a/b", "heads/..", "tags/x y", "heads/x\n"} {
		mustBe(t, d.Move(ctx, bad, object.ID{}, a), errs.Usage)
	}
	_, d = open(t, s)
	got, err := d.Refs(ctx)
	must(t, err)
	if len(got) != 2 || got["heads/master"] != b || got["tags/v1"] != a {
		t.Errorf("refs: %v", got)
	}
	// What a ref points to is a commit.
	c, err := local.Get(ctx, object.KindCommit, a)
	must(t, err)
	commit, err := object.DecodeCommit(c)
	must(t, err)
	mustBe(t, d.Move(ctx, "heads/tree", object.ID{}, commit.Root.Tree), errs.NotFound)
}

func dots(t *testing.T, s Setup) {
	ctx := context.Background()
	local := OpenStore(t)
	w := NewWorld(t, local, 5)
	w.Write("db/one", 2)
	a := w.Commit("a")
	r := s.Open(t)
	for _, name := range []string{"alice/b", "alice/a-1"} {
		d, err := r.Dot(name)
		must(t, err)
		send(t, local, d, a)
		must(t, d.Move(ctx, "heads/master", object.ID{}, a))
	}
	list, err := s.Open(t).Dots(ctx)
	must(t, err)
	if len(list) != 2 || list[0].Name != "alice/a-1" || list[1].Name != "alice/b" || list[0].ReadOnly {
		t.Errorf("dots: %v", list)
	}
	must(t, r.Delete(ctx, "alice/b"))
	mustBe(t, r.Delete(ctx, "alice/b"), errs.NotFound)
	list, err = s.Open(t).Dots(ctx)
	must(t, err)
	if len(list) != 1 {
		t.Errorf("dots after deletion: %v", list)
	}
	d, err := r.Dot("alice/b")
	must(t, err)
	send(t, local, d, a)
	must(t, d.Move(ctx, "heads/master", object.ID{}, a))
	other := OpenStore(t)
	fetch(t, other, d, a)
	Verify(t, other, a)
}

// race lets two machines push onto one branch from where both saw it. Exactly one wins each round, the loser is told, takes
// the winner's commit over and goes on. In the end the branch has all winners, in order and whole.
func race(t *testing.T, s Setup) {
	ctx := context.Background()
	const ref = "heads/master"
	var machines [2]*machine
	for i := range machines {
		machines[i] = newMachine(t, s, uint64(10+i))
	}
	base := machines[0].world.Commit("base")
	_, err := remote.PushRef(ctx, machines[0].local, machines[0].dot, remote.Push{Ref: ref, Tip: base})
	must(t, err)
	winners := []object.ID{base}
	machines[1].pull(ref, base)
	for k := range rounds(t, s) {
		cur := winners[len(winners)-1]
		var results [2]error
		var tips [2]object.ID
		var wg sync.WaitGroup
		for i, m := range machines {
			m.world.Tip = cur
			m.world.Touch("db/one", 0)
			tips[i] = m.world.Commit(fmt.Sprintf("machine %d round %d", i, k))
			wg.Go(func() { _, results[i] = remote.PushRef(ctx, m.local, m.dot, remote.Push{Ref: ref, Tip: tips[i]}) })
		}
		wg.Wait()
		winner := 0
		switch {
		case results[0] == nil && errs.KindOf(results[1]) == errs.Conflict:
		case results[1] == nil && errs.KindOf(results[0]) == errs.Conflict:
			winner = 1
		default:
			t.Fatalf("round %d: %v and %v", k, results[0], results[1])
		}
		winners = append(winners, tips[winner])
		machines[1-winner].pull(ref, tips[winner])
	}
	other := newMachine(t, s, 12)
	other.pull(ref, winners[len(winners)-1])
	Verify(t, other.local, winners[len(winners)-1])
	for i := len(winners) - 1; i > 0; i-- {
		b, err := other.local.Get(ctx, object.KindCommit, winners[i])
		must(t, err)
		c, err := object.DecodeCommit(b)
		must(t, err)
		if len(c.Parents) != 1 || c.Parents[0] != winners[i-1] {
			t.Fatalf("the winner of round %d is lost: the next one stands on %v", i-1, c.Parents)
		}
	}
}

// machine is a local store with a world, and a view of the remote of its own.
type machine struct {
	t     *testing.T
	local remote.Local
	dot   remote.Dot
	world *World
}

func newMachine(t *testing.T, s Setup, seed uint64) *machine {
	local := OpenStore(t)
	_, d := open(t, s)
	w := NewWorld(t, local, seed)
	w.Write("db/one", 1)
	return &machine{t, local, d, w}
}

// pull fetches a ref, which must be at want.
func (m *machine) pull(ref string, want object.ID) {
	m.t.Helper()
	res, release, err := PullRef(context.Background(), m.local, m.dot, Pull{Ref: ref})
	must(m.t, err)
	release()
	if res.Tip != want {
		m.t.Fatalf("%s is at %s, the winner is %s", ref, res.Tip.Short(), want.Short())
	}
}

// rounds returns how often to repeat: what the environment says, for a long campaign, or what the remote's test says.
func rounds(t testing.TB, s Setup) int {
	t.Helper()
	if v := os.Getenv("DM_ROUNDS"); v != "" {
		n, err := strconv.Atoi(v)
		must(t, err)
		return n
	}
	return cmp.Or(s.Rounds, 40)
}

var errCut = errors.New("the connection is cut")

// cutting is a Dot whose connection breaks after so many packs, or so many records.
type cutting struct {
	remote.Dot
	packs atomic.Int64
}

func (c *cutting) Store(ctx context.Context, p *remote.Pack) error {
	if c.packs.Add(-1) < 0 {
		return errCut
	}
	return c.Dot.Store(ctx, p)
}

// interruptedSend breaks a push after each number of packs. Nothing is to be seen of it, and the next one sends the rest.
func interruptedSend(t *testing.T, s Setup) {
	ctx := context.Background()
	local := OpenStore(t)
	w := NewWorld(t, local, 7)
	w.Write("db/one", 120)
	tip := w.Commit("first")
	_, d := open(t, s)
	const packBytes = 1 << 20
	sent := int64(0)
	for n := 1; ; n++ {
		if n > 30 {
			t.Fatal("the push never comes to its end")
		}
		c := &cutting{Dot: d}
		c.packs.Store(2)
		st, err := remote.Send(ctx, local, c, []object.ID{tip}, nil, remote.SendOptions{PackBytes: packBytes, Parallel: 1})
		sent += st.Bytes
		if err == nil {
			break
		}
		if !errors.Is(err, errCut) {
			t.Fatal(err)
		}
		refs, err := s.Open(t).Dots(ctx)
		must(t, err)
		if len(refs) != 0 {
			t.Fatalf("an unfinished push shows dots: %v", refs)
		}
		mustBe(t, d.Move(ctx, "heads/master", object.ID{}, tip), errs.NotFound)
		_, d = open(t, s)
	}
	must(t, d.Move(ctx, "heads/master", object.ID{}, tip))
	whole := send(t, local, emptyDot{d}, tip)
	if sent > whole.Bytes+2*packBytes {
		t.Errorf("%d bytes were sent in all, without a break %d", sent, whole.Bytes)
	}
	other := OpenStore(t)
	fetch(t, other, d, tip)
	Verify(t, other, tip)
}

// emptyDot has nothing and keeps nothing: it shows what a whole push sends.
type emptyDot struct{ remote.Dot }

func (emptyDot) Missing(_ context.Context, ids []object.ID) ([]object.ID, error) { return ids, nil }
func (emptyDot) Store(context.Context, *remote.Pack) error                       { return nil }

// manyMachines pushes from several machines to dots of their own and to one dot's branches at a time.
func manyMachines(t *testing.T, s Setup) {
	ctx := context.Background()
	const machines, pushes = 4, 8
	tips := make([]object.ID, machines)
	var wg sync.WaitGroup
	for m := range machines {
		local := OpenStore(t)
		_, d := open(t, s)
		wg.Go(func() {
			w := NewWorld(t, local, uint64(100+m))
			w.Write("db/one", 5)
			var last object.ID
			for range pushes {
				w.Touch("db/one", 3)
				tip := w.Commit("c")
				var haves []object.ID
				if !last.IsZero() {
					haves = append(haves, last)
				}
				if _, err := remote.Send(ctx, local, d, []object.ID{tip}, haves, remote.SendOptions{}); err != nil {
					t.Error(err)
					return
				}
				if err := d.Move(ctx, fmt.Sprintf("heads/m%d", m), last, tip); err != nil {
					t.Error(err)
					return
				}
				last = tip
			}
			tips[m] = last
		})
	}
	wg.Wait()
	_, d := open(t, s)
	refs, err := d.Refs(ctx)
	must(t, err)
	other := OpenStore(t)
	for m, tip := range tips {
		if got := refs[fmt.Sprintf("heads/m%d", m)]; got != tip {
			t.Fatalf("machine %d pushed %s, its branch is at %s", m, tip.Short(), got.Short())
		}
		fetch(t, other, d, tip)
		Verify(t, other, tip)
	}
}
