package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"dm/internal/e2e/sockshop"
)

// stack is a compose project on a host.
type stack struct {
	*host
	project  string
	files    []string
	services []sockshop.Service
}

// newStack prepares the project on a host that has its own engine's images.
func newStack(t *testing.T, h *host, project string) *stack {
	t.Helper()
	if err := sockshop.MakeImages(h.engine); err != nil {
		t.Fatal(err)
	}
	shipped, err := filepath.Abs("../../testdata/sockshop/docker-compose.yml")
	if err != nil {
		t.Fatal(err)
	}
	override := filepath.Join(h.base, "override.yml")
	if err := os.WriteFile(override, []byte(sockshop.Override(h.driver)), 0o600); err != nil {
		t.Fatal(err)
	}
	s := &stack{host: h, project: project, files: []string{shipped, override}, services: sockshop.Services()}
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := s.engine.Compose(s.project, s.files, "logs", "--no-color", "--tail", "15")
			t.Logf("the services' logs:\n%s", out)
		}
	})
	return s
}

func (s *stack) dot() string { return s.project + "_sockshop" }

func (s *stack) container(of sockshop.Service) string { return s.project + "_" + of.Name + "_1" }

func (s *stack) compose(args ...string) {
	s.t.Helper()
	if _, err := s.engine.Compose(s.project, s.files, args...); err != nil {
		s.t.Fatal(err)
	}
}

// each does the same with all services at once.
func (s *stack) each(do func(sockshop.Service) error) {
	s.t.Helper()
	errs := make([]error, len(s.services))
	var wg sync.WaitGroup
	for i, svc := range s.services {
		wg.Go(func() { errs[i] = do(svc) })
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			s.t.Fatalf("%s: %v", s.services[i].Name, err)
		}
	}
}

// exec runs a command in a service's container.
func (s *stack) exec(svc sockshop.Service, cmd []string) (string, error) {
	return s.engine.Run(append([]string{"exec", s.container(svc)}, cmd...)...)
}

// readyWait is how long a service may take to come up, on a busy machine.
const readyWait = 2 * time.Minute

// counts waits until all services are ready and returns how many items each has. A container that has ended is a failure at
// once: no service may need a second start.
func (s *stack) counts() map[string]int {
	s.t.Helper()
	var mu sync.Mutex
	all := map[string]int{}
	s.each(func(svc sockshop.Service) error {
		for deadline := time.Now().Add(readyWait); ; time.Sleep(100 * time.Millisecond) {
			out, err := s.exec(svc, svc.Count())
			if err == nil {
				n, err := strconv.Atoi(strings.TrimSpace(out))
				mu.Lock()
				all[svc.Name] = n
				mu.Unlock()
				return err
			}
			state, serr := s.engine.Run("inspect", "-f", "{{.State.Status}} {{.RestartCount}}", s.container(svc))
			if serr != nil || state != "running 0" {
				return fmt.Errorf("its container is %q (%v): %w", state, serr, err)
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("not ready after %v: %w", readyWait, err)
			}
		}
	})
	return all
}

// have fails unless every service has n items.
func (s *stack) have(when string, n int) {
	s.t.Helper()
	for name, got := range s.counts() {
		if got != n {
			s.t.Fatalf("%s, %s has %d items, not %d", when, name, got, n)
		}
	}
}

// write writes items through each service's client.
func (s *stack) write(from, to int) {
	s.t.Helper()
	s.each(func(svc sockshop.Service) error {
		for i := from; i <= to; i++ {
			if _, err := s.exec(svc, svc.Write(i)); err != nil {
				return err
			}
		}
		return nil
	})
	time.Sleep(flushWait)
}

// flushWait is how long RabbitMQ may keep a persistent message in memory that nobody asked it to confirm.
const flushWait = time.Second

// row returns the line of `dm list -H` of the stack's dot: name, branch, server, containers, size, commits, dirty.
func (s *stack) row() []string {
	s.t.Helper()
	for line := range strings.Lines(s.dm("list", "-H")) {
		if f := strings.Split(strings.TrimSpace(line), "\t"); f[0] == s.dot() {
			return f
		}
	}
	s.t.Fatalf("no dot %s", s.dot())
	return nil
}

// README.md shows the compose file that is tested.
func TestReadmeShowsTheStack(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	shipped, err := os.ReadFile("../../testdata/sockshop/docker-compose.yml")
	if err != nil {
		t.Fatal(err)
	}
	_, services, _ := strings.Cut(string(shipped), "services:\n")
	for line := range strings.Lines("services:\n" + services) {
		if strings.TrimSpace(line) != "" && !strings.Contains(string(readme), "\n    "+line) {
			t.Errorf("README.md does not show %q", line)
		}
	}
}

// The product's story: a stack of five databases in one dot, from docker-compose up to a colleague's copy of it, and what it has
// to bear while it is written to.
func TestContainerStack(t *testing.T) {
	s := newStack(t, newHost(t), "subdots")
	begin := time.Now()
	lap := func(what string) {
		t.Logf("%-45s %6.1f s", what, time.Since(begin).Seconds())
		begin = time.Now()
	}
	s.story(lap)
	s.copied(lap)
	for round := range number(t, "DM_STACK_ROUNDS", 2) {
		s.round(round)
		lap(fmt.Sprintf("round %d", round))
	}
	s.compose("down")
	s.fsck()
}

