package store

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"dm/internal/errs"
	"dm/object"
)

// history makes a store in dir with commits on two branches and returns what is reachable and what the refs are.
func history(t testing.TB, dir string, opts Options) (map[object.ID]object.Kind, map[string]object.ID) {
	t.Helper()
	s, err := Open(t.Context(), dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	refs := map[string]object.ID{}
	w := newWorld()
	var tip object.ID
	for i := range uint64(6) {
		b := begin(t, s)
		for n := range uint64(4) {
			w.write(fmt.Sprintf("%c%d", 'a'+rune(n%2), n), i*10+n, []int{50, 3000, 90 << 10, 20 << 10}[n])
		}
		var parents []object.ID
		if !tip.IsZero() {
			parents = append(parents, tip)
		}
		id, err := w.store(t.Context(), b, parents, fmt.Sprint("commit ", i))
		if err != nil {
			t.Fatal(err)
		}
		name := []string{"heads/main", "heads/side"}[i%2]
		commit(t, b, func(tx *Tx) error {
			if err := tx.SetMeta(fmt.Sprint("key", i), []byte("value")); err != nil {
				return err
			}
			return tx.SetRef(name, refs[name], id)
		})
		refs[name], tip = id, id
	}
	want := map[object.ID]object.Kind{}
	for _, id := range refs {
		if err := reach(t.Context(), s, object.KindCommit, id, want); err != nil {
			t.Fatal(err)
		}
	}
	return want, refs
}

func fsck(t testing.TB, s *Store, opts FsckOptions) *Report {
	t.Helper()
	r, err := s.Fsck(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestFsckOfWholeStore(t *testing.T) {
	dir := t.TempDir()
	want, _ := history(t, dir, Options{PackBytes: 20 << 10})
	s := testStore(t, dir, Options{})
	for _, quick := range []bool{true, false} {
		r := fsck(t, s, FsckOptions{Quick: quick})
		if !r.OK() || r.Reachable != len(want) || r.Objects != len(want) || r.Packs < 2 || r.Bytes == 0 {
			t.Errorf("quick %v: %+v", quick, r)
		}
	}
	if notes := s.Recovered(); len(notes) != 0 {
		t.Errorf("there was something to recover: %v", notes)
	}
}

// flip changes one bit of a file.
func flip(t testing.TB, path string, off int64) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[off] ^= 0x10
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// Damage of one chunk is named with the commits and files it affects, can be put aside, and heals when the chunk is
// stored once more.
func TestFsckNamesAndHeals(t *testing.T) {
	dir := t.TempDir()
	s := testStore(t, dir, Options{})
	w := newWorld()
	w.write("a1", 1, 50<<10)
	w.write("b1", 2, 100)
	b := begin(t, s)
	id, err := w.store(t.Context(), b, nil, "one")
	if err != nil {
		t.Fatal(err)
	}
	commit(t, b, func(tx *Tx) error { return tx.SetRef("main", object.ID{}, id) })
	chunk := w.ids["a1"][0]
	e, _, _ := s.lookup(chunk)
	flip(t, s.packs.path(e.pack), e.off+1000)
	fresh(s)
	_, err = s.Get(t.Context(), object.KindChunk, chunk)
	wantKind(t, err, errs.Damaged)
	if errs.HintOf(err) == "" {
		t.Error("no hint what to do about damage")
	}
	r := fsck(t, s, FsckOptions{Repair: true})
	if len(r.Problems) != 1 || r.Problems[0].Object != chunk || r.Problems[0].Pack != packName(e.pack) || r.Problems[0].Offset != e.off {
		t.Errorf("problems: %+v", r.Problems)
	}
	if want := (Affected{"main", id.String(), "/a/a1", chunk.String()}); len(r.Affected) != 1 || r.Affected[0] != want {
		t.Errorf("affected: %+v, want %+v", r.Affected, want)
	}
	if r.PutAside != 1 {
		t.Errorf("%d objects put aside", r.PutAside)
	}
	if files, _ := os.ReadDir(filepath.Join(dir, "quarantine")); len(files) != 2 {
		t.Errorf("quarantine holds %v", files)
	}
	_, err = s.Get(t.Context(), object.KindChunk, chunk)
	wantKind(t, err, errs.NotFound)
	if r := fsck(t, s, FsckOptions{}); len(r.Problems) != 1 || !r.Problems[0].Missing {
		t.Errorf("after the repair: %+v", r.Problems)
	}
	b = begin(t, s)
	put(t, b, object.KindChunk, w.files["a1"], object.ID{})
	commit(t, b, nil)
	if r := fsck(t, s, FsckOptions{}); !r.OK() {
		t.Errorf("after the chunk was stored again: %+v", r.Problems)
	}
}

// Losing index or journal, or both, costs nothing that packs hold.
func TestLostIndex(t *testing.T) {
	for _, c := range []struct {
		name string
		lose []string
	}{{"index", []string{indexName}}, {"journal", []string{journalName}}, {"both", []string{indexName, journalName}}} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			want, refs := history(t, dir, Options{PackBytes: 20 << 10})
			for _, name := range c.lose {
				if err := os.Remove(filepath.Join(dir, name)); err != nil {
					t.Fatal(err)
				}
			}
			s := testStore(t, dir, Options{})
			if len(s.Recovered()) == 0 {
				t.Error("nothing is said of the loss")
			}
			var tips []object.ID
			err := s.View(func(tx *Tx) error {
				for name, id := range tx.Refs("") {
					tips = append(tips, id)
					if c.name != "both" && refs[name] != id {
						t.Errorf("ref %s is at %s", name, id.Short())
					}
				}
				if _, ok := tx.Meta("key5"); !ok && c.name != "both" {
					t.Error("metadata is lost")
				}
				return nil
			})
			if err != nil || len(tips) == 0 || c.name != "both" && len(tips) != len(refs) {
				t.Fatalf("refs lead to %v, %v", tips, err)
			}
			if _, err := s.GC(t.Context(), GCOptions{}); err != nil {
				t.Fatal(err)
			}
			got := map[object.ID]object.Kind{}
			for _, id := range tips {
				if err := reach(t.Context(), s, object.KindCommit, id, got); err != nil {
					t.Fatal(err)
				}
			}
			if len(got) != len(want) {
				t.Errorf("%d objects are reachable, were %d", len(got), len(want))
			}
			if r := fsck(t, s, FsckOptions{}); !r.OK() {
				t.Errorf("problems: %+v", r.Problems)
			}
			s.Close()
			if s = testStore(t, dir, Options{}); len(s.Recovered()) != 0 {
				t.Errorf("recovered a second time: %v", s.Recovered())
			}
		})
	}
}

