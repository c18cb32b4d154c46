package e2e

import (
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dm/internal/e2e/dbs"
)

// A developer's stack of real databases is committed while it works and pushed; a CI job clones it, starts the databases on
// the clone, finds a state that existed, works on, commits and pushes back; the developer pulls and finds the CI job's.
func TestStackTravels(t *testing.T) {
	h := newHub(t)
	dev, ci := newServer(t, writeback), newServer(t, writeback)
	h.join(dev, "dev")
	all := dbs.All()
	var names []string
	for _, db := range all {
		names = append(names, db.Name())
	}
	v := newVolume(dev, "stack", names...)
	initAll(t, all, v.path())
	load := dbs.NewLoad(all, dbClients)
	first := underLoad(t, load, v)
	full := dev.transfer("push", "hub")
	second := underLoad(t, load, v)
	small := dev.transfer("push", "hub")
	t.Logf("the first push sent %d bytes, that of some transactions more %d", full.Bytes, small.Bytes)
	if small.Commits != 1 || small.Bytes > full.Bytes/2 {
		t.Errorf("the push of some transactions sent %d commits, %d bytes; the first %d", small.Commits, small.Bytes, full.Bytes)
	}
	h.join(ci, "ci")
	if _, stderr, code := ci.try("clone", "hub", "dev/stack"); code != 3 {
		t.Fatalf("a dot that was not shared: exit code %d, %s", code, stderr)
	}
	h.dm("hub", "share", "dev/stack", "ci", "write")
	ci.dm("clone", "hub", "dev/stack")
	there := &dmVolume{server: ci, dot: "stack", branches: map[string]bool{"master": true}}
	if _, stderr, code := dev.try("pull", "hub"); code != 0 || strings.Contains(stderr, "in use") {
		t.Errorf("a pull that has nothing to move: exit code %d, %s", code, stderr)
	}
	stopAll(t, all)
	verify(t, all, there.path(), "the clone", second)
	there.reset(first.rev)
	verify(t, all, there.path(), "the clone's first commit", first)
	there.reset(second.rev)
	state := verify(t, all, there.path(), "the clone again", second)
	startAll(t, all, there.path())
	load.Restore(state)
	back := underLoad(t, load, there)
	ci.dm("push", "hub")
	stopAll(t, all)
	if _, stderr, code := dev.try("pull", "hub"); code != 4 || !strings.Contains(stderr, "uncommitted changes") {
		t.Errorf("a pull over what was never committed: exit code %d, %s", code, stderr)
	}
	v.reset("HEAD")
	dev.dm("pull", "hub")
	verify(t, all, v.path(), "what came back", back)
	dev.fsck()
	ci.fsck()
}

// underLoad commits in the middle of clients' work.
func underLoad(t *testing.T, load *dbs.Load, v *dmVolume) (s saved) {
	t.Helper()
	if err := load.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond)
	s.before = load.Now()
	s.rev = v.commit("under load")
	s.after = load.Now()
	if err := load.Stop(); err != nil {
		t.Fatal(err)
	}
	return s
}

// What is damaged on the disk is fetched from a remote that has it. What the remote does not have stays damage.
func TestRepairFromRemote(t *testing.T) {
	seed := uint64(number(t, "DM_SEED", int(time.Now().UnixNano()&0xffffff)))
	t.Logf("seed %d", seed)
	rnd := mathrand.New(mathrand.NewPCG(seed, 11))
	h := newHub(t)
	a, b := newServer(t, writeback), newServer(t, writeback)
	h.join(a, "alice")
	h.join(b, "bob")
	a.dm("init", "app", "db", "many")
	for i := range 3 {
		root := a.dm("path", "app")
		fill(t, filepath.Join(root, "db", fmt.Sprint(i)), 2<<20)
		for f := range 300 {
			if err := os.WriteFile(filepath.Join(root, "many", fmt.Sprintf("%d-%d", i, f)), fmt.Appendf(nil, "%d %d\n", i, f), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		a.commit(fmt.Sprint(i))
	}
	a.dm("push", "hub")
	h.dm("hub", "share", "alice/app", "bob", "read")
	b.dm("clone", "hub", "alice/app")
	for round := range 5 {
		a.stop()
		spoilPacks(t, rnd, filepath.Join(a.home, "store", "packs"), 1+10*round)
		a.start()
		if _, _, code := a.try("fsck"); code != 7 {
			t.Fatalf("round %d: fsck of a damaged store ends with %d", round, code)
		}
		out := a.dm("fsck", "--repair-from", "hub")
		if !strings.Contains(out, "from hub") {
			t.Errorf("fsck --repair-from says %q", out)
		}
		a.fsck()
		a.dm("gc")
		for _, rev := range []string{"HEAD", "HEAD^", "HEAD^^"} {
			a.dm("reset", "--hard", rev, "--dot", "app")
			b.dm("reset", "--hard", a.head("app"), "--dot", "app")
			sameDot(t, fmt.Sprintf("round %d, %s", round, rev), b, a, "app")
			a.dm("pull", "hub")
		}
	}
	// What was never pushed is in no remote.
	fill(t, filepath.Join(a.dm("path", "app"), "db", "own"), 1<<20)
	a.commit("own")
	a.stop()
	spoilPacks(t, rnd, filepath.Join(a.home, "store", "packs"), 400)
	a.start()
	out, stderr, code := a.try("fsck", "--repair-from", "hub")
	if code != 7 || !strings.Contains(stderr, "remote hub does not have the rest") {
		t.Errorf("what no remote has: exit code %d\n%s%s", code, out, stderr)
	}
}

// spoilPacks flips bits at random places of packs, behind their headers.
func spoilPacks(t *testing.T, rnd *mathrand.Rand, dir string, n int) {
	t.Helper()
	packs, err := filepath.Glob(filepath.Join(dir, "*.pack"))
	if err != nil || len(packs) == 0 {
		t.Fatalf("no packs in %s: %v", dir, err)
	}
	for range n {
		f, err := os.OpenFile(packs[rnd.IntN(len(packs))], os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() < 100 {
			f.Close()
			continue
		}
		at := 64 + rnd.Int64N(info.Size()-64)
		var one [1]byte
		if _, err := f.ReadAt(one[:], at); err != nil {
			t.Fatal(err)
		}
		one[0] ^= 1 << rnd.IntN(8)
		if _, err := f.WriteAt(one[:], at); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
