package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"dm/dot"
	"dm/internal/errs"
)

// The labels of a container that make its application part of a commit. A hook is a command line for /bin/sh, or a JSON
// array of a program and its arguments.
const (
	labelPre     = "dm.pre-commit"   // runs before the freeze; that it fails aborts the commit
	labelPost    = "dm.post-commit"  // runs after the freeze, whatever became of the commit
	labelTimeout = "dm.hook-timeout" // of each hook: a duration as "90s"
)

// hookTimeout is how long a hook may run where its container does not say otherwise, and maxHookTimeout what it can say.
const (
	hookTimeout    = 30 * time.Second
	maxHookTimeout = 10 * time.Minute
)

// hooks is the hooks of one commit.
type hooks struct {
	s          *server
	dot        dot.Name
	containers []container

	once  sync.Once
	ended chan struct{} // closed when the post-commit hooks have ended
	err   error         // of post-commit hooks; valid then
}

// hooksFor returns the hooks of the containers that use what is to be committed.
func (s *server) hooksFor(n dot.Name, uses []containerUse) *hooks {
	h := &hooks{s: s, dot: n, ended: make(chan struct{})}
	for _, c := range containersOf(uses) {
		if c.Labels[labelPre] != "" || c.Labels[labelPost] != "" {
			h.containers = append(h.containers, c)
		}
	}
	return h
}

// pre runs the pre-commit hooks in parallel. If one fails, nothing is to be committed.
func (h *hooks) pre(ctx context.Context) error {
	return inParallel(h.containers, func(c container) error { return h.run(ctx, c, labelPre, nil) })
}

// frozen says that the instant of the commit is over, or that there will be none: the post-commit hooks begin. Only the
// first call counts. What they say is known when wait returns.
func (h *hooks) frozen(ctx context.Context, result string) {
	h.once.Do(func() {
		go func() {
			defer close(h.ended)
			// Applications wait for this: it runs even if the client has gone.
			ctx := context.WithoutCancel(ctx)
			h.err = inParallel(h.containers, func(c container) error {
				return h.run(ctx, c, labelPost, []string{"DM_RESULT=" + result})
			})
		}()
	})
}

// wait waits for the post-commit hooks and returns what went wrong with them.
func (h *hooks) wait() error {
	<-h.ended
	return h.err
}

// run runs one hook of one container, if it has it.
func (h *hooks) run(ctx context.Context, c container, label string, env []string) error {
	line := c.Labels[label]
	if line == "" {
		return nil
	}
	cmd, err := hookCommand(line)
	if err == nil && c.Paused {
		err = errs.New(errs.Conflict, "the container is paused")
	}
	limit := hookTimeout
	if err == nil {
		limit, err = hookLimit(c.Labels[labelTimeout])
	}
	if err != nil {
		return h.failed(c, label, err)
	}
	env = append([]string{"DM_HOOK=" + label[len("dm."):], "DM_DOT=" + h.dot.DotName()}, env...)
	bounded, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	begin := time.Now()
	r, err := h.s.engine.exec(bounded, c.ID, cmd, env)
	if r.PID != 0 {
		killInContainer(r.PID, c.ID)
	}
	switch {
	case err != nil && ctx.Err() != nil:
		err = ctx.Err()
	case err != nil && bounded.Err() != nil:
		err = errs.WithHint(errs.New(errs.Conflict, "it did not end within %v and was killed%s", limit, said(r.Output)),
			"give it longer with the label %s, or commit with --no-hooks", labelTimeout)
	case err == nil && r.Code != 0:
		err = errs.WithHint(errs.New(errs.Conflict, "exit code %d%s", r.Code, said(r.Output)), "commit without hooks with --no-hooks")
	}
	if err != nil {
		return h.failed(c, label, err)
	}
	h.s.log.Info("hook has run", "container", c.Name, "hook", label, "took", time.Since(begin))
	return nil
}

func (h *hooks) failed(c container, label string, err error) error {
	return fmt.Errorf("%s hook of container %s: %w", label[len("dm."):], c.Name, err)
}

// said adds the end of a hook's output to an error.
func said(output string) string {
	if output == "" {
		return ""
	}
	return ": " + output
}

// hookCommand reads a hook's label.
func hookCommand(line string) ([]string, error) {
	if !strings.HasPrefix(strings.TrimSpace(line), "[") {
		return []string{"/bin/sh", "-c", line}, nil
	}
	var cmd []string
	if err := json.Unmarshal([]byte(line), &cmd); err != nil || len(cmd) == 0 {
		return nil, errs.New(errs.Usage, "the label %q is no JSON array of a program and its arguments", line)
	}
	return cmd, nil
}