// An index that is made again must not take a commit that was collected for one that the store has, because its record still
// stands in some pack: a fetch would not bring its content then.
func TestLostIndexAfterGC(t *testing.T) {
	dir := t.TempDir()
	s := testStore(t, dir, Options{PackBytes: 20 << 10})
	store := func(seed uint64, ref string) object.ID {
		w := newWorld()
		w.write("a1", seed, 100<<10)
		b := begin(t, s)
		id, err := w.store(t.Context(), b, nil, ref)
		if err != nil {
			t.Fatal(err)
		}
		commit(t, b, func(tx *Tx) error { return tx.SetRef(ref, object.ID{}, id) })
		return id
	}
	gone, kept := store(1, "gone"), store(2, "kept")
	if err := s.Update(func(tx *Tx) error { return tx.SetRef("gone", gone, object.ID{}) }); err != nil {
		t.Fatal(err)
	}
	if _, err := s.GC(t.Context(), GCOptions{Waste: 100}); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if err := os.Remove(filepath.Join(dir, indexName)); err != nil {
		t.Fatal(err)
	}
	s = testStore(t, dir, Options{})
	for id, want := range map[object.ID]bool{gone: false, kept: true} {
		if has, err := s.Has(id); has != want || err != nil {
			t.Errorf("the store has commit %s: %v, %v", id.Short(), has, err)
		}
	}
	if err := reach(t.Context(), s, object.KindCommit, kept, map[object.ID]object.Kind{}); err != nil {
		t.Error(err)
	}
	if _, err := s.GC(t.Context(), GCOptions{}); err != nil {
		t.Error(err)
	}
	if r := fsck(t, s, FsckOptions{}); !r.OK() {
		t.Errorf("problems: %+v", r.Problems)
	}
}

// Whatever is flipped, cut, deleted, doubled or swapped in a store's directory: never a wrong byte, a crash or a hang, and
// it is said every time that there is damage, unless everything is there all the same.
func TestRandomDamage(t *testing.T) {
	origin := t.TempDir()
	want, refs := history(t, origin, Options{PackBytes: 15 << 10})
	const rounds = 400
	dir := t.TempDir()
	seen := map[string]int{}
	for round := range rounds {
		rnd := rand.New(rand.NewPCG(uint64(round), 42))
		work := filepath.Join(dir, fmt.Sprint(round))
		if err := os.CopyFS(work, os.DirFS(origin)); err != nil {
			t.Fatal(err)
		}
		what := damage(t, rnd, work)
		result := aftermath(t, fmt.Sprintf("round %d: %s", round, what), work, want, refs)
		seen[result]++
		os.RemoveAll(work)
	}
	t.Logf("%v", seen)
}

