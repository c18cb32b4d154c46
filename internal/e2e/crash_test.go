package e2e

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"dm/internal/e2e/tree"
)

// The server is killed at random moments of writes, commits, checkouts and resets. After each restart every branch is at its
// old or its new commit, fsck finds nothing, what was written is there as far as it was promised, and what differs from
// the commit is known to differ.
func TestKilledServer(t *testing.T) {
	seed := uint64(number(t, "DM_SEED", int(time.Now().UnixNano()&0xffffff)))
	rounds := number(t, "DM_ROUNDS", 40)
	for _, cache := range []string{through, writeback} {
		t.Run(cache, func(t *testing.T) {
			t.Parallel() // each waits for its own server most of the time
			t.Logf("seed %d", seed)
			c := newCrash(t, cache, seed)
			for c.round = range rounds {
				c.once()
				if t.Failed() {
					t.Fatalf("in round %d, %s", c.round, c.what)
				}
			}
			t.Logf("events: %v", c.events)
		})
	}
}

// crash is a dot whose server is killed again and again.
type crash struct {
	t       *testing.T
	v       *dmVolume
	rnd     *rand.Rand
	root    string
	current string                   // the branch
	models  map[string]model         // by branch, what its working copy may hold
	heads   map[string]string        // by branch, the commit it is at
	commits map[string]tree.Snapshot // what is in each commit, without times
	what    string
	round   int
	events  map[string]int
	version uint64
}

func newCrash(t *testing.T, cache string, seed uint64) *crash {
	c := &crash{
		t: t, v: newVolume(newServer(t, cache), "d", "a", "b", "c"), rnd: rand.New(rand.NewPCG(seed, 6)), current: "master",
		models: map[string]model{"master": {}}, heads: make(map[string]string), commits: make(map[string]tree.Snapshot),
		events: make(map[string]int),
	}
	c.root = c.v.path()
	c.settle()
	c.v.branch("other")
	c.heads["other"], c.models["other"] = c.heads["master"], model{}
	c.v.branch("master")
	return c
}

// once is one round: something is done, the server is killed meanwhile and started again, and all is checked.
func (c *crash) once() {
	c.t.Helper()
	events := []func() func(){c.writes, c.commit, c.checkout, c.reset}
	verify := events[c.rnd.IntN(len(events))]()
	c.events[strings.Fields(c.what)[0]]++
	c.v.start()
	if got := c.v.dm("path", c.v.dot); got != c.root {
		c.t.Fatalf("the dot was at %s and is now at %s", c.root, got)
	}
	verify()
	c.checkFiles()
	if c.t.Failed() {
		return
	}
	c.settle()
}

// killAfter kills the server after a random part of the time that the event takes, about.
func (c *crash) killAfter(about time.Duration) (wait func()) {
	delay := time.Duration(c.rnd.Int64N(int64(about)))
	var done sync.WaitGroup
	done.Go(func() {
		time.Sleep(delay)
		c.v.kill()
	})
	return done.Wait
}

func (c *crash) writes() func() {
	c.what = "writes"
	killed := c.killAfter(150 * time.Millisecond)
	c.write(nil)
	killed()
	return func() { c.atHead(c.heads[c.current]) }
}

// commit: writers go on while it is made.
func (c *crash) commit() func() {
	c.what = "commit"
	c.writeFor(20 * time.Millisecond)
	stop := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() { c.write(stop) })
	killed := c.killAfter(120 * time.Millisecond)
	out, stderr, code := c.v.try("commit", "-m", "killed")
	killed()
	close(stop)
	writer.Wait()
	id := strings.TrimSpace(out)
	if code == 0 && len(id) != 64 {
		c.t.Fatalf("dm commit: %q, %q", out, stderr)
	}
	return func() {
		head := c.head("HEAD")
		switch old := c.heads[c.current]; {
		case code == 0 && head != id:
			c.t.Errorf("commit %s was acknowledged, the branch is at %s (before: %s)", id, head, old)
		case head != old && c.head("HEAD^") != old:
			c.t.Errorf("the branch was at %s and is at %s, which does not follow it", old, head)
		}
		c.heads[c.current] = head
	}
}

func (c *crash) checkout() func() {
	from, to := c.current, "other"
	if from == to {
		to = "master"
	}
	c.what = "checkout of " + to
	c.writeFor(20 * time.Millisecond)
	killed := c.killAfter(40 * time.Millisecond)
	_, _, code := c.v.try("checkout", to)
	killed()
	return func() {
		for line := range strings.Lines(c.v.dm("branch")) {
			if name, ok := strings.CutPrefix(line, "* "); ok {
				c.current = strings.TrimSpace(name)
			}
		}
		if code == 0 && c.current != to || c.current != from && c.current != to {
			c.t.Errorf("checkout of %s ended with code %d, the branch is %s", to, code, c.current)
		}
		c.atHead(c.heads[c.current])
	}
}

