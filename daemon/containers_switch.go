package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"dm/dot"
	"dm/internal/durable"
	"dm/internal/errs"
)

// swap is a change of what a dot shows, below containers that use it.
type swap struct {
	dot       dot.Name
	what      string // for users: "checkout", "reset"
	noRestart bool   // refuse while containers run that are affected
	// affects says of which uses the content changes. It is asked anew after every wait.
	affects func(context.Context) (func(containerUse) bool, error)
	// change does it, with the dot's name held alone and no affected container running. stopped says that there were some,
	// whose last words as they were stopped are in the working copy. When it fails everything is as it was.
	change func(ctx context.Context, stopped bool) error
}

// stopMargin is how much longer than a container's own grace its stop may take: Docker kills it at the end of the grace.
const stopMargin = 20 * time.Second

// startWaitEach bounds how long Docker may take to start a container.
const startWaitEach = 2 * time.Minute

// swapRounds is how often containers that somebody started meanwhile are stopped again before a swap gives up.
const swapRounds = 5

// swapped stops the running containers that are affected, does the change and starts exactly those again; it returns
// their names. If one will not stop, or the change fails, they come back on the old state.
//
// The containers are started when the dot's name is free again: Docker asks our volume plugin where their volumes are, and
// the plugin waits for that name. For the same reason nothing but a list is asked of Docker while it is held.
func (s *server) swapped(ctx context.Context, w swap) (restarted []string, err error) {
	unlock, err := s.swaps.alone(ctx, key(w.dot))
	if err != nil {
		return nil, err
	}
	defer unlock()
	var down []container
	for range swapRounds {
		uses, err := s.affected(ctx, w)
		if err != nil {
			return nil, s.bringBack(ctx, down, err)
		}
		running := containersOf(uses)
		if err := s.mayStop(ctx, w, running); err != nil {
			return nil, s.bringBack(ctx, down, err)
		}
		for _, c := range running { // one that came back meanwhile is in the list already, as it was at first
			if !slices.ContainsFunc(down, func(d container) bool { return d.ID == c.ID }) {
				down = append(down, c)
			}
		}
		err = s.stopAll(ctx, w, running)
		if err = errors.Join(err, ctx.Err()); err != nil {
			return nil, s.bringBack(ctx, down, err)
		}
		done := false
		err = s.withDotAlone(ctx, w.dot, func() error {
			// Nobody can start with the dot now; but somebody may have, before.
			uses, err := s.affected(ctx, w)
			if err != nil || len(uses) > 0 {
				return err
			}
			done = true
			return w.change(ctx, len(down) > 0)
		})
		if err != nil {
			return nil, s.bringBack(ctx, down, err)
		}
		if done {
			return s.startedAgain(ctx, w, down)
		}
	}
	return nil, s.bringBack(ctx, down, errs.WithHint(
		errs.New(errs.Conflict, "%s of dot %s: containers that use it are started again and again", w.what, w.dot.DotName()),
		"stop what starts them and try again"))
}

// startedAgain starts the containers that were stopped, after the change.
func (s *server) startedAgain(ctx context.Context, w swap, down []container) ([]string, error) {
	if err := s.startAll(context.WithoutCancel(ctx), down); err != nil {
		return nil, errs.WithHint(fmt.Errorf("the %s is done, but not all containers came back: %w", w.what, err),
			"see 'docker logs', and start them with 'docker start'")
	}
	names := make([]string, len(down))
	for i, c := range down {
		names[i] = c.Name
	}
	return names, nil
}

// affected returns the uses by running containers that a swap would change.
func (s *server) affected(ctx context.Context, w swap) ([]containerUse, error) {
	all, err := s.running(ctx)
	if err != nil || len(all) == 0 {
		return nil, err
	}
	affects, err := w.affects(ctx)
	if err != nil {
		return nil, err
	}
	return filterUses(all, affects), nil
}

// mayStop refuses what must not be stopped, before anything is.
func (s *server) mayStop(ctx context.Context, w swap, running []container) error {
	if len(running) == 0 {
		return nil
	}
	if w.noRestart {
		return errs.WithHint(errs.New(errs.Conflict, "%s of dot %s: %s would have to be restarted", w.what, w.dot.DotName(), describe(running)),
			"leave out --no-restart, or stop them yourself: docker stop %s", strings.Join(bareNames(running), " "))
	}
	for _, c := range running {
		d, err := s.engine.inspect(ctx, c.ID)
		if err != nil && errs.KindOf(err) != errs.NotFound {
			return err
		}
		if d.AutoRemove {
			return errs.WithHint(errs.New(errs.Conflict, "%s of dot %s: container %s was started with --rm and would be gone once it is stopped",
				w.what, w.dot.DotName(), c.Name), "stop it yourself: docker stop %s", strings.TrimPrefix(c.Name, "/"))
		}
	}
	return nil
}

// stopAll stops containers in parallel. A stop that has begun is waited for, whether or not the client waits: a container
// cannot be started again while it is ending.
func (s *server) stopAll(ctx context.Context, w swap, running []container) error {
	if len(running) == 0 {
		return nil
	}
	if err := s.noteStopped(running); err != nil {
		return err
	}
	s.log.Info("containers are stopped", "for", w.what, "dot", w.dot, "containers", describe(running))
	return inParallel(running, func(c container) error {
		grace := engineGrace
		if d, err := s.engine.inspect(ctx, c.ID); err == nil {
			grace = d.Grace
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace+stopMargin)
		defer cancel()
		if c.Paused {
			if err := s.engine.pause(ctx, c.ID, false); err != nil {
				return fmt.Errorf("container %s: %w", c.Name, err)
			}
		}
		err := s.engine.stop(ctx, c.ID)
		switch {
		case errs.KindOf(err) == errs.NotFound:
			return nil
		case err != nil && ctx.Err() == context.DeadlineExceeded:
			return errs.WithHint(errs.New(errs.Conflict, "container %s does not stop within %v", c.Name, grace+stopMargin),
				"see 'docker ps' and 'docker logs %s'; nothing of the dot was changed", strings.TrimPrefix(c.Name, "/"))
		case err != nil:
			return fmt.Errorf("container %s: %w", c.Name, err)
		}
		return nil
	})
}

