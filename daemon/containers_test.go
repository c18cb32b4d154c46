package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"dm/api"
	"dm/dot"
	"dm/internal/errs"
)

// fakeEngine is containers in memory. What it does is noted in order.
type fakeEngine struct {
	s *server

	mu      sync.Mutex
	up      map[string]bool // by id
	all     []container
	details map[string]details
	log     []string

	listErr  error
	stopErr  map[string]error
	startErr map[string]func() error
	onStop   func(id string) // called with mu not held
	onList   func()          // likewise
	hangs    map[string]bool // does not stop
}

func (e *fakeEngine) note(format string, args ...any) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.log = append(e.log, fmt.Sprintf(format, args...))
}

func (e *fakeEngine) list(context.Context) ([]container, error) {
	if e.onList != nil {
		e.onList()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	var list []container
	for _, c := range e.all {
		if e.up[c.ID] {
			list = append(list, c)
		}
	}
	return list, e.listErr
}

func (e *fakeEngine) inspect(_ context.Context, id string) (details, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.details[id], nil
}

func (e *fakeEngine) set(id string, up bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.up[id] = up
}

func (e *fakeEngine) stop(ctx context.Context, id string) error {
	if e.onStop != nil {
		e.onStop(id)
	}
	if e.hangs[id] {
		<-ctx.Done()
		return ctx.Err()
	}
	if err := e.stopErr[id]; err != nil {
		return err
	}
	e.note("stop %s", id)
	e.set(id, false)
	return nil
}

// start asks where the volume is, as Docker does, which waits while the dot's name is held.
func (e *fakeEngine) start(ctx context.Context, id string) error {
	unlock, err := e.s.names.share(ctx, "admin/app")
	if err != nil {
		return err
	}
	unlock()
	if fail := e.startErr[id]; fail != nil {
		if err := fail(); err != nil {
			return err
		}
	}
	e.note("start %s", id)
	e.set(id, true)
	return nil
}

func (e *fakeEngine) pause(_ context.Context, id string, on bool) error {
	e.note("pause %s %v", id, on)
	return nil
}

func (e *fakeEngine) exec(context.Context, string, []string, []string) (execResult, error) {
	return execResult{}, errors.New("not here")
}

func (e *fakeEngine) digest(_ context.Context, image string) (string, error) {
	return "sha:" + image, nil
}

func (e *fakeEngine) volumeDir(context.Context, string) (string, error) {
	return "", errs.New(errs.NotFound, "no volume")
}

// logged returns what was done, in the order of names where it was done at the same time.
func (e *fakeEngine) logged() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return strings.Join(e.log, ", ")
}

// newFake returns a server with containers that each use the volume app.ID, and are running.
func newFake(t *testing.T, ids ...string) (*server, *fakeEngine) {
	dir := t.TempDir()
	log := slog.New(slog.DiscardHandler)
	s := &server{
		log: log, home: &home{dir: dir}, cfg: Config{Home: dir}, binds: &binds{}, links: links{filepath.Join(dir, mountDir)},
		volumes: &volumeList{file: filepath.Join(dir, volumesFile), all: map[string]volumeRecord{}},
		stopped: &stoppedList{file: filepath.Join(dir, stoppedFile), all: map[string]stoppedRecord{}},
		plugin:  plugin{called: "dm", log: log},
	}
	e := &fakeEngine{s: s, up: map[string]bool{}, details: map[string]details{}}
	for _, id := range ids {
		e.add(id, true)
	}
	s.engine = e
	return s, e
}

func (e *fakeEngine) add(id string, up bool) {
	volume := "app." + id
	e.s.volumes.all[volume] = volumeRecord{Volume: volume, Dot: "admin/app", Subdot: id}
	e.all = append(e.all, container{ID: id, Name: "/" + id, Mounts: []containerMount{{Driver: "dm", Volume: volume}}})
	e.up[id] = up
}

// swapOf returns a swap of the dot app whose change is noted.
func swapOf(e *fakeEngine, change error) swap {
	n := dot.Name{Namespace: "admin", Dot: "app"}
	return swap{
		dot: n, what: "checkout",
		affects: func(context.Context) (func(containerUse) bool, error) { return ofDot(n), nil },
		change: func(context.Context, bool) error {
			e.note("change")
			return change
		},
	}
}

