package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"dm/internal/e2e/docker"
)

// quickly fails if something waits for a plugin that does not answer. Docker tries a socket without a server again and again, at
// least 15 seconds long, which its log tells apart from a machine that is slow; for an answer it waits a minute.
func (h *host) quickly(what string, do func()) {
	h.t.Helper()
	begin, retries := time.Now(), h.engine.Retries()
	do()
	if took := time.Since(begin); took > 40*time.Second {
		h.t.Errorf("%s took %v", what, took)
	}
	if n := h.engine.Retries() - retries; n > 0 {
		h.t.Errorf("%s: Docker tried a plugin %d times more", what, n)
	}
}

// While the server is away Docker gets an error at once that says what to do; when it is back everything works again.
func TestContainerServerAway(t *testing.T) {
	h := newHost(t)
	h.once("echo kept > /v/f", "app.db")
	h.docker(append(h.runArgs("app.db"), "-d", "--name", "c1", smallImage, "sh", "-c", idle)...)
	h.contains("a stop in use", h.fails(4, "cluster", "stop"), "/c1", "docker stop c1")
	h.equal("after a refused stop", h.in("c1", "cat /v/f"), "kept")
	h.docker("stop", "c1")
	away := func() {
		h.t.Helper()
		const cure = "is not running (start it with 'dm cluster init --home "
		h.quickly("a start without a server", func() { h.contains("Docker's error", h.dockerFails("start", "c1"), cure+h.home) })
		h.quickly("a new volume without a server", func() {
			h.contains("Docker's error", h.dockerFails("volume", "create", "-d", h.driver, "app.new"), cure)
		})
		h.quickly("a list without a server", func() { h.docker("volume", "ls", "-q") })
	}
	back := func() {
		h.t.Helper()
		h.server.start()
		h.quickly("a start", func() { h.docker("start", "c1") })
		h.equal("with a server again", h.in("c1", "cat /v/f"), "kept")
		h.docker("stop", "c1")
	}
	h.stop()
	away()
	back()
	h.kill()
	away()
	back()
	// Of a machine that crashed nothing is left but the socket.
	h.kill()
	for _, pid := range h.processes(0) {
		if strings.HasPrefix(commandLine(pid), "dm-docker-standin") {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	back()
	// Two servers cannot have one name.
	second := &server{t: t, base: h.base, home: filepath.Join(h.base, "home2"), cache: writeback, vars: h.vars}
	if out, stderr, code := second.try("cluster", "init"); code != 4 || !strings.Contains(stderr, "is served by the dm server on "+h.home) {
		t.Errorf("a second server with the name: %d %s%s", code, out, stderr)
	}
	if _, stderr, code := second.try("cluster", "reset", "-f"); code != 0 {
		t.Error(stderr)
	}
}

// Docker is started again, and killed, below the server.
func TestContainerEngineRestarts(t *testing.T) {
	h := newHost(t)
	h.docker(append(h.runArgs("app.db"), "-d", "--restart", "always", "--name", "c1", smallImage, "sh", "-c", idle)...)
	h.in("c1", "echo kept > /v/f")
	for name, again := range map[string]func() error{"restart": h.engine.Restart, "kill": h.engine.Kill} {
		if err := again(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		h.running("c1")
		h.equal("after a "+name+" of Docker", h.in("c1", "cat /v/f"), "kept")
		h.equal("CONTAINERS", h.containersOf("app"), "/c1")
	}
	// A server that starts after Docker and its containers.
	h.kill()
	h.server.start()
	_, stderr, _ := h.try("cluster", "init", "--docker-plugin", h.driver)
	h.contains("what init says", stderr, "lost their volumes", "/c1", "dm cluster init --restart")
	h.contains("status", h.dm("cluster", "status"), "/c1 (restart with")
	_, stderr, _ = h.try("cluster", "init", "--docker-plugin", h.driver, "--restart")
	h.contains("what init --restart says", stderr, "Restarted /c1")
	h.equal("restarted", h.in("c1", "cat /v/f"), "kept")
	if _, stderr, _ = h.try("cluster", "init", "--docker-plugin", h.driver); strings.Contains(stderr, "lost") {
		t.Errorf("still lost: %s", stderr)
	}
	h.docker("rm", "-f", "c1")
}

// running waits until a container runs.
func (h *host) running(name string) {
	h.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if out, err := h.engine.Run("inspect", "-f", "{{.State.Status}}", name); err == nil && out == "running" {
			return
		}
	}
	h.t.Fatalf("container %s does not run", name)
}

// What cannot be stopped or started, and a server that is killed in between.
func TestContainerCheckoutGoesWrong(t *testing.T) {
	h := newHost(t)
	h.start("c1", "app.a")
	h.in("c1", "echo one > /v/f")
	h.dm("switch", "app")
	h.commit("one")
	// A container that would be gone.
	h.docker(append(h.runArgs("app.b"), "-d", "--rm", "--name", "gone", smallImage, "sh", "-c", idle)...)
	at := h.started("c1")
	h.contains("--rm", h.fails(4, "checkout", "-b", "exp"), "container /gone was started with --rm", "docker stop gone")
	h.equal("the start of c1", h.started("c1"), at)
	h.docker("stop", "gone")
	// One that shares another's network can only be started after it; a paused one is paused again.
	h.docker("run", "--volume-driver", h.driver, "-v", "/usr:/usr:ro", "-v", "app.c:/v", "-d", "--network", "container:c1", "--name", "a-net", smallImage, "sh", "-c", idle)
	h.start("paused", "app.d")
	h.docker("pause", "paused")
	h.dm("checkout", "-b", "exp")
	h.equal("c1", h.in("c1", "cat /v/f"), "one")
	h.equal("a-net", h.in("a-net", "ls -A /v"), "")
	h.equal("the paused", h.docker("inspect", "-f", "{{.State.Status}}", "paused"), "paused")
	h.docker("rm", "-f", "a-net", "paused")
	// A container that does not come back: the rest does, and the command says which.
	tool := filepath.Join(h.base, "tool")
	if err := os.WriteFile(tool, []byte("#!/bin/sh\n"+idle), 0o755); err != nil {
		t.Fatal(err)
	}
	h.docker(append(h.runArgs("app.b", tool+":/tool"), "-d", "--name", "broken", smallImage, "/tool")...)
	if err := os.Chmod(tool, 0o644); err != nil {
		t.Fatal(err)
	}
	h.contains("a container that does not start", h.fails(1, "checkout", "master"), "the checkout is done", "container /broken", "docker start")
	h.equal("c1", h.docker("inspect", "-f", "{{.State.Status}}", "c1"), "running")
	h.docker("rm", "-f", "broken")
	// The server is killed when it has stopped the containers: its successor starts them.
	h.docker(append(h.runArgs("app.b"), "-d", "--stop-timeout", "3", "--name", "slow", smallImage, "sh", "-c", "trap '' TERM; while :; do sleep 1; done")...)
	done := make(chan struct{})
	go func() {
		defer close(done)
		h.try("checkout", "exp")
	}()
	h.ended("c1")
	h.kill()
	<-done
	for _, name := range []string{"c1", "slow"} {
		h.ended(name)
	}
	h.server.start()
	for _, name := range []string{"c1", "slow"} {
		h.running(name)
	}
	h.equal("c1", h.in("c1", "cat /v/f"), "one")
	h.docker("rm", "-f", "slow", "c1")
}

// ended waits until a container does not run.
func (h *host) ended(name string) {
	h.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if out, err := h.engine.Run("inspect", "-f", "{{.State.Status}}", name); err == nil && out == "exited" {
			return
		}
	}
	h.t.Fatalf("container %s does not end", name)
}

// Commits remember what ran, and hooks run around their instant.
func TestContainerCommits(t *testing.T) {
	h := newHost(t)
	image := h.docker("image", "inspect", "-f", "{{.Id}}", smallImage)
	run := func(name, volume string, labels ...string) {
		t.Helper()
		args := append(h.runArgs(volume), "-d", "--name", name)
		for _, l := range labels {
			args = append(args, "--label", l)
		}
		h.docker(append(args, smallImage, "sh", "-c", idle)...)
	}
	run("db", "app.db", "dm.pre-commit=test ! -e /v/fail && echo $DM_HOOK $DM_DOT >> /v/hooks && echo pre >> /tmp/log", "dm.post-commit=echo $DM_HOOK $DM_RESULT >> /tmp/log")
	run("db2", "app.db")
	run("cache", "app.cache", `dm.pre-commit=["touch", "/v/exec form"]`)
	h.dm("switch", "app")
	id := h.commit("one")
	h.equal("what the hook left in the commit", h.dm("cat", "HEAD:db/hooks"), "pre-commit app")
	h.equal("what the other left", h.dm("cat", "HEAD:cache/exec form"), "")
	h.equal("the order", h.in("db", "cat /tmp/log"), "pre\npost-commit frozen")
	h.contains("dm show", h.dm("show", id), "db      /db        small  "+image, "db      /db2       small  "+image, "cache   /cache     small  "+image)
	h.contains("dm log --json", h.dm("log", "--json"), `"container.db": "/db,/db2"`, `"image.cache": "small"`, `"digest.cache": "`+image+`"`)
	// One that fails aborts; what was prepared is undone.
	h.in("db", "rm /tmp/log; touch /v/fail")
	h.contains("a failing hook", h.fails(4, "commit", "-m", "no"), "pre-commit hook of container /db: exit code 1", "--no-hooks")
	h.equal("the commits", fmt.Sprint(strings.Count(h.dm("log", "--oneline"), "\n")+1), "1")
	h.equal("the undoing", h.in("db", "cat /tmp/log"), "post-commit aborted")
	h.dm("commit", "--no-hooks", "-m", "without hooks")
	h.equal("no hooks", h.in("db", "cat /tmp/log"), "post-commit aborted")
	h.docker("rm", "-f", "db")
	// One that hangs is killed, with what it started.
	run("hung", "app.hung", "dm.pre-commit=sleep 4321 & sleep 4321", "dm.hook-timeout=1s", "dm.post-commit=echo undone > /tmp/log")
	h.quickly("a commit with a hook that hangs", func() {
		h.contains("a hook that hangs", h.fails(4, "commit", "-m", "no"), "did not end within 1s", "dm.hook-timeout")
	})
	h.equal("what is left of the hook", h.in("hung", "cat /tmp/log; for p in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $p; echo; done | grep -c '^sleep 4321' || true"), "undone\n0")
	h.docker("pause", "hung")
	h.contains("a hook of a paused container", h.fails(4, "commit", "-m", "no"), "paused")
	h.docker("rm", "-f", "hung")
	run("bad", "app.bad", "dm.pre-commit=true", "dm.hook-timeout=soon")
	h.contains("a timeout that is none", h.fails(2, "commit", "-m", "no"), "dm.hook-timeout", "90s")
	h.docker("rm", "-f", "bad")
	h.commit("two")
	// What a post-commit hook says is said, but the commit is there.
	run("post", "app.post", "dm.post-commit=echo sorry; exit 3")
	h.contains("a failing post-commit hook", h.fails(4, "commit", "-m", "three"), "is done, but: post-commit hook of container /post: exit code 3: sorry")
	h.contains("the log", h.dm("log", "-n", "1"), "three")
	h.docker("rm", "-f", "post")
	// Automatic commits are like others.
	run("auto", "app.auto", "dm.pre-commit=echo $DM_HOOK >> /v/hooks")
	h.dm("auto-commit", "app", "--every", "1s")
	for end := time.Now().Add(30 * time.Second); !strings.Contains(h.dm("log", "-n", "1"), "automatic commit"); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no automatic commit\n" + h.dm("dot", "show", "app"))
		}
	}
	h.dm("auto-commit", "app", "--off")
	h.contains("what the hook left in the automatic commit", h.dm("cat", "HEAD:auto/hooks"), "pre-commit")
	h.contains("dm show of the automatic commit", h.dm("show", "HEAD"), "automatic commit", "auto    /auto      small  "+image)
}

