package store

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"dm/internal/errs"
	"dm/internal/powercut"
	"dm/object"
)

// childEnv, when set, makes the test binary a process that commits to the store it names until it is killed.
const childEnv = "DM_TEST_STORE_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		child(dir)
	}
	os.Exit(m.Run())
}

// child commits, collects and says on stdout which commit has been acknowledged.
func child(dir string) {
	s, err := Open(context.Background(), dir, Options{PackBytes: 100 << 10})
	if err == nil {
		s.round = 4
		go func() {
			for {
				if _, err := s.GC(context.Background(), GCOptions{Waste: 5}); err != nil {
					fmt.Println("error", err)
				}
			}
		}()
		err = commits(s, os.Stdout)
	}
	fmt.Println("error", err)
	os.Exit(1)
}

// commits moves the ref "main" from commit to commit, in steps that tell how far they are, until something fails.
func commits(s *Store, out io.Writer) error {
	ctx := context.Background()
	var tip object.ID
	if err := s.View(func(tx *Tx) error { tip, _ = tx.Ref("main"); return nil }); err != nil {
		return err
	}
	w := newWorld()
	for i := uint64(time.Now().UnixNano()); ; i++ {
		b, err := s.Begin(ctx)
		if err != nil {
			return err
		}
		w.write(fmt.Sprintf("%c%d", 'a'+rune(i%2), i%5), i, int(i%7)*3000)
		var parents []object.ID
		if !tip.IsZero() && i%16 != 0 {
			parents = append(parents, tip)
		}
		id, err := w.store(ctx, b, parents, fmt.Sprint(i))
		if err != nil {
			b.Abort()
			return err
		}
		fmt.Fprintln(out, "try", id)
		_, err = b.Commit(ctx, func(tx *Tx) error {
			if err := tx.SetMeta("tip", id[:]); err != nil {
				return err
			}
			return tx.SetRef("main", tip, id)
		})
		if err != nil {
			return err
		}
		fmt.Fprintln(out, "done", id)
		tip = id
		if i%3 == 0 && len(parents) > 0 {
			if err := s.Update(func(tx *Tx) error { return tx.Prune(parents[0]) }); err != nil {
				return err
			}
		}
	}
}

// tried is what a run of commits has said of itself.
type tried struct{ done, try object.ID }

func (r *tried) line(t testing.TB, line string) {
	word, arg, _ := strings.Cut(strings.TrimSpace(line), " ")
	switch word {
	case "try":
		r.try, _ = object.ParseID(arg)
	case "done":
		r.done, _ = object.ParseID(arg)
	case "error":
		t.Errorf("before the crash: %s", arg)
	}
}