func TestSwapStopsChangesAndStarts(t *testing.T) {
	s, e := newFake(t, "a")
	e.add("other", true)
	e.s.volumes.all["app.other"] = volumeRecord{Volume: "app.other", Dot: "admin/elsewhere"}
	e.add("down", false)
	restarted, err := s.swapped(t.Context(), swapOf(e, nil))
	if err != nil || !slices.Equal(restarted, []string{"/a"}) || e.logged() != "stop a, change, start a" {
		t.Errorf("%v, %v, %s", restarted, err, e.logged())
	}
	if _, err := os.Stat(s.stopped.file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the list of stopped containers is left: %v", err)
	}
}

func TestSwapBringsContainersBack(t *testing.T) {
	boom := errs.New(errs.Damaged, "boom")
	for name, c := range map[string]struct {
		prepare func(*server, *fakeEngine)
		change  error
		kind    errs.Kind
		text    string
		log     string
	}{
		"the change fails": {change: boom, kind: errs.Damaged, text: "boom", log: "stop a, change, start a"},
		"a stop fails": {
			prepare: func(_ *server, e *fakeEngine) { e.stopErr = map[string]error{"a": boom} },
			kind:    errs.Damaged, text: "container /a: boom", log: "start a",
		},
		"it is gone when stopped": {
			prepare: func(_ *server, e *fakeEngine) { e.details["a"] = details{AutoRemove: true} },
			kind:    errs.Conflict, text: "--rm",
		},
		"Docker does not tell": {
			prepare: func(_ *server, e *fakeEngine) { e.listErr = boom },
			kind:    errs.Damaged, text: "boom",
		},
		"the list cannot be written": {
			prepare: func(s *server, _ *fakeEngine) { s.stopped.file = "/proc/nowhere" },
			kind:    errs.NotFound, text: "list of stopped containers", log: "start a",
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, e := newFake(t, "a")
			if c.prepare != nil {
				c.prepare(s, e)
			}
			_, err := s.swapped(t.Context(), swapOf(e, c.change))
			if errs.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.text) || e.logged() != c.log {
				t.Errorf("%v (%v), %s", err, errs.KindOf(err), e.logged())
			}
			if !e.up["a"] {
				t.Error("the container does not run")
			}
		})
	}
}

func TestSwapRefusesToRestart(t *testing.T) {
	s, e := newFake(t, "a", "b")
	w := swapOf(e, nil)
	w.noRestart = true
	_, err := s.swapped(t.Context(), w)
	if errs.KindOf(err) != errs.Conflict || !strings.Contains(err.Error(), "containers /a, /b") || e.logged() != "" {
		t.Errorf("%v, %s", err, e.logged())
	}
	e.up = map[string]bool{}
	if _, err := s.swapped(t.Context(), w); err != nil || e.logged() != "change" {
		t.Errorf("with nobody running: %v, %s", err, e.logged())
	}
}

// A container that was started between the stop and the change is stopped as well.
func TestSwapStopsWhatWasStartedMeanwhile(t *testing.T) {
	s, e := newFake(t, "a")
	e.add("b", false)
	e.onStop = func(id string) {
		if id == "a" {
			e.set("b", true)
		}
	}
	restarted, err := s.swapped(t.Context(), swapOf(e, nil))
	if err != nil || len(restarted) != 2 || !strings.HasPrefix(e.logged(), "stop a, stop b, change, start ") {
		t.Errorf("%v, %v, %s", restarted, err, e.logged())
	}
	// One that comes back each time.
	s, e = newFake(t, "a")
	e.onList = func() { e.set("a", true) }
	if _, err := s.swapped(t.Context(), swapOf(e, nil)); errs.KindOf(err) != errs.Conflict || strings.Contains(e.logged(), "change") {
		t.Errorf("%v, %s", err, e.logged())
	}
}

// A container that does not stop is waited for for its own grace and a margin, and no longer.
func TestSwapWaitsForAStopInBounds(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s, e := newFake(t, "a", "b")
		s.stopped.file = filepath.Join(dir, "stopped")
		e.hangs = map[string]bool{"a": true}
		e.details["a"] = details{Grace: time.Minute}
		begin := time.Now()
		_, err := s.swapped(t.Context(), swapOf(e, nil))
		if errs.KindOf(err) != errs.Conflict || !strings.Contains(err.Error(), "container /a does not stop within 1m20s") {
			t.Error(err)
		}
		if took := time.Since(begin); took != time.Minute+stopMargin {
			t.Errorf("it took %v", took)
		}
		if !e.up["b"] || strings.Contains(e.logged(), "change") {
			t.Errorf("b runs: %v; %s", e.up["b"], e.logged())
		}
	})
}

