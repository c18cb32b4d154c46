package daemon

import (
	"context"
	"sync"
	"time"

	"dm/api"
	"dm/dot"
	"dm/internal/errs"
	"dm/store"
)

// auto makes the automatic commits of all dots while the server runs. One goroutine waits for the next that is due; each runs in
// a goroutine of its own, so that a long one does not hold up the others, and never twice at a time for one dot.
type auto struct {
	s      *server
	wake   chan struct{} // a setting has changed, or a run has ended
	cancel context.CancelFunc
	all    sync.WaitGroup

	mu      sync.Mutex
	running map[string]bool // by the dot's id
	lastGC  time.Time       // when one after a prune ended
	gcTook  time.Duration
}

// startAuto begins; stop ends.
func startAuto(ctx context.Context, s *server) *auto {
	ctx, cancel := context.WithCancel(ctx)
	a := &auto{s: s, wake: make(chan struct{}, 1), cancel: cancel, running: map[string]bool{}}
	a.all.Go(func() { a.run(ctx) })
	return a
}

// stop cancels what runs and waits for it.
func (a *auto) stop() {
	a.cancel()
	a.all.Wait()
}

// changed has the settings looked at again.
func (a *auto) changed() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// autoRetry is how long to wait where the settings could not be read.
const autoRetry = time.Minute

func (a *auto) run(ctx context.Context) {
	for ctx.Err() == nil {
		next := a.start(ctx)
		timer := time.NewTimer(time.Until(next))
		select {
		case <-ctx.Done():
		case <-a.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// start begins what is due and returns when to look again.
func (a *auto) start(ctx context.Context) (next time.Time) {
	now := time.Now()
	next = now.Add(time.Hour)
	due, err := a.s.dots.AutoCommits()
	if err != nil {
		a.s.log.Error("read when dots are committed by themselves", "err", err)
		return now.Add(autoRetry)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for id, at := range due {
		switch {
		case a.running[id]: // its end wakes us
		case at.After(now):
			if at.Before(next) {
				next = at
			}
		default:
			a.running[id] = true
			a.all.Go(func() { a.commit(ctx, id) })
		}
	}
	return next
}

// autoPause is how long a dot is left alone after a run that failed, so that one that cannot even be noted does not begin again
// at once.
const autoPause = 10 * time.Second

// commit makes one automatic commit. A server that stops waits for it as for an operation of a client.
func (a *auto) commit(ctx context.Context, id string) {
	pruned, err := a.commitNow(ctx, id)
	if err != nil {
		select {
		case <-ctx.Done():
		case <-time.After(autoPause):
		}
	}
	a.mu.Lock()
	delete(a.running, id)
	a.mu.Unlock()
	a.changed()
	if pruned > 0 && ctx.Err() == nil {
		a.collect(ctx)
	}
}

func (a *auto) commitNow(ctx context.Context, id string) (pruned int, err error) {
	if err := a.s.ops.enter(); err != nil {
		return 0, err
	}
	defer a.s.ops.leave()
	began := time.Now()
	res, err := a.s.dots.RunAutoCommit(ctx, id, func(ctx context.Context, n dot.Name, req dot.CommitRequest) (*dot.CommitResult, error) {
		return a.s.commitWith(ctx, n, req, false)
	})
	switch {
	case err != nil:
		a.s.log.Error("automatic commit failed", "dot", res.Name, "kind", errs.KindOf(err), "err", err)
	case res.Commit != nil:
		a.s.log.Info("automatic commit", "dot", res.Name, "commit", res.Commit.Commit, "pruned", res.Pruned, "took", time.Since(began))
	}
	return res.Pruned, err
}

// The time between two gcs after automatic prunes: at least an hour, and long enough for them to be a small part of it.
const (
	autoGCEvery = time.Hour
	autoGCShare = 20
)

// collect gives back what automatic prunes have given up.
func (a *auto) collect(ctx context.Context) {
	a.mu.Lock()
	wait := max(autoGCEvery, autoGCShare*a.gcTook)
	if time.Since(a.lastGC) < wait {
		a.mu.Unlock()
		return
	}
	a.lastGC = time.Now() // so that no other begins
	a.mu.Unlock()
	stats, err := a.s.store.GC(ctx, store.GCOptions{})
	if err != nil {
		a.s.log.Error("gc after automatic prunes failed", "err", err)
	} else {
		a.s.log.Info("gc after automatic prunes", "freed", stats.BytesFreed, "took", stats.Duration)
	}
	a.mu.Lock()
	a.lastGC, a.gcTook = time.Now(), stats.Duration
	a.mu.Unlock()
}

func (s *server) autoCommit(ctx context.Context, req api.AutoCommitRequest) (api.Empty, error) {
	n, err := dotName(req.Dot)
	if err != nil {
		return api.Empty{}, err
	}
	var set *dot.AutoCommit
	if !req.Off {
		every, err := time.ParseDuration(req.Every)
		if err != nil {
			return api.Empty{}, errs.WithHint(errs.New(errs.Usage, "%q is no time between commits", req.Every),
				"write it as 90s, 10m or 1h30m")
		}
		set = &dot.AutoCommit{Every: every, IfDirty: req.IfDirty, Keep: keepRule(req.Keep)}
	}
	if err := s.dots.SetAutoCommit(ctx, n, set); err != nil {
		return api.Empty{}, err
	}
	s.auto.changed()
	return api.Empty{}, nil
}

// autoOf returns how a dot is committed by itself, or nil.
func (s *server) autoOf(ctx context.Context, n dot.Name) (*api.AutoCommit, error) {
	a, err := s.dots.AutoCommit(ctx, n)
	if a == nil || err != nil {
		return nil, err
	}
	return &api.AutoCommit{
		Every: a.Every.String(), IfDirty: a.IfDirty, Keep: api.KeepRule(a.Keep), Rule: a.Keep.String(), Next: a.Due(), Last: a.Last,
		Commit: a.Commit, Error: a.Error,
	}, nil
}
