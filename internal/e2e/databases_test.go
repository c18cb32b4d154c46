package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"dm/internal/e2e/dbs"
)

// Four database servers work under load on the subdots of one dot while it is committed; each commit holds a state that the
// clients' log says existed, at one instant, and from which each server recovers by itself.
func TestDatabases(t *testing.T) {
	for _, cache := range []string{writeback, through} {
		t.Run(cache, func(t *testing.T) {
			t.Parallel() // servers start, stop and recover one after the other
			databases(t, cache)
		})
	}
}

const dbClients = 3

// saved is a commit and the clients' log around it.
type saved struct {
	rev           string
	before, after dbs.Moment
}

func databases(t *testing.T, cache string) {
	all := dbs.All()
	var names []string
	for _, db := range all {
		names = append(names, db.Name())
	}
	v := newVolume(newServer(t, cache), "stack", names...)
	initAll(t, all, v.path())
	load := dbs.NewLoad(all, dbClients)
	if err := load.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { load.Stop() })
	commits := make([]saved, 20)
	for i := range commits {
		time.Sleep(200 * time.Millisecond)
		commits[i].before = load.Now()
		commits[i].rev = v.commit(fmt.Sprintf("under load %d", i))
		commits[i].after = load.Now()
	}
	if err := load.Stop(); err != nil {
		t.Fatal(err)
	}
	stopAll(t, all)
	for _, i := range []int{19, 4} {
		v.reset(commits[i].rev)
		state := verify(t, all, v.path(), fmt.Sprintf("reset to commit %d", i), commits[i])
		goOn(t, all, v, load, state)
	}
	for _, i := range []int{0, 9} {
		dir, done := v.show(commits[i].rev)
		aside := filepath.Join(baseDir(t), "copy")
		copyTree(t, dir, aside)
		done()
		verify(t, all, aside, fmt.Sprintf("copy of commit %d", i), commits[i])
	}
	v.fsck()
}

// initAll makes an empty database of each kind in its subdot, and starts it.
func initAll(t *testing.T, all []dbs.Database, root string) {
	t.Helper()
	for _, db := range all {
		dir := filepath.Join(root, db.Name())
		if err := os.Chmod(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := db.Init(dir); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Stop() })
	}
	startAll(t, all, root)
}

func startAll(t *testing.T, all []dbs.Database, root string) {
	t.Helper()
	for _, db := range all {
		if err := db.Start(filepath.Join(root, db.Name())); err != nil {
			t.Fatal(err)
		}
	}
}

func stopAll(t *testing.T, all []dbs.Database) {
	t.Helper()
	for _, db := range all {
		if err := db.Stop(); err != nil {
			t.Fatal(err)
		}
	}
}

func verify(t *testing.T, all []dbs.Database, root, what string, s saved) [][]int64 {
	t.Helper()
	state, err := dbs.Verify(all, root, dbClients, s.before, s.after)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	t.Logf("%s holds %v", what, state)
	return state
}

// goOn lets the databases work on from the state they were set back to, and verifies a commit of that too.
func goOn(t *testing.T, all []dbs.Database, v *dmVolume, load *dbs.Load, state [][]int64) {
	t.Helper()
	startAll(t, all, v.path())
	load.Restore(state)
	if err := load.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond)
	s := saved{before: load.Now()}
	s.rev = v.commit("gone on")
	s.after = load.Now()
	if err := load.Stop(); err != nil {
		t.Fatal(err)
	}
	stopAll(t, all)
	v.reset(s.rev)
	verify(t, all, v.path(), "a commit after a reset", s)
}