// A client that goes away does not leave containers stopped.
func TestSwapSurvivesItsClient(t *testing.T) {
	s, e := newFake(t, "a")
	ctx, cancel := context.WithCancel(t.Context())
	e.onStop = func(string) { cancel() }
	_, err := s.swapped(ctx, swapOf(e, nil))
	if errs.KindOf(err) != errs.Interrupted || e.logged() != "stop a, start a" {
		t.Errorf("%v, %s", err, e.logged())
	}
}

// One that needs another is started after it; one that does not start is named, and the others run.
func TestStartsInRounds(t *testing.T) {
	s, e := newFake(t, "a", "b", "c")
	needs := func(id string) func() error {
		return func() error {
			e.mu.Lock()
			defer e.mu.Unlock()
			if !e.up[id] {
				return errs.New(errs.Internal, "cannot join network of a non running container")
			}
			return nil
		}
	}
	e.startErr = map[string]func() error{"a": needs("b"), "b": needs("c")}
	if _, err := s.swapped(t.Context(), swapOf(e, nil)); err != nil || !e.up["a"] || !e.up["b"] || !e.up["c"] {
		t.Errorf("%v, %v", err, e.up)
	}
	e.startErr = map[string]func() error{"b": func() error { return errs.New(errs.Internal, "broken") }}
	_, err := s.swapped(t.Context(), swapOf(e, nil))
	if err == nil || !strings.Contains(err.Error(), "the checkout is done") || !strings.Contains(err.Error(), "container /b: broken") {
		t.Error(err)
	}
	if !e.up["a"] || e.up["b"] || !e.up["c"] {
		t.Errorf("running: %v", e.up)
	}
	// The next server tries again, and what it stops itself meanwhile makes it forget nothing.
	next := func() []container {
		t.Helper()
		s.stopped = &stoppedList{file: s.stopped.file, all: map[string]stoppedRecord{}}
		if err := s.stopped.load(); err != nil {
			t.Fatal(err)
		}
		return s.stopped.containers()
	}
	left := next()
	if err := s.startLeftovers(t.Context(), left); err == nil || len(left) != 1 || left[0].Name != "/b" {
		t.Errorf("%v, %v", left, err)
	}
	if _, err := s.swapped(t.Context(), swapOf(e, nil)); err != nil {
		t.Error(err)
	}
	e.startErr = nil
	if err := s.startLeftovers(t.Context(), next()); err != nil || !e.up["b"] {
		t.Errorf("%v, %v", err, e.up)
	}
	if left := next(); len(left) != 0 {
		t.Errorf("still to be started: %v", left)
	}
}

func TestPausedContainers(t *testing.T) {
	s, e := newFake(t, "a")
	e.all[0].Paused = true
	if _, err := s.swapped(t.Context(), swapOf(e, nil)); err != nil || e.logged() != "pause a false, stop a, change, start a, pause a true" {
		t.Errorf("%v, %s", err, e.logged())
	}
}

// Which directories of the host are what of which dot.
func TestBindUse(t *testing.T) {
	s, _ := newFake(t)
	s.binds.all = []*bound{
		{bindRecord: bindRecord{Dir: "/srv/db", Name: "admin/app", Subdot: "db"}},
		{bindRecord: bindRecord{Dir: "/srv/all", Name: "team/app", Branch: "dev"}},
		{bindRecord: bindRecord{Dir: "/srv/all/in", Name: "admin/other", Subdot: "x"}},
		{bindRecord: bindRecord{Dir: "/srv/old", Name: "admin/app", Revision: "1234"}},
		{bindRecord: bindRecord{Dir: "/srv/all/old", Name: "admin/app", Revision: "1234"}},
	}
	mnt := s.links.dir
	for source, want := range map[string]string{
		"/srv/db": "app.db", "/srv/db/deep": "app.db", "/srv/all": "team/app@dev.__root__", "/srv/all/www/x": "team/app@dev.www",
		"/srv/all/in/y": "other.x", "/srv/all/old/db": "",
		"/srv/old": "", "/srv": "", "/srv/dbs": "", "/": "",
		mnt: "", mnt + "/admin": "", mnt + "/admin/app": "app.__root__", mnt + "/admin/app/db": "app.db", mnt + "/admin/app/db/deep/er": "app.db",
		mnt + "/admin/app@dev/db": "app@dev.db", mnt + "/team/x": "team/x.__root__", mnt + "/admin/a.b": "", mnt + "/admin/.app.new": "",
	} {
		got := ""
		u, ok, err := s.bindUse(t.Context(), container{}, source)
		if err != nil {
			t.Errorf("%s: %v", source, err)
		}
		if ok {
			got = dot.Name{Namespace: u.dot.Namespace, Dot: u.dot.Dot, Branch: u.branch, Subdot: u.subdot}.String()
		}
		if got != want {
			t.Errorf("%s is %q, want %q", source, got, want)
		}
	}
}

