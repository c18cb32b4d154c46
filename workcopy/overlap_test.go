package workcopy

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"dm/object"
)

// freezing is a Freeze in another goroutine.
type freezing struct {
	s    *Snapshot
	err  error
	done chan struct{}
}

// freezeBeside begins a freeze beside a commit that is being made, and returns when its cut has been made.
func freezeBeside(ctx context.Context, c *Copy) (*freezing, error) {
	f := &freezing{done: make(chan struct{})}
	c.mu.RLock()
	open := len(c.snaps)
	c.mu.RUnlock()
	go func() {
		f.s, f.err = c.Freeze(ctx)
		close(f.done)
	}()
	for range 5000 {
		c.mu.RLock()
		cuts := len(c.snaps)
		c.mu.RUnlock()
		if cuts > open {
			return f, nil
		}
		select {
		case <-f.done:
			return f, fmt.Errorf("a freeze beside a commit ended at once: %w", f.err)
		case <-time.After(time.Millisecond):
		}
	}
	return f, errors.New("a freeze beside a commit makes no cut")
}

func (f *freezing) wait() (*Snapshot, error) {
	<-f.done
	return f.s, f.err
}

// overlap makes two commits, the cut of the second while the first is being made. Each may be given up, and the server may
// be killed before, between and behind their ends.
func (p *player) overlap(b *branch, dir string, cfg Config, what string) {
	p.t.Helper()
	ok := func(err error, doing string) {
		p.t.Helper()
		if err != nil {
			p.t.Fatalf("%s, %s: %v", what, doing, err)
		}
	}
	same := func(want, got state, doing string) {
		p.t.Helper()
		if d := want.diff(got); d != "" {
			p.t.Fatalf("%s, %s: want, got\n%s", what, doing, d)
		}
	}
	steps := func() {
		for range p.rnd.IntN(6) {
			ok(p.step(), "a step")
		}
	}
	look := func() state {
		st, err := read(p.ctx, p.c)
		ok(err, "read")
		return st
	}
	restart := func() {
		live := look()
		kill(p.c)
		p.held = nil
		var err error
		p.c, err = Open(p.ctx, dir, cfg, b.id)
		ok(err, "open")
		same(live, look(), "after a restart")
	}

	want := []state{look()}
	s, err := p.c.Freeze(p.ctx)
	ok(err, "freeze")
	steps()
	want = append(want, look())
	ctx, cancel := context.WithCancel(p.ctx)
	defer cancel()
	next, err := freezeBeside(ctx, p.c)
	ok(err, "freeze")
	steps()

	end := p.rnd.IntN(8)
	if end == 0 { // the second is given up while it waits
		cancel()
		if _, err := next.wait(); !errors.Is(err, context.Canceled) {
			p.t.Fatalf("%s: a freeze whose context ended: %v", what, err)
		}
		steps()
	}
	aborted := false
	for turn := 0; turn < 2 && s != nil; turn++ {
		abort := p.rnd.IntN(4) == 0
		if abort {
			aborted = true
			for _, f := range s.Files() { // as far as chunking all, and the branch does not move
				if p.rnd.IntN(3) == 0 {
					break
				}
				steps()
				content, err := chunkAll(p.ctx, b.store, f)
				ok(err, "chunk")
				f.SetContent(content)
			}
			steps()
			s.Abort()
		} else {
			ok(b.prepare(p.ctx, s, steps), "make a commit")
			got, err := committed(p.ctx, b.store, b.id)
			ok(err, "read the commit")
			same(want[turn], got, fmt.Sprintf("commit %d (the first given up: %v)", turn, aborted))
			if end == 1+turn && turn == 1 { // with the first still open the second waits for it in this process
				restart()
				return
			}
			ok(s.Done(p.ctx), "end a commit")
		}
		steps()
		ok(p.c.broken(), "look inside")
		s = nil
		if turn == 0 && end != 0 {
			s, err = next.wait()
			ok(err, "the second freeze")
			steps()
			if end == 3 {
				restart() // in the middle of the second
				return
			}
		}
	}
	if end >= 4 && end < 6 {
		restart()
	}
}

// TestOverlappingCommits plays histories in which most commits overlap.
func TestOverlappingCommits(t *testing.T) {
	for seed := range uint64(rounds(t, 16)) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			dir, store := fastDir(t), newMemory()
			cfg := Config{Source: store, tick: 2 * time.Millisecond}
			c, err := Create(ctx, dir, cfg, object.ID{}, nil)
			if err != nil {
				t.Fatal(err)
			}
			b := &branch{store: store}
			p := &player{t: t, rnd: rand.New(rand.NewPCG(seed, 11)), ctx: ctx, c: c, dirs: []string{"."}}
			defer func() {
				if t.Failed() { // a commit may be open
					kill(p.c)
					return
				}
				p.c.Close(ctx)
			}()
			for i := range 60 {
				for range p.rnd.IntN(8) {
					if err := p.step(); err != nil {
						t.Fatal(err)
					}
				}
				p.overlap(b, dir, cfg, fmt.Sprintf("round %d", i))
				if i%10 == 0 {
					checkTotals(t, p.c)
				}
			}
		})
	}
}

