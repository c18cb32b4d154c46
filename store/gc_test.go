package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"pgregory.net/rapid"

	"dm/internal/errs"
	"dm/object"
)

// indexed returns the ids of all objects that the store says it has.
func indexed(t interface{ Fatal(...any) }, s *Store) map[object.ID]bool {
	ids := map[object.ID]bool{}
	err := s.view(func(b *bbolt.Tx) error {
		return b.Bucket([]byte(bucketObjects)).ForEach(func(k, _ []byte) error {
			ids[object.ID(k)] = true
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

// fresh makes the store read everything from disk.
func fresh(s *Store) { s.cache.drop(nil) }

// After a gc everything reachable is there and nothing else is, whatever came before.
func TestGCAgainstModel(t *testing.T) {
	dir := t.TempDir()
	round := 0
	rapid.Check(t, func(rt *rapid.T) {
		round++
		s, err := Open(t.Context(), fmt.Sprint(dir, "/", round), Options{PackBytes: 300 << 10, CacheBytes: 1 << 20})
		if err != nil {
			rt.Fatal(err)
		}
		defer os.RemoveAll(s.dir)
		defer func() { s.Close() }()
		s.round = 3
		m := &gcModel{
			s: s, refs: map[string]object.ID{}, pins: map[object.ID]func(){}, w: newWorld(),
			made: map[object.ID]made{}, pruned: map[object.ID]bool{},
		}
		rt.Repeat(map[string]func(*rapid.T){
			"commit": m.commit, "abort": m.abort, "drop": m.drop, "pin": m.pin, "unpin": m.unpin, "gc": m.gc,
			"reopen": m.reopen, "prune": m.prune, "fetch": m.fetch, "": func(*rapid.T) {},
		})
		m.gc(rt)
		m.gc(rt)
	})
}

type gcModel struct {
	s    *Store
	w    *world
	refs map[string]object.ID
	pins map[object.ID]func()
	all  []object.ID // commits
	n    uint64

	made   map[object.ID]made // what each commit was made of, to make it once more
	pruned map[object.ID]bool // true: a gc has taken the content
}

type made struct {
	files   map[string][]byte
	parents []object.ID
	message string
}

func (m *gcModel) branch(t *rapid.T) string {
	return rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "branch")
}

func (m *gcModel) fill(t *rapid.T, b *Batch) object.ID {
	for range rapid.IntRange(1, 4).Draw(t, "files") {
		m.n++
		m.w.write(fmt.Sprintf("%c%d", 'p'+rune(m.n%3), rapid.IntRange(0, 5).Draw(t, "file")), m.n,
			rapid.SampledFrom([]int{0, 10, 5000, 100 << 10}).Draw(t, "size"))
	}
	var parents []object.ID
	if len(m.refs) > 0 && rapid.Bool().Draw(t, "with a parent") {
		keys := slices.Sorted(maps.Keys(m.refs))
		parents = append(parents, m.refs[rapid.SampledFrom(keys).Draw(t, "parent")])
	}
	id, err := m.w.store(context.Background(), b, parents, fmt.Sprint(m.n))
	if err != nil {
		t.Fatal(err)
	}
	m.made[id] = made{maps.Clone(m.w.files), parents, fmt.Sprint(m.n)}
	return id
}

// prune gives up a commit that no ref points to.
func (m *gcModel) prune(t *rapid.T) {
	if len(m.all) == 0 {
		return
	}
	id := rapid.SampledFrom(m.all).Draw(t, "commit")
	if _, ok := m.pruned[id]; ok || !indexed(t, m.s)[id] {
		return
	}
	tip := slices.Contains(slices.Collect(maps.Values(m.refs)), id)
	err := m.s.Update(func(tx *Tx) error { return tx.Prune(id) })
	if tip != (errs.KindOf(err) == errs.Conflict) || !tip && err != nil {
		t.Fatalf("prune of a commit (ref: %v): %v", tip, err)
	}
	if !tip {
		m.pruned[id] = false
	}
}

// fetch brings a commit with its content once more and has a ref point to it.
func (m *gcModel) fetch(t *rapid.T) {
	if len(m.all) == 0 {
		return
	}
	id := rapid.SampledFrom(m.all).Draw(t, "commit")
	if m.pruned[id] {
		err := m.s.Update(func(tx *Tx) error { return tx.SetRef("d", m.refs["d"], id) })
		if errs.KindOf(err) != errs.NotFound {
			t.Fatalf("a ref to a hollow commit: %v", err)
		}
	}
	b := m.begin(t)
	for _, p := range m.made[id].parents {
		if has, err := b.Has(p); err != nil || !has {
			b.Abort() // a fetch would bring these, too
			return
		}
	}
	w := newWorld()
	w.files = m.made[id].files
	got, err := w.store(context.Background(), b, m.made[id].parents, m.made[id].message)
	if err != nil || got != id {
		t.Fatal(got.Short(), id.Short(), err)
	}
	if rapid.Bool().Draw(t, "gc before") {
		m.collect(t)
	}
	if _, err := b.Commit(context.Background(), func(tx *Tx) error { return tx.SetRef("d", m.refs["d"], id) }); err != nil {
		t.Fatal(err)
	}
	m.refs["d"] = id
	delete(m.pruned, id)
}

// reach returns what is to stay: in full, and pruned commits with nothing but their records.
func (m *gcModel) reach(t *rapid.T) (full, bare map[object.ID]object.Kind) {
	full, bare = map[object.ID]object.Kind{}, map[object.ID]object.Kind{}
	var commit func(id object.ID)
	commit = func(id object.ID) {
		if _, ok := full[id]; ok {
			return
		}
		full[id] = object.KindCommit
		plain, err := m.s.Get(context.Background(), object.KindCommit, id)
		if err != nil {
			t.Fatal(err)
		}
		err = object.References(object.KindCommit, plain, func(r object.Reference) {
			if r.Kind != object.KindCommit {
				if err := reach(context.Background(), m.s, r.Kind, r.ID, full); err != nil {
					t.Fatal(err)
				}
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		m.parents(t, id, bare, commit)
	}
	for _, id := range m.refs {
		commit(id)
	}
	for id := range m.pins {
		commit(id)
	}
	for id := range full {
		delete(bare, id)
	}
	return full, bare
}

// parents goes on to a commit's parents, through those that are pruned.
func (m *gcModel) parents(t *rapid.T, id object.ID, bare map[object.ID]object.Kind, next func(object.ID)) {
	for _, p := range m.made[id].parents {
		if _, ok := m.pruned[p]; !ok {
			next(p)
		} else if _, ok := bare[p]; !ok {
			bare[p] = object.KindCommit
			m.parents(t, p, bare, next)
		}
	}
}

func (m *gcModel) begin(t *rapid.T) *Batch {
	b, err := m.s.Begin(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (m *gcModel) commit(t *rapid.T) {
	b, name := m.begin(t), m.branch(t)
	id := m.fill(t, b)
	if rapid.Bool().Draw(t, "gc before") {
		m.collect(t) // beside the open batch
	}
	if _, err := b.Commit(context.Background(), func(tx *Tx) error { return tx.SetRef(name, m.refs[name], id) }); err != nil {
		t.Fatal(err)
	}
	m.refs[name] = id
	m.all = append(m.all, id)
}

func (m *gcModel) abort(t *rapid.T) {
	b := m.begin(t)
	m.fill(t, b)
	b.Abort()
	m.w.ids = map[string][]object.ID{}
}

func (m *gcModel) drop(t *rapid.T) {
	name := m.branch(t)
	if err := m.s.Update(func(tx *Tx) error { return tx.SetRef(name, m.refs[name], object.ID{}) }); err != nil {
		t.Fatal(err)
	}
	delete(m.refs, name)
}

func (m *gcModel) pin(t *rapid.T) {
	for _, id := range m.refs {
		if m.pins[id] == nil {
			m.pins[id] = m.s.Pin(id)
		}
		return
	}
}

func (m *gcModel) unpin(t *rapid.T) {
	for id, release := range m.pins {
		release()
		delete(m.pins, id)
		return
	}
}

func (m *gcModel) reopen(t *rapid.T) {
	for len(m.pins) > 0 {
		m.unpin(t)
	}
	m.s.Close()
	s, err := Open(context.Background(), m.s.dir, m.s.opts)
	if err != nil {
		t.Fatal(err)
	}
	m.s = s
	m.s.round = 3
}

func (m *gcModel) collect(t *rapid.T) GCStats {
	stats, err := m.s.GC(context.Background(), GCOptions{Waste: rapid.SampledFrom([]int{1, 25, 90}).Draw(t, "waste")})
	if err != nil {
		t.Fatal(err)
	}
	return stats
}

func (m *gcModel) gc(t *rapid.T) {
	m.collect(t)
	fresh(m.s)
	want, bare := m.reach(t)
	for id := range bare {
		want[id] = object.KindCommit
		m.pruned[id] = true
		if has, err := m.s.Has(id); has || err != nil {
			t.Fatalf("the store says it has %s, which is pruned: %v, %v", id.Short(), has, err)
		}
	}
	got := indexed(t, m.s)
	for id := range got {
		if _, ok := want[id]; !ok {
			t.Fatalf("%s is not reachable and still there", id.Short())
		}
	}
	if len(got) != len(want) {
		t.Fatalf("%d objects are there, %d are reachable", len(got), len(want))
	}
	err := m.s.view(func(b *bbolt.Tx) error {
		if k, _ := b.Bucket([]byte(bucketHidden)).Cursor().First(); k != nil {
			return errors.New("something is still hidden")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// The space of what is collected comes back.
func TestGCFreesSpace(t *testing.T) {
	s := testStore(t, t.TempDir(), Options{PackBytes: 1 << 20})
	b := begin(t, s)
	var keep object.ID
	for i := range 100 {
		id := put(t, b, object.KindChunk, random(uint64(i), 64<<10), object.ID{})
		if i == 50 {
			keep = id
		}
	}
	commit(t, b, func(tx *Tx) error { return tx.SetRef("keep", object.ID{}, keep) })
	stats, err := s.GC(t.Context(), GCOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if stats.Freed != 99 || stats.Kept != 1 || stats.BytesFreed < 99*64<<10 || stats.PacksRewritten != 1 {
		t.Errorf("stats are %+v", stats)
	}
	if n := diskUse(t, s); n > 80<<10 {
		t.Errorf("packs take %d bytes for one object of 64 KiB", n)
	}
	wantObject(t, s, object.KindChunk, keep, random(50, 64<<10))
}

func diskUse(t testing.TB, s *Store) (n int64) {
	files, err := os.ReadDir(s.packs.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		info, err := f.Info()
		if err != nil {
			t.Fatal(err)
		}
		n += info.Size()
	}
	return n
}

// A gc that cannot read what it must keep removes nothing.
func TestGCStopsAtDamage(t *testing.T) {
	s := testStore(t, t.TempDir(), Options{})
	b := begin(t, s)
	w := newWorld()
	w.write("a", 1, 200<<10)
	id, err := w.store(t.Context(), b, nil, "one")
	if err != nil {
		t.Fatal(err)
	}
	other := put(t, b, object.KindChunk, []byte("nobody needs this"), object.ID{})
	commit(t, b, func(tx *Tx) error { return tx.SetRef("a", object.ID{}, id) })
	e, _, _ := s.lookup(id)
	f, err := os.OpenFile(s.packs.path(e.pack), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	f.WriteAt([]byte("damage"), e.off+70)
	fresh(s)
	_, err = s.GC(t.Context(), GCOptions{})
	wantKind(t, err, errs.Damaged)
	if has, _ := s.Has(other); !has {
		t.Error("a gc that failed has removed something")
	}
}

// Commits, readers and collections run beside each other; nothing reachable is ever missing.
func TestGCBesideWriters(t *testing.T) {
	s := testStore(t, t.TempDir(), Options{PackBytes: 200 << 10, CacheBytes: 100 << 10})
	s.round = 5
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for n := range 3 {
		wg.Go(func() {
			if err := churn(ctx, s, uint64(n)); err != nil {
				t.Errorf("writer %d: %v", n, err)
			}
		})
	}
	collections := 0
	for ctx.Err() == nil {
		if _, err := s.GC(ctx, GCOptions{Waste: 1 + collections%50}); err != nil && ctx.Err() == nil {
			t.Error(err)
			break
		}
		collections++
	}
	wg.Wait()
	if collections < 5 {
		t.Errorf("only %d collections", collections)
	}
}

// churn commits to a branch of its own, starts the branch anew from time to time, and reads all of it after each commit.
func churn(ctx context.Context, s *Store, n uint64) error {
	w, rnd := newWorld(), rand.New(rand.NewPCG(n, 1))
	name := fmt.Sprint("branch", n)
	var tip object.ID
	for i := uint64(0); ctx.Err() == nil; i++ {
		b, err := s.Begin(ctx)
		if err != nil {
			return err
		}
		w.write(fmt.Sprintf("%c%d", 'a'+rune(rnd.IntN(3)), rnd.IntN(6)), rnd.Uint64N(20), 1000*rnd.IntN(100))
		var parents []object.ID
		if !tip.IsZero() && rnd.IntN(5) > 0 {
			parents = append(parents, tip)
		}
		id, err := w.store(ctx, b, parents, fmt.Sprint(i))
		if err != nil {
			b.Abort()
			return ignoreDone(ctx, err)
		}
		if rnd.IntN(6) == 0 {
			b.Abort()
			continue
		}
		if _, err := b.Commit(ctx, func(tx *Tx) error { return tx.SetRef(name, tip, id) }); err != nil {
			return ignoreDone(ctx, err)
		}
		tip = id
		if err := reach(ctx, s, object.KindCommit, tip, map[object.ID]object.Kind{}); err != nil {
			return ignoreDone(ctx, err)
		}
	}
	return nil
}

func ignoreDone(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}
