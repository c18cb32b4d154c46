package e2e

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dm/internal/e2e/causal"
)

// Every commit made while processes go round all subdots shows one instant: no step without the steps before it, none
// missing that had returned before the commit began, and none that began after it was done.
func TestOneInstant(t *testing.T) {
	for cache, commits := range map[string]int{writeback: 500, through: 100} {
		t.Run(cache, func(t *testing.T) { oneInstant(t, cache, number(t, "DM_COMMITS", commits)) })
	}
}

// cut is a commit and what the rings' own notes say it may hold.
type cut struct {
	rev          string
	first, limit []int64 // by ring: the step done before, the step begun after
}

func oneInstant(t *testing.T, cache string, commits int) {
	subdots := []string{"a", "b", "c", "d", "e"}
	s := newServer(t, cache)
	v := newVolume(s, "ring", subdots...)
	// The first ring does everything, in turns of three processes. The others do nothing that waits for a disk, so that
	// they take as many steps in a moment as the filesystem allows; the last only fills the page cache.
	rings := []*causal.Ring{
		{Name: "all", Subdots: subdots, Kinds: causal.AllKinds()},
		{Name: "names", Subdots: subdots, Kinds: []causal.Kind{causal.Write, causal.Append, causal.Grow, causal.Replace}},
		{Name: "cache", Subdots: subdots, Kinds: []causal.Kind{causal.Write}},
	}
	root := v.path()
	var loads []*causal.Load
	for i, r := range rings {
		first, err := causal.Prepare(r, root)
		if err != nil {
			t.Fatal(err)
		}
		l, err := causal.Start(r, root, first, []int{3, 1, 1}[i], t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := l.Stop(); err != nil {
				t.Error(err)
			}
		})
		loads = append(loads, l)
	}
	stopNoise := noise(t, filepath.Join(root, "e", "noise"))
	began := time.Now()
	cuts := make([]cut, commits)
	for i := range cuts {
		for _, l := range loads {
			cuts[i].first = append(cuts[i].first, l.Done())
		}
		cuts[i].rev = v.commit(fmt.Sprint(i))
		for _, l := range loads {
			cuts[i].limit = append(cuts[i].limit, l.Begun())
		}
		time.Sleep(time.Duration(i%7) * 5 * time.Millisecond)
	}
	took := time.Since(began)
	stopNoise()
	for _, l := range loads {
		if err := l.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	wrong := 0
	for i, c := range cuts {
		state := loadCut(t, v, c.rev, i%10 == 0)
		for j, r := range rings {
			m, err := causal.Check(r, state)
			if err == nil && (m < c.first[j] || m > c.limit[j]) {
				err = fmt.Errorf("it shows step %d; %d was done before, %d begun after", m, c.first[j], c.limit[j])
			}
			if err != nil {
				wrong++
				if wrong <= 10 {
					t.Errorf("commit %d, ring %s: %v", i, r.Name, err)
				}
			}
		}
	}
	last := cuts[len(cuts)-1]
	t.Logf("%d violations in %d commits, made in %v; %v steps; read in %v", wrong, commits, took, last.limit, time.Since(began)-took)
	if last.limit[0] < 5*65 || last.limit[1] < 1000 || last.limit[2] < 1000 {
		t.Errorf("the rings took only %v steps", last.limit)
	}
}

// loadCut reads a commit's state, through a mount or out of an archive.
func loadCut(t *testing.T, v *dmVolume, rev string, mount bool) causal.State {
	t.Helper()
	if mount {
		dir, done := v.show(rev)
		defer done()
		state, err := causal.LoadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		return state
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	export := v.command(ctx, "export", rev)
	export.Stderr = os.Stderr
	pipe, err := export.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := export.Start(); err != nil {
		t.Fatal(err)
	}
	state, err := causal.LoadTar(pipe)
	if exit := export.Wait(); err != nil || exit != nil {
		t.Fatalf("export %s: %v, read it: %v", rev, exit, err)
	}
	return state
}

// noise keeps the kernel's own write-back busy: it rewrites a file of 8 MiB without ever syncing it.
func noise(t *testing.T, path string) (stop func()) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	var ended atomic.Bool
	var wait sync.WaitGroup
	wait.Go(func() {
		defer f.Close()
		buf := make([]byte, 64<<10)
		rand.Read(buf)
		for i := int64(0); !ended.Load(); i++ {
			if _, err := f.WriteAt(buf, i%128*int64(len(buf))); err != nil {
				t.Errorf("write noise: %v", err)
				return
			}
			time.Sleep(500 * time.Microsecond)
		}
	})
	stop = sync.OnceFunc(func() {
		ended.Store(true)
		wait.Wait()
	})
	t.Cleanup(stop)
	return stop
}
