package e2e

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"dm/internal/e2e/tree"
)

const (
	lazyBig = 48 << 20
	// lazyWait is more than a read of a lazy dot may wait for a remote that is away.
	lazyWait = 45 * time.Second
)

// lazyWorld is a hub, a server with a dot that was pushed there, and another with a lazy clone of it.
func lazyWorld(t *testing.T) (h *hub, a, b *server) {
	t.Helper()
	h = newHub(t)
	a, b = newServer(t, writeback), newServer(t, writeback)
	h.join(a, "alice")
	h.join(b, "bob")
	a.dm("init", "app", "db", "many")
	root := a.dm("path", "app")
	fill(t, filepath.Join(root, "db", "big"), lazyBig)
	a.commit("old")
	fill(t, filepath.Join(root, "db", "big"), lazyBig)
	if err := tree.Many(filepath.Join(root, "many"), 2000, 1); err != nil {
		t.Fatal(err)
	}
	a.commit("new")
	a.dm("tag", "v1")
	a.dm("push", "hub")
	h.dm("hub", "share", "alice/app", "bob", "write")
	began := time.Now()
	n := h.link.passed(func() { b.dm("clone", "hub", "alice/app", "--lazy") })
	// The bytes are what makes it quick; the time is generous, for machines with much else to do.
	if took := time.Since(began); took > 10*time.Second || n > 1<<20 {
		t.Errorf("a lazy clone took %v and %d bytes", took, n)
	}
	return h, a, b
}

// A lazy clone is usable at once, reads what it needs, is written to, committed and pushed, and becomes whole.
func TestLazyClone(t *testing.T) {
	h, a, b := lazyWorld(t)
	ra, rb := a.dm("path", "app"), b.dm("path", "app")
	// What is read is fetched, with what is likely to be read next, and nothing else.
	buf := make([]byte, 4096)
	n := h.link.passed(func() {
		f, err := os.Open(filepath.Join(rb, "db", "big"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.ReadAt(buf, lazyBig/2); err != nil {
			t.Fatal(err)
		}
	})
	if n > lazyBig/10 {
		t.Errorf("to read 4096 bytes of %d took %d bytes", lazyBig, n)
	}
	want, err := os.ReadFile(filepath.Join(ra, "db", "big"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(buf, want[lazyBig/2:lazyBig/2+4096]) {
		t.Error("what was read is something else")
	}
	b.fsck()
	b.dm("gc")
	b.fsck()
	// On top of what is not here: a file is overwritten in the middle, one removed, one moved; committed and pushed.
	f, err := os.OpenFile(filepath.Join(rb, "db", "big"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("written here"), lazyBig/4); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(rb, "many", "d0000", "f000001")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(rb, "many", "d0001"), filepath.Join(rb, "db", "moved")); err != nil {
		t.Fatal(err)
	}
	tip := b.commit("on top")
	b.restart()
	n = h.link.passed(func() { b.dm("push", "hub") })
	if n > lazyBig/10 {
		t.Errorf("the push of a small commit of a lazy dot took %d bytes", n)
	}
	b.fsck()
	b.dm("gc")
	a.dm("pull", "hub")
	if got := a.head("app"); got != tip {
		t.Errorf("the other machine is at %s", got)
	}
	sameDot(t, "after a push from the lazy clone", a, b, "app")
	// It goes on there; the lazy one stays lazy.
	fill(t, filepath.Join(ra, "db", "more"), 8<<20)
	a.commit("more")
	a.dm("push", "hub")
	if n := h.link.passed(func() { b.dm("pull", "hub") }); n > 1<<20 {
		t.Errorf("a lazy pull took %d bytes", n)
	}
	b.commit("own, not pushed")
	// A full clone beside the lazy one is whole, and so is the lazy one when it has been completed.
	b.dm("clone", "hub", "alice/app", "--local-name", "full")
	b.dm("pull", "hub", "app", "--complete")
	b.dm("clone", "hub", "alice/app", "--local-name", "lazy2", "--lazy")
	b.fsck()
	b.dm("gc")
	h.link.setCut(true)
	b.restart()
	sameDot(t, "completed", a, b, "app")
	sameDots(t, "cloned in full", a, "app", b, "full")
	b.dm("reset", "--dot", "full", "HEAD^^^")
	b.dm("dot", "delete", "-f", "lazy2")
	b.dm("dot", "delete", "-f", "full")
	b.dm("gc")
	b.fsck()
	b.dm("cat", "--dot", "app", "v1^:db/big")
}

// A remote that is away is an input/output error after a bounded wait, said in the log; when it is back, all works again.
func TestLazyRemoteAway(t *testing.T) {
	h, a, b := lazyWorld(t)
	h.link.setCut(true)
	big := filepath.Join(b.dm("path", "app"), "db", "big")
	began := time.Now()
	_, err := os.ReadFile(big)
	if !errors.Is(err, syscall.EIO) {
		t.Errorf("a read without the remote: %v", err)
	}
	if took := time.Since(began); took > lazyWait {
		t.Errorf("the read failed after %v only", took)
	}
	log, err := os.ReadFile(b.logFile())
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(log), "data of a lazy dot cannot be fetched") {
		t.Error("the log says nothing of it")
	}
	// What is not there yet does not keep the server from its work.
	b.dm("list")
	b.fsck()
	b.dm("gc")
	h.link.setCut(false)
	for deadline := time.Now().Add(lazyWait); ; time.Sleep(100 * time.Millisecond) {
		if _, err = os.ReadFile(big); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the remote is back, and still: %v", err)
		}
	}
	sameDot(t, "when the remote is back", a, b, "app")
}