// bringBack starts again what was stopped for a swap that did not take place because of cause.
func (s *server) bringBack(ctx context.Context, down []container, cause error) error {
	if len(down) == 0 {
		return cause
	}
	if err := s.startAll(context.WithoutCancel(ctx), down); err != nil {
		s.log.Error("containers do not come back", "err", err)
		return errs.WithHint(fmt.Errorf("%w (and then: %w)", cause, err), "start them with 'docker start'")
	}
	return cause
}

// startAll starts containers in parallel, and forgets that those were stopped which came up. One that needs another that is not
// up yet fails at first, as one that shares the other's network: what failed is tried again as long as others came up.
func (s *server) startAll(ctx context.Context, list []container) error {
	for {
		var mu sync.Mutex
		var up, failed []container
		err := inParallel(list, func(c container) error {
			err := s.startOne(ctx, c)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = append(failed, c)
			} else {
				up = append(up, c)
			}
			return err
		})
		s.forgetStopped(up)
		if err == nil || len(failed) == len(list) {
			return err
		}
		list = failed
	}
}

func (s *server) startOne(ctx context.Context, c container) error {
	ctx, cancel := context.WithTimeout(ctx, startWaitEach)
	defer cancel()
	err := s.engine.start(ctx, c.ID)
	switch {
	case errs.KindOf(err) == errs.NotFound:
		return nil // somebody removed it meanwhile
	case err == nil && c.Paused:
		err = s.engine.pause(ctx, c.ID, true)
	}
	if err != nil {
		return fmt.Errorf("container %s: %w", c.Name, err)
	}
	return nil
}

// inParallel does the same with all containers at once, and returns all errors. They are as many as one dot has.
func inParallel(list []container, do func(container) error) error {
	all := make([]error, len(list))
	var wg sync.WaitGroup
	for i, c := range list {
		wg.Go(func() { all[i] = do(c) })
	}
	wg.Wait()
	return errors.Join(all...)
}

// stoppedRecord is a container that a swap has stopped, as stopped.json keeps it.
type stoppedRecord struct {
	ID     string `json:"id"`
	Name   string `json:"name"`
	Paused bool   `json:"paused,omitempty"`
}

// noteStopped writes down what is about to be stopped: a server that is killed before it could start them again leaves them
// to its successor.
func (s *server) noteStopped(list []container) error {
	s.stopped.mu.Lock()
	defer s.stopped.mu.Unlock()
	for _, c := range list {
		s.stopped.all[c.ID] = stoppedRecord{ID: c.ID, Name: c.Name, Paused: c.Paused}
	}
	return s.stopped.save()
}

// forgetStopped forgets containers that have been started again.
func (s *server) forgetStopped(list []container) {
	if len(list) == 0 {
		return
	}
	s.stopped.mu.Lock()
	defer s.stopped.mu.Unlock()
	for _, c := range list {
		delete(s.stopped.all, c.ID)
	}
	if err := s.stopped.save(); err != nil {
		s.log.Warn("forget which containers were stopped", "err", err)
	}
}

// stoppedList is the containers that are stopped at the moment, to be started again.
type stoppedList struct {
	file string

	mu  sync.Mutex
	all map[string]stoppedRecord // by id
}

// save writes the file, or removes it where there is nothing to remember. The caller holds mu.
func (l *stoppedList) save() error {
	if len(l.all) == 0 {
		if err := os.Remove(l.file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return errs.New(errs.KindOf(err), "remove the list of stopped containers: %w", err)
		}
		return nil
	}
	text, err := json.Marshal(l.all)
	if err != nil {
		return errs.New(errs.Internal, "encode the list of stopped containers: %w", err)
	}
	if err := durable.WriteFile(l.file, append(text, '\n'), 0o600); err != nil {
		return errs.New(errs.KindOf(err), "write the list of stopped containers: %w", err)
	}
	return nil
}

// load reads what a server has stopped that was killed before it could start it again. It stays in the list until it is
// forgotten, whatever else is stopped meanwhile.
func (l *stoppedList) load() error {
	text, err := os.ReadFile(l.file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var left map[string]stoppedRecord
	if err == nil {
		err = json.Unmarshal(text, &left)
	}
	if err != nil {
		return errs.New(errs.KindOf(err), "read the list of stopped containers: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.Copy(l.all, left)
	return nil
}

// containers returns what is in the list.
func (l *stoppedList) containers() []container {
	l.mu.Lock()
	defer l.mu.Unlock()
	var list []container
	for _, r := range l.all {
		list = append(list, container{ID: r.ID, Name: r.Name, Paused: r.Paused})
	}
	return list
}

// startLeftovers starts the containers that an earlier server has stopped.
func (s *server) startLeftovers(ctx context.Context, list []container) error {
	if len(list) == 0 {
		return nil
	}
	s.log.Info("containers that an earlier server had stopped are started", "containers", describe(list))
	return s.startAll(ctx, list)
}