// hookLimit reads the label that says how long hooks may run.
func hookLimit(label string) (time.Duration, error) {
	if label == "" {
		return hookTimeout, nil
	}
	d, err := time.ParseDuration(label)
	if err != nil || d <= 0 || d > maxHookTimeout {
		return 0, errs.New(errs.Usage, "the label %s=%q is no duration between 0 and %v, such as 90s", labelTimeout, label, maxHookTimeout)
	}
	return d, nil
}

// killInContainer ends a hook that runs over its time, and what it has started: Docker has no way to. The process id is
// the engine's word; that its control group is the container's is checked, so that no other process can be hit.
func killInContainer(pid int, containerID string) {
	process, err := os.FindProcess(pid) // holds on to it, where the kernel has pidfds: the number may become another's
	if err != nil {
		return
	}
	defer process.Release()
	if !inContainer(pid, containerID) {
		return
	}
	for _, child := range childrenOf(pid) {
		killInContainer(child, containerID)
	}
	process.Kill() //nolint:errcheck // it may have ended just now
}

func inContainer(pid int, containerID string) bool {
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	return err == nil && containerID != "" && strings.Contains(string(groups), containerID)
}

func childrenOf(pid int) []int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return nil // it has ended, or this kernel does not tell
	}
	var all []int
	for f := range strings.FieldsSeq(string(text)) {
		if child, err := strconv.Atoi(f); err == nil {
			all = append(all, child)
		}
	}
	return all
}

// commitNotes returns what a commit remembers of the containers that use its subdots: for each subdot that is used, in
// order of container and separated by commas,
//
//	container.SUBDOT   their names
//	image.SUBDOT       their images, as they were asked for
//	digest.SUBDOT      the images' digests, or ids where an image was never in a registry
//
// Docker being slow must not keep anybody from committing: what cannot be learned in time is left out, and logged.
func (s *server) commitNotes(ctx context.Context, uses []containerUse) map[string]string {
	if len(uses) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, engineWait)
	defer cancel()
	notes := map[string]string{}
	add := func(key, value string) {
		if notes[key] != "" {
			value = notes[key] + "," + value
		}
		notes[key] = value
	}
	for _, u := range uses {
		digest, err := s.engine.digest(ctx, u.ImageID)
		if err != nil {
			s.log.Warn("the digest of an image is not known", "container", u.Name, "image", u.Image, "err", err)
			digest = u.ImageID
		}
		add("container."+u.subdot, u.Name)
		add("image."+u.subdot, u.Image)
		add("digest."+u.subdot, digest)
	}
	return notes
}

// commitWith commits a dot around the hooks of the containers that use it, and notes what they are.
func (s *server) commitWith(ctx context.Context, n dot.Name, req dot.CommitRequest, noHooks bool) (*dot.CommitResult, error) {
	uses, err := s.usesOnBranch(ctx, n)
	switch {
	case err != nil && noHooks:
		s.log.Warn("a commit does not note its containers", "dot", n, "err", err)
		uses = nil
	case err != nil:
		return nil, errs.WithHint(err, "containers may have hooks; commit without them with --no-hooks")
	}
	if req.System == nil {
		req.System = map[string]string{}
	}
	maps.Copy(req.System, s.commitNotes(ctx, uses))
	if noHooks {
		uses = nil
	}
	h := s.hooksFor(n, uses)
	if len(h.containers) == 0 {
		return s.dots.Commit(ctx, n, req)
	}
	if err := h.pre(ctx); err != nil {
		h.frozen(ctx, "aborted")
		return nil, errors.Join(err, h.wait())
	}
	req.Frozen = func() { h.frozen(ctx, "frozen") }
	c, err := s.dots.Commit(ctx, n, req)
	h.frozen(ctx, "failed") // unless it was frozen
	if post := h.wait(); post != nil {
		if err == nil {
			post = errs.WithHint(fmt.Errorf("commit %s is done, but: %w", c.Commit, post), "see what state the application is in")
		}
		return c, errors.Join(err, post)
	}
	return c, err
}

// usesOnBranch returns who uses the branch that n means.
func (s *server) usesOnBranch(ctx context.Context, n dot.Name) ([]containerUse, error) {
	all, err := s.running(ctx)
	if err != nil || len(all) == 0 {
		return nil, err
	}
	uses, err := s.branchUses(ctx, n)
	if err != nil {
		return nil, err
	}
	return filterUses(all, uses), nil
}