func (c *crash) reset() func() {
	old := c.heads[c.current]
	ids := make([]string, 0, len(c.commits))
	for id := range maps.Keys(c.commits) {
		ids = append(ids, id)
	}
	to := ids[c.rnd.IntN(len(ids))]
	c.what = "reset to " + to
	c.writeFor(20 * time.Millisecond)
	killed := c.killAfter(40 * time.Millisecond)
	_, stderr, code := c.v.try("reset", "--hard", to)
	killed()
	return func() {
		head := c.head("HEAD")
		wanted := c.commits[to]
		switch {
		case head == to && (code == 0 || to != old):
			// Done, whether or not the client heard of it.
			c.same("after the reset", wanted)
			c.models[c.current] = c.observe()
		case head == to && len(tree.Diff(wanted, c.take(c.root), 1)) == 0:
			c.models[c.current] = c.observe()
		case code == 0 || head != old:
			c.t.Errorf("reset from %s to %s ended with code %d, the branch is at %s: %s", old, to, code, head, stderr)
		}
		c.heads[c.current] = head
	}
}

func (c *crash) head(rev string) string {
	c.t.Helper()
	return strings.TrimPrefix(strings.SplitN(c.v.dm("log", rev, "-n", "1"), "\n", 2)[0], "commit ")
}

func (c *crash) atHead(want string) {
	c.t.Helper()
	if got := c.head("HEAD"); got != want {
		c.t.Errorf("branch %s is at %s, want %s", c.current, got, want)
	}
}

// settle verifies the store, and that a commit of what is there now is what is there now: a change that the server forgot
// in the crash would be missing from it.
func (c *crash) settle() {
	c.t.Helper()
	if c.round%4 == 0 {
		c.v.fsck()
	}
	changed := c.changed()
	before := c.take(c.root)
	if head, ok := c.heads[c.current]; ok {
		c.knownDirty(head, before, changed)
	}
	id := c.v.commit(fmt.Sprintf("round %d", c.round))
	c.heads[c.current] = id
	dir, done := c.v.show(id)
	got := c.take(dir)
	done()
	for _, d := range tree.Diff(before, got, 5) {
		c.t.Errorf("a commit after the restart: %s", d)
	}
	c.commits[id] = got
	c.models[c.current] = c.observe()
	if left := c.changed(); len(left) > 0 {
		c.t.Errorf("after a commit these are dirty: %v", left)
	}
}

// knownDirty: whatever differs from the branch's commit is listed as changed.
func (c *crash) knownDirty(head string, now tree.Snapshot, changed map[string]bool) {
	c.t.Helper()
	dir, done := c.v.show(head)
	defer done()
	was := c.take(dir)
	for p, rec := range now {
		if old, ok := was[p]; (!ok || old.Digest != rec.Digest || old.Size != rec.Size) && !changed[p] {
			c.t.Errorf("%s differs from the commit, and dm diff does not say so", p)
		}
	}
	for p := range was {
		if _, ok := now[p]; !ok && !changed[p] {
			c.t.Errorf("%s is gone since the commit, and dm diff does not say so", p)
		}
	}
}

// changed returns the paths that dm diff names, both those of a rename.
func (c *crash) changed() map[string]bool {
	c.t.Helper()
	paths := make(map[string]bool)
	for line := range strings.Lines(c.v.dm("diff", "-H")) {
		for _, f := range strings.Split(strings.TrimSpace(line), "\t") {
			paths[f] = true
		}
	}
	return paths
}

func (c *crash) take(dir string) tree.Snapshot {
	c.t.Helper()
	snap := take(c.t, dir)
	for p, rec := range snap {
		rec.Sec, rec.Nsec = 0, 0
		snap[p] = rec
	}
	return snap
}

func (c *crash) same(when string, want tree.Snapshot) {
	c.t.Helper()
	same(c.t, when, want, c.take(c.root))
}

func (c *crash) path(name string) string { return filepath.Join(c.root, name) }

func (c *crash) checkFiles() {
	c.t.Helper()
	m := c.models[c.current]
	for _, sub := range []string{"a", "b", "c"} {
		list, err := os.ReadDir(c.path(sub))
		if err != nil {
			c.t.Fatal(err)
		}
		for _, e := range list {
			if name := sub + "/" + e.Name(); m[name] == nil {
				c.t.Errorf("%s should not be there", name)
			}
		}
	}
	for name, f := range m {
		if err := f.check(c.path(name)); err != nil {
			c.t.Errorf("%s: %v", name, err)
		}
	}
}
