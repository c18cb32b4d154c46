package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"dm/internal/e2e/docker"
	"dm/internal/e2e/watchdog"
)

// theEngine is the Docker engine of all tests; the first that needs it starts it.
var theEngine struct {
	once   sync.Once
	engine *docker.Engine
	err    error
	inUse  map[string]bool // names of volume drivers
}

// smallImage is an image with a directory /data that belongs to nobody and has content.
const smallImage = "small"

func startEngine() {
	theEngine.once.Do(func() {
		e, err := docker.Start(filepath.Join(os.TempDir(), "engine"))
		theEngine.engine = e
		if err == nil {
			err = e.MakeImage(smallImage, docker.Image{
				Dirs: []docker.Dir{{Path: "/data", Mode: 0o750, User: "nobody"}, {Path: "/data/sub", Mode: 0o2775, User: "games"}, {Path: "/empty", Mode: 0o755}},
				Files: []docker.File{
					{Path: "/data/seed", Mode: 0o640, User: "nobody", Text: "from the image\n"},
					{Path: "/data/sub/tool", Mode: 0o4755, User: "games", Text: "#!/bin/sh\n"},
				},
			})
		}
		theEngine.err = err
	})
}

// stopEngine ends the engine if a test has started it.
func stopEngine() error {
	if theEngine.engine == nil {
		return nil
	}
	return theEngine.engine.Stop()
}

// host is a dm server and a Docker engine that has its volume driver.
type host struct {
	*server
	engine *docker.Engine
	driver string
}

// newHost starts a server whose Docker plugin has a name of its own. What the test leaves in Docker is removed.
func newHost(t *testing.T) *host {
	t.Helper()
	startEngine()
	if theEngine.err != nil {
		t.Fatal(theEngine.err)
	}
	h := &host{engine: theEngine.engine, driver: takeDriver(t)}
	base := baseDir(t)
	h.server = &server{
		t: t, base: base, home: filepath.Join(base, "home"), cache: writeback,
		vars: []string{"DOCKER_HOST=" + h.engine.Host(), "DM_DOCKER_PLUGIN=" + h.driver},
	}
	t.Cleanup(h.cleanup)
	h.server.start()
	t.Cleanup(h.removeAll)
	return h
}

// driverPrefix is random and not of the process id, which may come again: the watchdog removes the sockets of these names
// without a look at whose they are.
var driverPrefix = "dmt" + strconv.FormatUint(rand.Uint64(), 36)

// takeDriver returns a name for a volume driver that no other server of the machine has. Docker asks all drivers that it has
// ever met where a volume is, and waits long for those that are gone: so a name is used again by the next test, and an
// engine that has met a second one is restarted.
func takeDriver(t *testing.T) string {
	if theEngine.inUse == nil {
		theEngine.inUse = map[string]bool{}
	}
	for n := 1; ; n++ {
		name := fmt.Sprintf("%s-%d", driverPrefix, n)
		if theEngine.inUse[name] {
			continue
		}
		theEngine.inUse[name] = true
		notePlugin(t, name)
		t.Cleanup(func() {
			delete(theEngine.inUse, name)
			if n > 1 {
				if err := theEngine.engine.Restart(); err != nil {
					t.Error(err)
				}
			}
		})
		return name
	}
}