// story: an empty state, some data, an experiment on a branch, and back.
func (s *stack) story(lap func(what string)) {
	s.t.Helper()
	s.compose("up", "-d")
	s.have("at first", 0)
	lap("docker-compose up, five new databases")
	row := s.row()
	s.equal("the containers", row[3], "/subdots_carts-db_1,/subdots_catalogue-db_1,/subdots_orders-db_1,/subdots_shipping_1,/subdots_user-db_1")
	if dirty, err := strconv.Atoi(row[6]); err != nil || dirty == 0 || row[5] != "0" {
		s.t.Fatalf("dm list shows %q", row)
	}
	s.dm("switch", s.dot())
	s.commitClean("empty state")
	lap("commit of the empty state")
	s.write(1, 3)
	if row := s.row(); row[6] == "0" {
		s.t.Errorf("after writes dm list shows %q", row)
	}
	s.commit("some data")
	lap("writes, commit of some data")
	s.dm("checkout", "-b", "experiment")
	s.have("on the new branch", 3)
	lap("checkout -b, all services ready")
	s.each(func(svc sockshop.Service) error {
		_, err := s.exec(svc, svc.Wipe())
		return err
	})
	s.have("after the experiment", 0)
	s.dm("checkout", "master")
	s.have("back on master", 3)
	lap("destruction, checkout master, all services ready")
	s.contains("dm show", s.dm("show", "HEAD"), "/subdots_user-db_1", "postgres:15", "mariadb:10.11", "sha256:")
}

// copied: a colleague gets what was committed, and works on with it.
func (s *stack) copied(lap func(what string)) {
	s.t.Helper()
	hub := newHub(s.t)
	hub.join(s.server, "alice")
	// What the services have written since is not part of it.
	s.dm("push", "hub")
	other := newStack(s.t, newHost(s.t), "copy")
	hub.join(other.server, "bob")
	hub.dm("hub", "share", "alice/"+s.dot(), "bob", "read")
	other.dm("clone", "hub", "alice/"+s.dot(), "--local-name", other.dot())
	lap("push, clone")
	other.compose("up", "-d")
	other.have("in the clone", 3)
	lap("docker-compose up of the clone, all services ready")
	other.write(4, 4)
	other.have("in the clone after more", 4)
	s.have("in the original", 3)
	other.compose("down")
	other.fsck()
}

// commitClean commits, and shows that nothing is dirty then. A database may write by itself just between the commit and the
// look at it; then it is tried again.
func (s *stack) commitClean(message string) {
	s.t.Helper()
	for n := 1; n <= 10; n++ {
		s.commit(message)
		row := s.row()
		s.equal("the number of commits", row[5], strconv.Itoa(n))
		if row[6] == "0" {
			return
		}
	}
	s.t.Fatalf("dirty right after each of ten commits: %q", s.row())
}

// round: a commit, a reset and a checkout of a stack that is being written to. Each start of each database succeeds, and has what
// was acknowledged before the commit and nothing that was begun after it. The next round goes on from the new branch.
func (s *stack) round(round int) {
	s.t.Helper()
	start := s.counts()
	s.each(func(svc sockshop.Service) error {
		if _, err := s.exec(svc, []string{"rm", "-f", "/tmp/acked"}); err != nil {
			return err
		}
		_, err := s.engine.Run(append([]string{"exec", "-d", s.container(svc)}, svc.Load(start[svc.Name]+1)...)...)
		return err
	})
	time.Sleep(500 * time.Millisecond)
	before := s.acked(start)
	time.Sleep(flushWait)
	rev := s.commit(fmt.Sprintf("round %d", round))
	after := s.acked(start)
	time.Sleep(200 * time.Millisecond)
	check := func(when string) {
		s.t.Helper()
		for name, got := range s.counts() {
			if got < before[name] || got > after[name]+1 {
				s.t.Fatalf("round %d, %s: %s has %d items; %d were acknowledged before the commit, %d after it", round, when, name, got, before[name], after[name])
			}
		}
	}
	s.dm("reset", "--hard", rev) // drops what was written since
	check("reset to the commit")
	s.dm("checkout", "-b", fmt.Sprintf("round-%d", round))
	check("on a branch from the commit")
	s.t.Logf("round %d: %v items before the commit, %v after", round, before, after)
}

// acked returns what the loads have noted, or what there was before one noted its first.
func (s *stack) acked(start map[string]int) map[string]int {
	s.t.Helper()
	var mu sync.Mutex
	all := map[string]int{}
	s.each(func(svc sockshop.Service) error {
		n := start[svc.Name]
		if out, err := s.exec(svc, svc.Acked()); err == nil {
			if n, err = strconv.Atoi(strings.TrimSpace(out)); err != nil {
				return err
			}
		}
		mu.Lock()
		defer mu.Unlock()
		all[svc.Name] = max(n, start[svc.Name])
		return nil
	})
	return all
}