// afterCrash opens a store and checks that it is at the last commit acknowledged or at the one that was being made, and
// whole. It returns the commit.
func afterCrash(t testing.TB, dir string, r tried) object.ID {
	t.Helper()
	s, err := Open(t.Context(), dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if notes := s.Recovered(); len(notes) > 0 {
		t.Errorf("a crash counts as damage: %v", notes)
	}
	var tip object.ID
	var meta []byte
	if err := s.View(func(tx *Tx) error { tip, _ = tx.Ref("main"); meta, _ = tx.Meta("tip"); return nil }); err != nil {
		t.Fatal(err)
	}
	if tip != r.done && tip != r.try {
		t.Fatalf("the branch is at %s; acknowledged was %s, under way %s", tip.Short(), r.done.Short(), r.try.Short())
	}
	if !tip.IsZero() {
		if string(meta) != string(tip[:]) {
			t.Error("metadata and ref are from different transactions")
		}
		if err := reachKept(t.Context(), s, tip, map[object.ID]object.Kind{}); err != nil {
			t.Fatal(err)
		}
	}
	if rep := fsck(t, s, FsckOptions{}); !rep.OK() {
		t.Fatalf("after a crash: %+v", rep.Problems[:min(5, len(rep.Problems))])
	}
	return tip
}

// reachKept reads all of a commit and of those before it, but of pruned ones the record alone.
func reachKept(ctx context.Context, s *Store, tip object.ID, seen map[object.ID]object.Kind) error {
	for todo := []object.ID{tip}; len(todo) > 0; todo = todo[1:] {
		pruned := false
		if err := s.View(func(tx *Tx) error { pruned = tx.Pruned(todo[0]); return nil }); err != nil {
			return err
		}
		plain, err := s.Get(ctx, object.KindCommit, todo[0])
		if err != nil {
			return err
		}
		seen[todo[0]] = object.KindCommit
		var all []error
		err = object.References(object.KindCommit, plain, func(r object.Reference) {
			if r.Kind == object.KindCommit {
				todo = append(todo, r.ID)
			} else if !pruned {
				all = append(all, reach(ctx, s, r.Kind, r.ID, seen))
			}
		})
		if err := errors.Join(append(all, err)...); err != nil {
			return err
		}
	}
	return nil
}

// A process killed at any moment, prunes and collections running, loses nothing that it acknowledged.
func TestKill(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	const rounds = 200
	var last object.ID
	for range rounds {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(time.Duration(10+rand.IntN(100))*time.Millisecond, func() { cmd.Process.Kill() })
		r := tried{done: last}
		for sc := bufio.NewScanner(out); sc.Scan(); {
			r.line(t, sc.Text())
		}
		cmd.Wait()
		last = afterCrash(t, dir, r)
	}
	if last.IsZero() {
		t.Error("nothing was ever committed")
	}
}

// crashPoints are the moments between two steps whose order matters. Each is named after the rule of the package comment
// that it is about.
func crashPoints() []string {
	return []string{"WriteRecord", "PackBeforeIndex", "JournalBeforeIndex", "IndexCommit", "GCRound", "GCSwept", "IndexBeforeRemove"}
}

// At each point the process dies: what it has written is there, nothing more.
func TestCrashPoints(t *testing.T) {
	for _, point := range crashPoints() {
		t.Run(point, func(t *testing.T) {
			dir, copies := t.TempDir(), 0
			var hits atomic.Int64
			hits.Store(-1 << 40)
			var r tried
			fail := func(p string) error {
				if p != point || hits.Add(1)%3 != 1 || copies > 8 {
					return nil
				}
				copies++
				image := filepath.Join(t.TempDir(), "image")
				if err := os.CopyFS(image, os.DirFS(dir)); err != nil {
					t.Error(err)
				}
				tip := afterCrash(t, image, r)
				if tip != r.done && strings.HasPrefix(point, "Pack") {
					t.Errorf("at %s a commit is there already", point)
				}
				return nil
			}
			s, err := open(t.Context(), dir, Options{PackBytes: 50 << 10}, fail)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			w := newWorld()
			for i := range uint64(6) {
				hits.Store(0)
				w.write(fmt.Sprint("a", i%3), i, 30000)
				b := begin(t, s)
				id, err := w.store(t.Context(), b, nil, fmt.Sprint(i))
				if err != nil {
					t.Fatal(err)
				}
				r.try = id
				commit(t, b, func(tx *Tx) error {
					if err := tx.SetMeta("tip", id[:]); err != nil {
						return err
					}
					return tx.SetRef("main", r.done, id)
				})
				r.done = id
				if i%2 == 1 {
					if _, err := s.GC(t.Context(), GCOptions{Waste: 1}); err != nil {
						t.Fatal(err)
					}
				}
			}
			if copies == 0 {
				t.Error("the point was never reached")
			}
		})
	}
}

// An error at any point, a full disk being the likely one, leaves everything as before, and the next commit works.
func TestErrorsLeaveNothing(t *testing.T) {
	for _, point := range crashPoints() {
		t.Run(point, func(t *testing.T) {
			var armed atomic.Bool
			fail := func(p string) error {
				if p == point && armed.Load() {
					return &os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}
				}
				return nil
			}
			dir := t.TempDir()
			s, err := open(t.Context(), dir, Options{PackBytes: 50 << 10}, fail)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			var tip object.ID
			w := newWorld()
			try := func(i uint64) (object.ID, error) {
				w.write(fmt.Sprint("a", i%3), i, 30000)
				b := begin(t, s)
				id, err := w.store(t.Context(), b, nil, fmt.Sprint(i))
				if err != nil {
					b.Abort()
					return id, err
				}
				_, err = b.Commit(t.Context(), func(tx *Tx) error { return tx.SetRef("main", tip, id) })
				return id, err
			}
			for i := range uint64(9) {
				armed.Store(i%3 == 1)
				id, err := try(i)
				if err == nil && i%3 == 1 {
					_, err = s.GC(t.Context(), GCOptions{Waste: 1})
					if err == nil {
						t.Fatal("the point was never reached")
					}
					wantKind(t, err, errs.NoSpace)
					tip = id
				} else if i%3 == 1 {
					wantKind(t, err, errs.NoSpace)
					w.ids = map[string][]object.ID{}
				} else if err != nil {
					t.Fatal(err)
				} else {
					tip = id
				}
				armed.Store(false)
				fresh(s)
				if err := reach(t.Context(), s, object.KindCommit, tip, map[object.ID]object.Kind{}); err != nil {
					t.Fatal(err)
				}
				if rep := fsck(t, s, FsckOptions{}); !rep.OK() {
					t.Fatalf("round %d: %+v", i, rep.Problems[:min(5, len(rep.Problems))])
				}
			}
			s.Close()
			afterCrash2 := testStore(t, dir, Options{})
			if notes := afterCrash2.Recovered(); len(notes) > 0 {
				t.Errorf("an error counts as damage: %v", notes)
			}
		})
	}
}