func allFiles(t testing.TB, dir string) (files []string) {
	for _, pattern := range []string{"*", "packs/*"} {
		names, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			if st, err := os.Stat(n); err == nil && st.Mode().IsRegular() && filepath.Base(n) != "lock" {
				files = append(files, n)
			}
		}
	}
	slices.Sort(files)
	return files
}

// damage does one random thing to a store's directory and says what.
func damage(t testing.TB, rnd *rand.Rand, dir string) string {
	files := allFiles(t, dir)
	path := files[rnd.IntN(len(files))]
	if rnd.IntN(3) == 0 {
		path = filepath.Join(dir, indexName) // the one that nobody guards but us
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := rnd.IntN(len(b))
	what := ""
	switch n := rnd.IntN(10); n {
	case 0, 1, 2, 3:
		b[at] ^= 1 << rnd.IntN(8)
		what = fmt.Sprintf("flip at %d", at)
	case 4:
		b = b[:at]
		what = fmt.Sprintf("cut at %d", at)
	case 5:
		b = append(b, random(rnd.Uint64(), rnd.IntN(5000))...)
		what = "bytes at the end"
	case 6:
		end := min(len(b), at+rnd.IntN(5000))
		copy(b[at:end], random(rnd.Uint64(), end-at))
		what = fmt.Sprintf("noise from %d to %d", at, end)
	case 7:
		end := min(len(b), at+1+rnd.IntN(5000))
		b = slices.Insert(b, at, slices.Clone(b[at:end])...)
		what = fmt.Sprintf("double %d to %d", at, end)
	case 8:
		other := files[rnd.IntN(len(files))]
		o, err := os.ReadFile(other)
		if err != nil {
			t.Fatal(err)
		}
		os.WriteFile(other, b, 0o600)
		b, what = o, "swap with "+filepath.Base(other)
	case 9:
		os.Remove(path)
		return "remove " + filepath.Base(path)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return filepath.Base(path) + ": " + what
}

// aftermath opens a damaged store and checks what it says.
func aftermath(t *testing.T, what, dir string, want map[object.ID]object.Kind, refs map[string]object.ID) string {
	s, err := Open(t.Context(), dir, Options{CacheBytes: 1})
	if err != nil {
		if k := errs.KindOf(err); k != errs.Damaged && k != errs.Usage {
			t.Errorf("%s: open says %v: %v", what, k, err)
		}
		return "refused"
	}
	defer s.Close()
	whole := true
	for id, kind := range want {
		plain, err := s.Get(t.Context(), kind, id)
		if err == nil && object.Sum(kind, plain) != id {
			t.Errorf("%s: %s %s is read with wrong bytes", what, kind, id.Short())
		}
		if err != nil {
			whole = false
			if k := errs.KindOf(err); k != errs.Damaged && k != errs.NotFound {
				t.Errorf("%s: read says %v: %v", what, k, err)
			}
		}
	}
	err = s.View(func(tx *Tx) error {
		found := 0
		for name, id := range tx.Refs("") {
			if old, ok := refs[name]; ok && old != id {
				t.Errorf("%s: ref %s is at %s, was at %s", what, name, id.Short(), old.Short())
			} else if ok {
				found++
			}
		}
		whole = whole && found == len(refs)
		return nil
	})
	whole = whole && err == nil
	r, err := s.Fsck(t.Context(), FsckOptions{Repair: true})
	switch {
	case err != nil:
		if errs.KindOf(err) != errs.Damaged {
			t.Errorf("%s: fsck fails: %v", what, err)
		}
		return "fsck fails"
	case !r.OK():
		if r2, err := s.Fsck(t.Context(), FsckOptions{}); err == nil {
			for _, p := range r2.Problems {
				if !p.Missing {
					t.Errorf("%s: after a repair: %+v\nbefore: %+v", what, p, r.Problems[:min(3, len(r.Problems))])
				}
			}
		}
		return "named by fsck"
	case len(s.Recovered()) > 0:
		if !whole {
			t.Logf("%s: recovered %v, not all of it", what, s.Recovered())
		}
		return "recovered"
	case !whole:
		t.Errorf("%s: something is missing and nobody says so", what)
		return "silent"
	}
	return "harmless"
}