// notePlugin writes the name down for the watchdog: a socket without a server makes every engine of the machine wait.
func notePlugin(t *testing.T, name string) {
	t.Helper()
	dir := filepath.Join(os.TempDir(), watchdog.Plugins)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

// removeAll removes all containers, and the volumes of this host's driver.
func (h *host) removeAll() {
	if h.t.Failed() {
		out, _ := h.engine.Run("ps", "-a")
		h.t.Logf("containers at the end:\n%s", out)
	}
	if ids, err := h.engine.Run("ps", "-aq"); err == nil && ids != "" {
		h.engine.Run(append([]string{"rm", "-f", "-v"}, strings.Fields(ids)...)...)
	}
	volumes, err := h.engine.Run("volume", "ls", "-q", "--filter", "driver="+h.driver)
	if err == nil && volumes != "" {
		_, err = h.engine.Run(append([]string{"volume", "rm"}, strings.Fields(volumes)...)...)
	}
	if err != nil && h.server.cmd != nil {
		h.t.Errorf("remove the volumes: %v", err)
	}
}

// docker runs a command of the docker client that must succeed.
func (h *host) docker(args ...string) string {
	h.t.Helper()
	out, err := h.engine.Run(args...)
	if err != nil {
		h.t.Fatal(err)
	}
	return out
}

// dockerFails runs a command of the docker client that must fail, and returns what it says.
func (h *host) dockerFails(args ...string) string {
	h.t.Helper()
	out, err := h.engine.Run(args...)
	if err == nil {
		h.t.Fatalf("docker %s succeeded: %s", strings.Join(args, " "), out)
	}
	return err.Error()
}

// runArgs returns the arguments of docker run with a volume at /v or flags, which begin with a dash.
func (h *host) runArgs(flags ...string) []string {
	args := append([]string{"run", "--volume-driver", h.driver}, docker.Flags()...)
	for _, f := range flags {
		if !strings.HasPrefix(f, "-") {
			args = append(args, "-v")
			if !strings.Contains(f, ":") {
				f += ":/v"
			}
		}
		args = append(args, f)
	}
	return args
}

// idle is a program that waits to be told to end: as process 1 of a container, a signal that it does not catch is ignored.
const idle = "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done"

// start starts a container that runs until it is stopped.
func (h *host) start(name string, flags ...string) {
	h.t.Helper()
	h.docker(append(h.runArgs(flags...), "-d", "--name", name, smallImage, "sh", "-c", idle)...)
}

// once runs a shell command in a container of its own, and returns what it prints.
func (h *host) once(script string, flags ...string) string {
	h.t.Helper()
	return h.docker(append(h.runArgs(flags...), "--rm", smallImage, "sh", "-c", script)...)
}

// in runs a shell command in a running container.
func (h *host) in(name, script string) string {
	h.t.Helper()
	return h.docker("exec", name, "sh", "-c", script)
}

// started returns when a container was last started.
func (h *host) started(name string) string {
	h.t.Helper()
	return h.docker("inspect", "-f", "{{.State.StartedAt}} {{.State.Running}}", name)
}

// containersOf returns the CONTAINERS of a dot in dm list.
func (h *host) containersOf(dot string) string {
	h.t.Helper()
	for line := range strings.Lines(h.dm("list", "-H")) {
		if f := strings.Split(line, "\t"); f[0] == dot {
			return f[3]
		}
	}
	h.t.Fatalf("no dot %s", dot)
	return ""
}

// fails runs a dm command that must end with the code, and returns its stderr.
func (h *host) fails(code int, args ...string) string {
	h.t.Helper()
	out, stderr, got := h.try(args...)
	if got != code {
		h.t.Fatalf("dm %s: exit code %d, not %d\n%s%s", strings.Join(args, " "), got, code, out, stderr)
	}
	return stderr
}

func (h *host) equal(what, got, want string) {
	h.t.Helper()
	if got != want {
		h.t.Fatalf("%s is %q, want %q", what, got, want)
	}
}

func (h *host) contains(what, got string, wants ...string) {
	h.t.Helper()
	for _, want := range wants {
		if !strings.Contains(got, want) {
			h.t.Fatalf("%s is %q, which has no %q", what, got, want)
		}
	}
}

// A volume that is new takes over what the image has at its place, with owners and modes; one that is not does not.
func TestContainerImageContent(t *testing.T) {
	h := newHost(t)
	const list = "cd /data && stat -c '%n %a %U' . seed sub sub/tool && cat seed"
	const want = ". 750 nobody\nseed 640 nobody\nsub 2775 games\nsub/tool 4755 games\nfrom the image"
	h.equal("the new volume", h.once(list, "app.db:/data"), want)
	h.once("echo changed > /data/seed && rm -r /data/sub && chmod 700 /data", "app.db:/data")
	h.equal("the volume at its second run", h.once("cd /data && stat -c '%n %a' . && cat seed && ls", "app.db:/data"), ". 700\nchanged\nseed")
	h.equal("nocopy", h.once("ls -A /data", "app.other:/data:nocopy"), "")
	// Who is not root can write to what the image gives him.
	h.equal("a user's write", h.once("echo mine > /data/f && stat -c %U /data/f", "app.user:/data", "-unobody"), "nobody")
	h.contains("a read-only mount", h.dockerFails(append(h.runArgs("app.user:/data:ro"), "--rm", smallImage, "sh", "-c", "echo x > /data/f")...), "Read-only file system")
	h.start("c1", "app.shared")
	h.start("c2", "app.shared")
	h.in("c1", "echo from a > /v/f")
	h.equal("what the other sees", h.in("c2", "cat /v/f"), "from a")
	// A lock of one is a lock for the other.
	h.in("c1", "flock -n /v/f -c 'touch /v/held; sleep 3' > /dev/null 2>&1 &")
	h.equal("the lock", h.in("c2", "while ! test -e /v/held; do sleep 0.05; done; flock -n /v/f -c 'echo free' || echo held"), "held")
}

// What Docker shows of volumes, and what removing one does.
func TestContainerVolumes(t *testing.T) {
	h := newHost(t)
	h.equal("the name", h.docker("volume", "create", "-d", h.driver, "shop.db"), "shop.db")
	h.docker("volume", "create", "-d", h.driver, "shop")
	h.docker("volume", "create", "-d", h.driver, "team/other.db")
	filter := "driver=" + h.driver
	h.equal("volume ls", h.docker("volume", "ls", "-q", "--filter", filter), "shop\nshop.db\nteam/other.db")
	h.once("head -c 5000 /dev/zero > /v/f", "shop.db")
	h.once("echo default > /v/f", "shop")
	status := func() string {
		return h.docker("volume", "inspect", "-f", "{{.Status.dot}} {{.Status.subdot}} {{.Status.branch}} {{.Status.size}} {{.Status.dirty}} {{.Status.commit}}", "shop.db")
	}
	h.equal("status", status(), "shop db master 5000 12288 ")
	h.dm("switch", "shop")
	id := h.commit("one")
	h.equal("status", status(), "shop db master 5000 0 "+id)
	h.equal("mountpoint", h.docker("volume", "inspect", "-f", "{{.Mountpoint}}", "shop.db"), h.dm("path", "shop.db"))
	h.equal("the default subdot", h.dm("cat", "HEAD:__default__/f"), "default")
	h.start("c1", "shop.db")
	h.contains("rm in use", h.dockerFails("volume", "rm", "shop.db"), "in use")
	h.docker("rm", "-f", "c1")
	h.docker("volume", "rm", "shop.db")
	h.equal("volume ls", h.docker("volume", "ls", "-q", "--filter", filter), "shop\nteam/other.db")
	h.contains("the log", h.tail(), "volume is removed; its dot stays")
	h.dockerFails("volume", "inspect", "shop.db")
	h.equal("what is left", h.once("stat -c %s /v/f", "shop.db"), "5000")
	for _, bad := range [][]string{
		{"a b"},
		{"../x"},
		{"x@"},
		{"shop.db2", "-o", "nonsense=1"},
		{"shop.db2", "-o", "cache=fast"},
		{"shop.db2", "-o", "readonly=maybe"},
		{"shop.db2", "-o", "branch=nowhere"},
		{"shop@a.db2", "-o", "branch=b"},
		{"new.db", "-o", "from=nowhere"},
		{"new.db", "-o", "from=nowhere/a/b"},
		{"shop.db2", "-o", "cache=through"},
		{"shop.db2", "-o", "from=hub/me/shop"},
	} {
		h.contains("create "+strings.Join(bad, " "), h.dockerFails(append([]string{"volume", "create", "-d", h.driver}, bad...)...), "dm: ")
	}
	h.docker("volume", "create", "-d", h.driver, "-o", "cache=through", "slow.db")
	h.docker("volume", "create", "-d", h.driver, "-o", "readonly=true", "-o", "branch=master", "slow.ro")
	h.contains("readonly=", h.dockerFails(append(h.runArgs("slow.ro"), "--rm", smallImage, "touch", "/v/f")...), "Read-only file system")
	// A dot that gets another name keeps its volumes.
	h.dm("dot", "rename", "shop", "store")
	h.equal("the renamed dot", h.once("stat -c %s /v/f", "shop.db"), "5000")
}

// dot@branch stays on its branch, whatever is checked out.
func TestContainerBranchPinning(t *testing.T) {
	h := newHost(t)
	h.once("echo master > /v/f", "app.db")
	h.dm("switch", "app")
	h.commit("one")
	h.dm("checkout", "-b", "branch1")
	h.once("echo branch1 > /v/f", "app.db")
	h.commit("two")
	h.start("pinned", "app@branch1.db")
	h.docker("volume", "create", "-d", h.driver, "-o", "branch=branch1", "app.db2")
	h.start("option", "app.db2")
	h.start("free", "app.db")
	pinned, option := h.started("pinned"), h.started("option")
	h.dm("checkout", "master")
	h.equal("pinned", h.in("pinned", "cat /v/f"), "branch1")
	h.equal("free", h.in("free", "cat /v/f"), "master")
	h.equal("the pinned container's start", h.started("pinned"), pinned)
	h.equal("the start of the one pinned by an option", h.started("option"), option)
	h.contains("a branch in use", h.fails(4, "branch", "-d", "branch1"), "/option, /pinned")
	// A reset of its own branch is another matter.
	h.in("pinned", "echo more > /v/f")
	h.dm("reset", "--hard", "--dot", "app@branch1", "HEAD")
	h.equal("after a reset of its branch", h.in("pinned", "cat /v/f"), "branch1")
	if h.started("pinned") == pinned {
		t.Error("the pinned container was not restarted by a reset of its branch")
	}
}

// Subdots lie beside each other, __root__ has them all, and what is renamed there is a subdot by its new name.
func TestContainerSubdotsAndRoot(t *testing.T) {
	h := newHost(t)
	h.once("echo a > /v/fa", "app.a")
	h.once("echo b > /v/fb", "app.b")
	h.once("echo d > /v/fd", "app")
	h.equal("a", h.once("ls -A /v", "app.a"), "fa")
	h.equal("root", h.once("cd /v && find . | sort", "app.__root__"), ".\n./__default__\n./__default__/fd\n./a\n./a/fa\n./b\n./b/fb")
	h.start("root", "app.__root__")
	h.in("root", "mv /v/a /v/renamed && mkdir /v/made && echo m > /v/made/fm")
	h.equal("renamed", h.once("ls -A /v", "app.renamed"), "fa")
	h.equal("made", h.once("cat /v/fm", "app.made"), "m")
	h.equal("the old name", h.once("ls -A /v", "app.a"), "")
	h.contains("who uses what", h.dm("status", "-H", "--dot", "app"), "\nb\t2\t8192\t1\t/root\n")
	// A link in the place of a subdot leads nowhere.
	h.in("root", "ln -s /etc /v/evil")
	h.contains("a link", h.dockerFails(append(h.runArgs("app.evil"), "--rm", smallImage, "ls", "/v")...), "not a directory")
}

// All containers of a dot are stopped and started together, those made later see the branch, and others are left alone.
func TestContainerCheckout(t *testing.T) {
	h := newHost(t)
	names := []string{"c1", "c2", "c3", "c4"}
	for i, name := range names {
		h.start(name, fmt.Sprintf("app.s%d", i))
		h.in(name, "echo master > /v/f")
	}
	h.start("bound", h.dm("path", "-c", "app.s9")+":/v")
	h.in("bound", "echo master > /v/f")
	h.start("other", "elsewhere.db")
	h.equal("list", h.containersOf("app"), "/bound,/c1,/c2,/c3,/c4")
	h.dm("switch", "app")
	h.commit("one")
	before := map[string]string{}
	for _, name := range append(slices.Clone(names), "bound", "other") {
		before[name] = h.started(name)
	}
	begin := time.Now()
	_, stderr, _ := h.try("checkout", "-b", "exp")
	t.Logf("checkout with five containers took %v", time.Since(begin))
	h.contains("what checkout says", stderr, "Restarted /bound, /c1, /c2, /c3, /c4")
	for i, name := range append(slices.Clone(names), "bound") {
		if h.started(name) == before[name] {
			t.Errorf("%s was not restarted", name)
		}
		h.equal(name, h.in(name, "cat /v/f"), "master")
		h.in(name, "echo exp > /v/f")
		h.equal("a new container", h.once("cat /v/f", fmt.Sprintf("app.s%d", []int{0, 1, 2, 3, 9}[i])), "exp")
	}
	h.equal("the other's start", h.started("other"), before["other"])
	h.dm("checkout", "master")
	for _, name := range append(slices.Clone(names), "bound") {
		h.equal(name, h.in(name, "cat /v/f"), "master")
	}
	// To where it is already: nobody is disturbed. To where it cannot go: neither.
	at := h.started("c1")
	h.dm("checkout", "master")
	h.fails(3, "checkout", "nowhere")
	h.fails(4, "checkout", "-b", "exp")
	h.contains("--no-restart", h.fails(4, "checkout", "--no-restart", "exp"), "/bound, /c1, /c2, /c3, /c4", "docker stop")
	h.fails(3, "reset", "--hard", "nowhere")
	h.in("c1", "echo dirty > /v/f")
	h.contains("a dirty reset", h.fails(4, "reset", "HEAD"), "uncommitted")
	h.equal("the start of c1", h.started("c1"), at)
	h.dm("reset", "--hard", "HEAD")
	h.equal("after a reset", h.in("c1", "cat /v/f"), "master")
	h.in("c2", "echo dirty > /v/f")
	at = h.started("c1")
	h.dm("restore", "HEAD", "--", "s1/f")
	h.equal("after a restore", h.in("c2", "cat /v/f"), "master")
	h.equal("the start of c1", h.started("c1"), at)
	h.contains("delete in use", h.fails(4, "dot", "delete", "-f", "app"), "/bound, /c1, /c2, /c3, /c4")
	h.contains("rename in use", h.fails(4, "dot", "rename", "app", "app2"), "/c1")
	h.docker(append([]string{"rm", "-f", "bound"}, names...)...)
	h.dm("dot", "delete", "-f", "app")
	h.equal("volume ls", h.docker("volume", "ls", "-q", "--filter", "driver="+h.driver), "elsewhere.db")
}