// Power lost at any moment costs nothing that was acknowledged.
func TestPowerLoss(t *testing.T) {
	d := powercut.NewDisk(t, 192<<20)
	dir := filepath.Join(d.Dir, "store")
	var last object.ID
	for range 60 {
		s, err := Open(t.Context(), dir, Options{PackBytes: 300 << 10})
		if err != nil {
			t.Fatal(err)
		}
		lines, done := &lineLog{}, make(chan struct{})
		go func() {
			defer close(done)
			commits(s, lines)
		}()
		ctx, cancel := context.WithCancel(t.Context())
		collected := make(chan struct{})
		go func() {
			defer close(collected)
			for ctx.Err() == nil && s.usable() == nil {
				s.GC(ctx, GCOptions{Waste: 5})
				time.Sleep(time.Millisecond)
			}
		}()
		time.Sleep(time.Duration(5+rand.IntN(60)) * time.Millisecond)
		d.Cut()
		<-done
		cancel()
		<-collected
		s.Close()
		d.Restart()
		r := tried{done: last}
		for line := range strings.Lines(lines.String()) {
			r.line(t, line)
		}
		last = afterCrash(t, dir, r)
	}
	if last.IsZero() {
		t.Error("nothing was ever committed")
	}
}

// lineLog collects what commits says. It is read when that is done.
type lineLog struct{ strings.Builder }

// A disk that is full refuses the batch and nothing else; with space again the next one works.
func TestFullDisk(t *testing.T) {
	d := powercut.NewDisk(t, 24<<20)
	dir := filepath.Join(d.Dir, "store")
	s := testStore(t, dir, Options{})
	t.Cleanup(func() { s.Close() })
	b := begin(t, s)
	keep := put(t, b, object.KindChunk, random(1, 64<<10), object.ID{})
	commit(t, b, func(tx *Tx) error { return tx.SetRef("keep", object.ID{}, keep) })

	b = begin(t, s)
	var err error
	for i := range 1000 {
		if _, err = b.Put(t.Context(), object.KindChunk, random(uint64(2+i), 64<<10)); err != nil {
			break
		}
	}
	if err == nil {
		_, err = b.Commit(t.Context(), nil)
	}
	wantKind(t, err, errs.NoSpace)
	b.Abort()
	if n := diskUse(t, s); n > 100<<10 {
		t.Errorf("the failed batch still takes %d bytes", n)
	}
	fresh(s)
	wantObject(t, s, object.KindChunk, keep, random(1, 64<<10))
	b = begin(t, s)
	put(t, b, object.KindChunk, random(5, 64<<10), object.ID{})
	commit(t, b, nil)
	if rep := fsck(t, s, FsckOptions{}); !rep.OK() {
		t.Errorf("problems: %+v", rep.Problems)
	}

	s.Close()
	s = testStore(t, dir, Options{MinFree: 1 << 30})
	_, err = s.Begin(t.Context())
	wantKind(t, err, errs.NoSpace)
	if err := s.Update(func(tx *Tx) error { return tx.SetMeta("k", []byte("v")) }); err != nil {
		t.Errorf("metadata is refused, too: %v", err)
	}
	s.Close()
}