func TestUsesPaths(t *testing.T) {
	db, all := containerUse{subdot: "db"}, containerUse{subdot: dot.RootSubdot}
	for path, want := range map[api.Path][2]bool{
		"db": {true, true}, "db/x": {true, true}, "/db/": {true, true}, "www": {false, true}, "": {true, true}, "www/../db": {true, true},
	} {
		if got := [2]bool{usesPaths(db, []api.Path{path}), usesPaths(all, []api.Path{path})}; got != want {
			t.Errorf("%q: %v", path, got)
		}
	}
}

func TestHookLabels(t *testing.T) {
	for line, want := range map[string]string{
		"echo a b": "/bin/sh|-c|echo a b", `["a","b c"]`: "a|b c", ` [ "a" ]`: "a", "[": "", "[]": "", "[1]": "",
	} {
		cmd, err := hookCommand(line)
		if got := strings.Join(cmd, "|"); got != want || (want == "") != (errs.KindOf(err) == errs.Usage) {
			t.Errorf("%q: %q, %v", line, got, err)
		}
	}
	for label, want := range map[string]time.Duration{"": hookTimeout, "90s": 90 * time.Second, "0": 0, "-1s": 0, "11m": 0, "soon": 0} {
		d, err := hookLimit(label)
		if d != want || (want == 0) != (errs.KindOf(err) == errs.Usage) {
			t.Errorf("%q: %v, %v", label, d, err)
		}
	}
}

func TestVolumeOptions(t *testing.T) {
	o, err := parseVolumeOptions(map[string]string{"from": "hub/me/app@dev", "branch": "b", "cache": "through", "readonly": "true"})
	if err != nil || *o.from != (cloneSource{Remote: "hub", Name: "me/app", Branch: "dev"}) || o.branch != "b" || o.cache != dot.CacheThrough || !o.readOnly {
		t.Errorf("%+v, %v", o, err)
	}
	for _, bad := range []map[string]string{
		{"from": ""},
		{"from": "hub"},
		{"from": "hub/app"},
		{"from": "hub/me/app@"},
		{"from": "hub/me/../x"},
		{"from": "h b/me/app"},
		{"branch": ""},
		{"branch": "a b"},
		{"cache": ""},
		{"cache": "auto"},
		{"readonly": "perhaps"},
		{"size": "10G"},
	} {
		if _, err := parseVolumeOptions(bad); errs.KindOf(err) != errs.Usage {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

func TestVolumeList(t *testing.T) {
	l := &volumeList{file: filepath.Join(t.TempDir(), "volumes.json")}
	if err := l.load(); err != nil {
		t.Fatal(err)
	}
	for _, r := range []volumeRecord{
		{Volume: "b", Dot: "admin/b", Subdot: "x"}, {Volume: "a", Dot: "admin/a", Branch: "dev", ReadOnly: true}, {Volume: "c", Dot: "admin/b"},
	} {
		if err := errors.Join(l.add(r), l.add(r)); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.add(volumeRecord{Volume: "a", Dot: "admin/a"}); errs.KindOf(err) != errs.Conflict {
		t.Errorf("the same name for something else: %v", err)
	}
	if err := errors.Join(l.renameDot("admin/b", "team/z"), l.removeDot("admin/a")); err != nil {
		t.Fatal(err)
	}
	again := &volumeList{file: l.file}
	if err := again.load(); err != nil {
		t.Fatal(err)
	}
	n, err := again.meaning("b")
	if err != nil || n.String() != "team/z.x" || len(again.records()) != 2 || again.records()[1].Volume != "c" {
		t.Errorf("%v, %v, %+v", n, err, again.records())
	}
	if _, err := again.meaning("a"); errs.KindOf(err) != errs.NotFound {
		t.Errorf("a removed volume: %v", err)
	}
	for _, damaged := range []string{"{", `[{"volume":"x","dot":"a b"}]`} {
		if err := os.WriteFile(l.file, []byte(damaged), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := again.load(); errs.KindOf(err) != errs.Damaged {
			t.Errorf("%s: %v", damaged, err)
		}
	}
}
