package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"dm/internal/e2e/fsx"
	"dm/internal/e2e/tree"
)

// Random operations on files answer as on the host's filesystem, with commits, resets, checkouts and server restarts in
// between, and every commit holds what was there.
func TestRandomOperations(t *testing.T) {
	seed := uint64(number(t, "DM_SEED", int(time.Now().UnixNano()&0xffffff)))
	rounds := number(t, "DM_ROUNDS", 25)
	t.Run("host", func(t *testing.T) { randomOperations(t, newHostVolume(t, "sub"), seed, 15) })
	for _, cache := range []string{through, writeback} {
		t.Run(cache, func(t *testing.T) {
			randomOperations(t, newVolume(newServer(t, cache), "d", "sub"), seed, rounds)
		})
	}
}

// history is a run of random operations on a volume, with what its revisions must hold.
type history struct {
	t      *testing.T
	v      volume
	run    *fsx.Run
	rnd    *rand.Rand
	model  string            // the host's directory of the current branch
	branch string            // the current branch
	saved  map[string]string // by revision, a copy of the model
	revs   []string
}

func randomOperations(t *testing.T, v volume, seed uint64, rounds int) {
	h := &history{t: t, v: v, rnd: rand.New(rand.NewPCG(seed, 5)), branch: "master", saved: make(map[string]string)}
	if err := os.Mkdir(h.real(), 0o755); err != nil {
		t.Fatal(err)
	}
	h.model = t.TempDir()
	h.run = fsx.New(h.real(), h.model, seed)
	defer func() { h.run.Close() }()
	h.commit()
	for range rounds {
		h.check(h.run.Steps(50 + h.rnd.IntN(400)))
		what := h.event()
		if err := h.run.Check(); err != nil {
			t.Fatalf("after %s: %v", what, err)
		}
	}
	for _, rev := range h.revs {
		h.compare(rev)
	}
}

func (h *history) real() string { return filepath.Join(h.v.path(), "sub", "fsx") }

func (h *history) check(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *history) event() string {
	h.t.Helper()
	h.check(h.run.Check())
	switch k := h.rnd.IntN(10); {
	case k < 5: // with files open
		return "commit " + h.commit()
	case k < 7:
		rev := h.revs[h.rnd.IntN(len(h.revs))]
		h.run.Close()
		h.v.reset(rev)
		h.copyModel(h.saved[rev])
		return "reset to " + rev
	case k == 7:
		h.run.Close()
		h.v.restart()
		return "a restart"
	case k == 8:
		rev := h.revs[h.rnd.IntN(len(h.revs))]
		h.compare(rev)
		return "showing " + rev
	}
	return "checkout " + h.checkout()
}

func (h *history) commit() string {
	h.t.Helper()
	rev := h.v.commit(fmt.Sprintf("commit %d", len(h.revs)))
	dir := filepath.Join(h.t.TempDir(), "saved")
	copyTree(h.t, h.model, dir)
	h.saved[rev] = dir
	h.revs = append(h.revs, rev)
	return rev
}

// copyModel makes the model a copy of a saved one.
func (h *history) copyModel(saved string) {
	h.t.Helper()
	list, err := os.ReadDir(h.model)
	h.check(err)
	for _, e := range list {
		h.check(os.RemoveAll(filepath.Join(h.model, e.Name())))
	}
	copyTree(h.t, saved+"/.", h.model)
}

// checkout goes to the other branch and back: what was not committed stays with its branch.
func (h *history) checkout() string {
	h.t.Helper()
	h.run.Close()
	before, err := tree.Take(h.real())
	h.check(err)
	name := fmt.Sprintf("b%d", h.rnd.IntN(3))
	h.v.branch(name)
	if _, err := tree.Take(h.real()); err != nil {
		h.t.Fatalf("branch %s: %v", name, err)
	}
	h.check(os.WriteFile(filepath.Join(h.real(), "only-in-"+name), []byte("x"), 0o644))
	h.v.branch("master")
	after, err := tree.Take(h.real())
	h.check(err)
	for _, d := range tree.Diff(before, after, 10) {
		h.t.Errorf("after a visit to branch %s: %s", name, d)
	}
	return name
}

// compare compares a revision with what was saved of the model.
func (h *history) compare(rev string) {
	h.t.Helper()
	dir, done := h.v.show(rev)
	defer done()
	want, err := tree.Take(h.saved[rev])
	h.check(err)
	got, err := tree.Take(filepath.Join(dir, "sub", "fsx"))
	h.check(err)
	// The model was copied and made at other times.
	for _, snap := range []tree.Snapshot{want, got} {
		for p, rec := range snap {
			rec.Sec, rec.Nsec = 0, 0
			snap[p] = rec
		}
		dot := snap["."]
		dot.Mode = 0
		snap["."] = dot
	}
	for _, d := range tree.Diff(want, got, 10) {
		h.t.Errorf("revision %s: %s", rev, d)
	}
}