// TestKilledWithTwoCuts: the server ends with two cuts open, the branch at its old commit or at the first of them.
func TestKilledWithTwoCuts(t *testing.T) {
	for _, first := range []bool{false, true} {
		r := newRig(t)
		id := r.file("f")
		r.write(id, 0, "one")
		s := r.prepared()
		was := r.b.id
		if !first {
			r.b.id = object.ID{}
		}
		r.write(id, 0, "two")
		next, err := freezeBeside(r.ctx, r.c)
		r.ok(err)
		r.write(id, 3, " and three")
		live, err := read(r.ctx, r.c)
		r.ok(err)

		// Ended as by a kill: what the two do from here on goes nowhere.
		old := r.c
		old.mu.Lock()
		old.closed = true
		old.mu.Unlock()
		old.stop()
		old.tasks.Wait()
		old.journal.f.Sync()
		r.open()
		after, err := read(r.ctx, r.c)
		r.ok(err)
		if d := live.diff(after); d != "" {
			t.Errorf("before, after\n%s", d)
		}
		if head := r.c.Head(); head != r.b.id {
			t.Errorf("based on %s, the branch is at %s (of the first cut: %s)", head.Short(), r.b.id.Short(), was.Short())
		}
		r.committedAsLive()
		s.Abort()
		if s, err := next.wait(); err == nil {
			s.Abort()
		}
		old.closeFiles()
		old.journal.f.Close()
	}
}

// TestSecondCutHoldsItsInstant: a commit whose cut is made while another is being chunked has what was there then, whatever
// becomes of the first.
func TestSecondCutHoldsItsInstant(t *testing.T) {
	for _, abort := range []bool{false, true} {
		for name, deed := range behindDeeds {
			t.Run(fmt.Sprintf("%s/abort=%v", name, abort), func(t *testing.T) {
				b := &behind{newRig(t), 0, false}
				b.id = b.file("f")
				b.put(0, strings.Repeat("0123456789abcdef", behindSize/16+1))
				b.truncate(b.id, behindSize)
				b.commit()
				b.put(BlockSize, strings.Repeat("first", 3000))
				b.put(12*BlockSize, strings.Repeat("first", 1000))
				s, err := b.c.Freeze(b.ctx)
				b.ok(err)
				first, err := read(b.ctx, b.c)
				b.ok(err)
				b.put(2*BlockSize+5, strings.Repeat("second", 1000))
				second, err := read(b.ctx, b.c)
				b.ok(err)
				next, err := freezeBeside(b.ctx, b.c)
				b.ok(err)
				deed(b)
				compare := func(want state) {
					t.Helper()
					got, err := committed(b.ctx, b.b.store, b.b.id)
					b.ok(err)
					if d := want.diff(got); d != "" {
						t.Errorf("at the cut, in the commit\n%s", d)
					}
				}
				if abort {
					s.Abort()
				} else {
					b.ok(b.b.prepare(b.ctx, s, nil))
					compare(first)
					b.ok(s.Done(b.ctx))
				}
				s, err = next.wait()
				b.ok(err)
				b.ok(b.b.prepare(b.ctx, s, nil))
				compare(second)
				b.ok(s.Done(b.ctx))
				b.kill()
				b.committedAsLive()
			})
		}
	}
}

// A commit that is given up while the next lists what changed leaves all of it to that one.
func TestGivenUpWhileTheNextLists(t *testing.T) {
	const files = 2 * slice
	r := newRig(t)
	for i := range files {
		r.write(r.file(fmt.Sprintf("first%d", i)), 0, "1")
	}
	s, err := r.c.Freeze(r.ctx)
	r.ok(err)
	for i := range files {
		r.write(r.file(fmt.Sprintf("second%d", i)), 0, "2")
	}
	given := false
	r.c.cfg.pause = func() {
		r.c.mu.RLock()
		listing := len(r.c.snaps) == 2 && !r.c.snaps[1].listed && len(r.c.snaps[1].nodes) > 0
		r.c.mu.RUnlock()
		if listing && !given {
			given = true
			s.Abort()
		}
	}
	next, err := r.c.Freeze(r.ctx)
	r.ok(err)
	r.c.cfg.pause = nil
	defer next.Abort()
	if !given {
		t.Fatal("the second commit was not seen to list")
	}
	seen := map[string]int{}
	for _, f := range next.Files() {
		seen[f.Path()]++
	}
	if len(seen) != 2*files || len(next.Files()) != 2*files {
		t.Errorf("the second commit has %d files, %d different ones, want %d", len(next.Files()), len(seen), 2*files)
	}
}
