package e2e

import (
	"os"
	"strings"
	"testing"
)

// A volume that is a clone: its dot comes from a hub when Docker first creates it; pulls then move containers to what others
// have pushed.
func TestContainerClonesAndPulls(t *testing.T) {
	hub := newHub(t)
	dev := newServer(t, writeback)
	hub.join(dev, "dev")
	dev.dm("init", "app", "db", "www")
	v := &dmVolume{server: dev, dot: "app"}
	writeTo(t, v.path()+"/db/f", "one")
	dev.commit("one")
	dev.dm("checkout", "-b", "side")
	writeTo(t, v.path()+"/db/f", "side")
	dev.commit("side")
	dev.dm("checkout", "master")
	dev.dm("push", "hub", "--all")
	h := newHost(t)
	hub.join(h.server, "ci")
	hub.dm("hub", "share", "dev/app", "ci", "read")
	create := func(volume string, options ...string) []string {
		args := []string{"volume", "create", "-d", h.driver}
		for _, o := range options {
			args = append(args, "-o", o)
		}
		return append(args, volume)
	}
	// Two volumes of one group at the same time: one clone.
	second := make(chan error, 1)
	go func() {
		_, err := h.engine.Run(create("app.www", "from=hub/dev/app")...)
		second <- err
	}()
	h.docker(create("app.db", "from=hub/dev/app")...)
	if err := <-second; err != nil {
		t.Fatal(err)
	}
	h.equal("the clone", h.once("cat /v/f", "app.db"), "one")
	h.docker(create("app@side.db", "from=hub/dev/app")...)
	h.equal("another branch", h.once("cat /v/f", "app@side.db"), "side")
	h.docker(create("only.db", "from=hub/dev/app@side", "cache=through")...)
	h.equal("a clone of a branch", h.once("cat /v/f", "only.db"), "side")
	h.equal("its branches", h.dm("branch", "--dot", "only"), "* side")
	h.contains("a remote that is not there", h.dockerFails(create("x.db", "from=elsewhere/dev/app")...), "Remote 'elsewhere' does not exist")
	h.contains("a dot that is not there", h.dockerFails(create("x.db", "from=hub/dev/nothing")...), "Dot dev/nothing does not exist at hub")
	h.contains("a dot of another origin", h.dockerFails(create("app.x", "from=hub/dev/other")...), "is no clone of dev/other")

	writeTo(t, v.path()+"/db/f", "two")
	dev.commit("two")
	dev.dm("push", "hub")
	h.start("c1", "app.db")
	h.start("pinned", "app@side.db")
	h.dm("switch", "app")
	pinned := h.started("pinned")
	h.contains("a pull in use", h.fails(4, "pull", "hub"), "/c1", "--restart")
	h.equal("after a refused pull", h.in("c1", "cat /v/f"), "one")
	_, stderr, code := h.try("pull", "hub", "--restart")
	if code != 0 {
		t.Fatalf("dm pull --restart: %d %s", code, stderr)
	}
	h.contains("what pull says", stderr, "Restarted /c1")
	h.equal("after a pull", h.in("c1", "cat /v/f"), "two")
	h.equal("the pinned container's start", h.started("pinned"), pinned)
	h.in("c1", "echo mine > /v/f")
	writeTo(t, v.path()+"/db/f", "three")
	dev.commit("three")
	dev.dm("push", "hub")
	h.contains("a pull over changes", h.fails(4, "pull", "hub", "--restart"), "uncommitted")
	h.equal("after that", h.in("c1", "cat /v/f"), "mine")
	// What a container writes as it ends is not in the way.
	h.dm("reset", "--hard", "HEAD")
	h.docker("rm", "-f", "c1")
	h.docker(append(h.runArgs("app.db"), "-d", "--name", "last", smallImage, "sh", "-c", "trap 'echo bye > /v/last; exit 0' TERM; touch /tmp/ready; while :; do sleep 1000 & wait; done")...)
	h.in("last", "while ! test -e /tmp/ready; do sleep 0.05; done")
	h.dm("pull", "hub", "--restart")
	h.equal("after the last pull", strings.Join(strings.Fields(h.in("last", "ls /v; cat /v/f")), " "), "f three")
	h.equal("what is dirty", h.dm("diff"), "")
}

func writeTo(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}
