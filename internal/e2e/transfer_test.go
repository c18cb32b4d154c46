package e2e

import (
	"crypto/rand"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"dm/internal/e2e/tree"
)

// fill writes n bytes that nobody can compress.
func fill(t *testing.T, path string, n int) {
	t.Helper()
	b := make([]byte, n)
	rand.Read(b)
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, err = f.Write(b)
	if err == nil {
		// The kernel hands over a file's times some time after its bytes; a commit in between has the time they came.
		err = f.Sync()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// same compares what two machines show of a dot, times and owners included.
func sameDot(t *testing.T, what string, a, b *server, dot string) {
	t.Helper()
	sameDots(t, what, a, dot, b, dot)
}

func sameDots(t *testing.T, what string, a *server, dotA string, b *server, dotB string) {
	t.Helper()
	take := func(s *server, dot string) tree.Snapshot {
		root, err := filepath.EvalSymlinks(s.dm("path", dot))
		if err != nil {
			t.Fatal(err)
		}
		all, err := tree.Take(root)
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	want, got := take(a, dotA), take(b, dotB)
	if diff := tree.Diff(want, got, 5); len(diff) > 0 {
		t.Errorf("%s: the other machine has something else:\n%s", what, strings.Join(diff, "\n"))
	}
}

// Everything that a tree can hold arrives at another machine as it was, and so does what changes there afterwards.
func TestEverythingTravels(t *testing.T) {
	h := newHub(t)
	a, b := newServer(t, writeback), newServer(t, through)
	h.join(a, "alice")
	a.dm("init", "app", "one", "two")
	root := a.dm("path", "app")
	if err := tree.Everything(filepath.Join(root, "one"), 5); err != nil {
		t.Fatal(err)
	}
	a.commit("everything")
	a.dm("push", "hub")
	h.join(b, "bob")
	h.dm("hub", "share", "alice/app", "bob", "write")
	b.dm("clone", "hub", "alice/app")
	sameDot(t, "clone", a, b, "app")
	if err := tree.Many(filepath.Join(b.dm("path", "app"), "two"), 3000, 1); err != nil {
		t.Fatal(err)
	}
	b.commit("many")
	if r := b.transfer("push", "hub"); r.Moved != 1 || r.Commits != 1 {
		t.Errorf("the push of one commit moved %d refs and sent %d commits", r.Moved, r.Commits)
	}
	a.dm("pull", "hub")
	sameDot(t, "pull", a, b, "app")
	if n := h.link.passed(func() { a.dm("push", "hub") }); n > 4096 {
		t.Errorf("to find out that there is nothing to send took %d bytes", n)
	}
	a.fsck()
	b.fsck()
	h.fsck(b)
}

// tripBytes is how much new data travels in each round.
const tripBytes = 72 << 20

// slackOf returns how many bytes may travel twice: what was on its way (of a push two packs of 4 MiB; of a pull four answers of
// 8 MiB, and 4 MiB that were not durable yet), and what is asked and answered.
func slackOf(verb string) int64 {
	if verb == "push" {
		return 9 << 20
	}
	return 37 << 20
}

// The client, the server, the hub and the network are taken away at random moments of pushes, pulls and clones. Afterwards
// each side's store is whole, each branch at its old or its new commit, and the same command again sends only the rest.
func TestDisturbedTransfers(t *testing.T) {
	seed := uint64(number(t, "DM_SEED", int(time.Now().UnixNano()&0xffffff)))
	t.Logf("seed %d", seed)
	rounds := number(t, "DM_ROUNDS", 6)
	const perWorld = 12 // disk space
	for world := 0; world*perWorld < rounds; world++ {
		t.Run(fmt.Sprint(world), func(t *testing.T) {
			d := newDisturbed(t, seed+uint64(world))
			for i := range min(perWorld, rounds-world*perWorld) {
				d.round(world*perWorld + i)
				if t.Failed() {
					return
				}
			}
			d.a.fsck()
			d.b.fsck()
			d.h.fsck(d.b)
		})
	}
}

type disturbed struct {
	t    *testing.T
	rnd  *mathrand.Rand
	h    *hub
	a, b *server
	took time.Duration // the last transfer that nobody disturbed, about
	sent int64         // bytes of all commits so far
}

func newDisturbed(t *testing.T, seed uint64) *disturbed {
	d := &disturbed{t: t, rnd: mathrand.New(mathrand.NewPCG(seed, 9)), h: newHub(t), took: 400 * time.Millisecond}
	d.a, d.b = newServer(t, writeback), newServer(t, writeback)
	d.h.join(d.a, "alice")
	d.h.join(d.b, "bob")
	d.a.dm("init", "app", "db")
	d.a.commit("empty")
	d.a.dm("push", "hub")
	d.h.dm("hub", "share", "alice/app", "bob", "read")
	d.b.dm("clone", "hub", "alice/app")
	return d
}

// round makes a commit and brings it from one machine over the hub to the other. One of the ways is disturbed.
func (d *disturbed) round(n int) {
	d.t.Helper()
	for f := range 3 {
		fill(d.t, filepath.Join(d.a.dm("path", "app.db"), fmt.Sprint(f)), tripBytes/3)
	}
	tip := d.a.commit(fmt.Sprint(n))
	d.sent += tripBytes
	victims := []string{"client", "interrupt", "server", "hub", "network"}
	victim := victims[d.rnd.IntN(len(victims))]
	ways := []string{"push", "pull", "clone"}
	way := ways[d.rnd.IntN(len(ways))]
	what := fmt.Sprintf("round %d: %s taken away during a %s", n, victim, way)
	d.t.Log(what)
	if way == "push" {
		d.disturb(what, d.a, victim, "push", "hub", "app")
	} else {
		began := time.Now()
		d.a.dm("push", "hub")
		d.took = time.Since(began)
	}
	switch way {
	case "clone":
		d.b.dm("dot", "delete", "-f", "app")
		d.b.dm("gc")
		d.disturb(what, d.b, victim, "clone", "hub", "alice/app")
	case "pull":
		d.disturb(what, d.b, victim, "pull", "hub", "app")
	default:
		d.b.dm("pull", "hub", "app")
	}
	for _, s := range []*server{d.a, d.b} {
		if head := s.head("app"); head != tip {
			d.t.Errorf("%s: the branch is at %s, not at %s", what, head, tip)
		}
	}
	sameDot(d.t, what, d.a, d.b, "app")
}

// head returns the commit that a dot is at, "" if there is no dot.
func (s *server) head(dot string) string {
	out, _, code := s.try("log", "--dot", dot, "-n", "1", "--oneline")
	if code != 0 {
		return ""
	}
	id, _, _ := strings.Cut(out, " ")
	full, _, _ := strings.Cut(strings.TrimPrefix(s.dm("show", "--dot", dot, id), "commit "), "\n")
	return full
}

// disturb runs a transfer twice: the first time something is taken away in the middle, the second time it must succeed.
func (d *disturbed) disturb(what string, s *server, victim string, args ...string) {
	d.t.Helper()
	before := s.head("app")
	total := d.h.link.passed(func() {
		cmd := s.begin(args...)
		time.Sleep(time.Duration(d.rnd.Int64N(int64(d.took))))
		code := d.strike(cmd, s, victim)
		if victim == "interrupt" && code != 130 && code != 0 {
			d.t.Errorf("%s: exit code %d", what, code)
		}
		if args[0] == "pull" {
			if head := s.head("app"); head != before && head != d.a.head("app") {
				d.t.Errorf("%s: the branch is at %s, neither at the old nor at the new commit", what, head)
			}
		}
		s.fsck()
		if args[0] == "clone" && s.head("app") != "" {
			return // it had come to its end
		}
		s.dm(args...)
	})
	want := int64(tripBytes)
	if args[0] == "clone" {
		want = d.sent // with all history
	}
	d.t.Logf("%s: %.1f MB traveled twice", what, float64(total-want)/1e6)
	if total > want+slackOf(args[0]) {
		d.t.Errorf("%s: %d bytes traveled, for %d", what, total, want)
	}
}

// strike takes a victim away, gives it back, and waits for the command.
func (d *disturbed) strike(cmd *exec.Cmd, s *server, victim string) (code int) {
	d.t.Helper()
	switch victim {
	case "client":
		cmd.Process.Kill()
		code = exitCode(d.t, cmd)
	case "interrupt":
		cmd.Process.Signal(syscall.SIGINT)
		code = exitCode(d.t, cmd)
	case "server":
		s.kill()
		code = exitCode(d.t, cmd)
		s.start()
	case "hub":
		d.h.kill()
		d.h.start()
		code = exitCode(d.t, cmd) // it may have succeeded: what a hub that comes back soon misses is sent again
	case "network":
		d.h.link.setCut(true)
		time.Sleep(100 * time.Millisecond)
		d.h.link.setCut(false)
		code = exitCode(d.t, cmd)
	}
	// Whoever waits for the server's end of it sees it end.
	for deadline := time.Now().Add(20 * time.Second); s.dm("transfers", "-H") != ""; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			d.t.Fatalf("a transfer whose %s is gone does not end", victim)
		}
	}
	return code
}