// What Docker had in a volume of its own comes into a dot.
func TestContainerImport(t *testing.T) {
	h := newHost(t)
	h.docker(append(append([]string{"run", "--rm"}, docker.Flags()...), "-v", "plain:/data", smallImage, "sh", "-c", "echo more > /data/more")...)
	t.Cleanup(func() { h.engine.Run("volume", "rm", "plain") })
	h.dm("init", "app")
	h.docker(append(append([]string{"run", "-d", "--name", "user"}, docker.Flags()...), "-v", "plain:/data", smallImage, "sh", "-c", idle)...)
	h.contains("a volume in use", h.fails(4, "import", "plain", "app.db"), "in use by container /user")
	h.docker("rm", "-f", "user")
	h.dm("import", "plain", "app.db")
	h.equal("what came", h.once("cd /v && stat -c '%n %a %U' * sub/*", "app.db"), "more 644 root\nseed 640 nobody\nsub 2775 games\nsub/tool 4755 games")
	h.contains("nothing of the name", h.fails(3, "import", "nowhere", "app.db2"), "nowhere")
	h.docker("volume", "create", "-d", h.driver, "app.db")
	h.contains("a volume of dm's", h.fails(2, "import", "app.db", "app.db3"), "driver")
}

// What a container has by `dm path` or `dm mount` is known as well.
func TestContainerBindMounts(t *testing.T) {
	h := newHost(t)
	h.dm("init", "app", "db", "www")
	h.commit("one")
	h.dm("branch")
	real, err := filepath.EvalSymlinks(h.dm("path", "app.db"))
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(h.base, "www")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	h.dm("mount", "app.www", dir)
	h.start("path", h.dm("path", "app.db")+":/v")
	h.start("below", h.dm("path", "app.db")+"/deep:/v")
	h.start("real", real+":/v")
	h.start("whole", h.dm("path", "app")+":/v")
	h.start("mounted", dir+":/v")
	h.start("stranger", h.base+":/v")
	status := h.dm("status", "-H")
	h.contains("dm status", status, "/below,/path,/real,/whole\n", "/mounted,/whole")
	h.contains("dm dot show", h.dm("dot", "show", "-H"), "containers.www\t/mounted,/whole", "containers\t/below,/mounted,/path,/real,/whole")
	h.equal("CONTAINERS", h.containersOf("app"), "/below,/mounted,/path,/real,/whole")
	pinned := h.started("real")
	h.dm("checkout", "-b", "exp")
	for _, name := range []string{"path", "below", "whole", "mounted"} {
		h.in(name, "echo exp > /v/f")
	}
	h.equal("the start of the one on master", h.started("real"), pinned)
	h.equal("what it sees", h.in("real", "ls -A /v"), "deep")
	h.docker("rm", "-f", "path", "below", "real", "whole", "mounted")
	h.dm("umount", dir)
}
