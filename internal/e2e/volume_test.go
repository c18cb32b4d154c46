package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// volume is a dot under test with its live content at a path, or something that behaves like one.
type volume interface {
	// path returns where the whole dot is; each directory in it is a subdot.
	path() string
	// commit returns the revision that holds the present content.
	commit(message string) string
	// reset makes the content that of a revision.
	reset(rev string)
	// show makes a revision readable at a directory until done is called.
	show(rev string) (dir string, done func())
	// branch switches to another branch, created with the present HEAD's content if there is none of the name.
	branch(name string)
	// restart has the server end and start again; what is open is gone.
	restart()
}

// dmVolume is a dot of a dm server.
type dmVolume struct {
	*server
	dot      string
	branches map[string]bool
}

func newVolume(s *server, dot string, subdots ...string) *dmVolume {
	s.t.Helper()
	s.dm(append([]string{"init", dot}, subdots...)...)
	return &dmVolume{server: s, dot: dot, branches: map[string]bool{"master": true}}
}

func (v *dmVolume) path() string {
	v.t.Helper()
	return v.dm("path", v.dot)
}

func (v *dmVolume) reset(rev string) {
	v.t.Helper()
	v.dm("reset", "--hard", rev)
}

func (v *dmVolume) show(rev string) (string, func()) {
	v.t.Helper()
	return v.mount(v.dot + ":" + rev)
}

func (v *dmVolume) branch(name string) {
	v.t.Helper()
	if v.branches[name] {
		v.dm("checkout", name)
		return
	}
	v.branches[name] = true
	v.dm("checkout", "-b", name)
}

// hostVolume is a directory of the host whose revisions are copies: what the tests that use the interface are tried on,
// so that what they find in dm is dm's.
type hostVolume struct {
	t       *testing.T
	dir     string
	current string
	commits int
}

func newHostVolume(t *testing.T, subdots ...string) *hostVolume {
	t.Helper()
	v := &hostVolume{t: t, dir: t.TempDir(), current: "master"}
	for _, sub := range subdots {
		if err := os.MkdirAll(filepath.Join(v.path(), sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return v
}

func (v *hostVolume) path() string { return filepath.Join(v.dir, "branch-"+v.current) }

func (v *hostVolume) rev(rev string) string { return filepath.Join(v.dir, "rev-"+rev) }

func (v *hostVolume) copy(from, to string) {
	v.t.Helper()
	if err := os.RemoveAll(to); err != nil {
		v.t.Fatal(err)
	}
	copyTree(v.t, from, to)
}

func copyTree(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "-a", "--sparse=auto", from, to).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v\n%s", err, out)
	}
}

func (v *hostVolume) commit(string) string {
	v.t.Helper()
	v.commits++
	id := fmt.Sprint(v.commits)
	v.copy(v.path(), v.rev(id))
	v.copy(v.path(), v.rev("HEAD-"+v.current))
	return id
}

func (v *hostVolume) reset(rev string) {
	v.t.Helper()
	v.copy(v.rev(rev), v.path())
	v.copy(v.rev(rev), v.rev("HEAD-"+v.current))
}

func (v *hostVolume) show(rev string) (string, func()) { return v.rev(rev), func() {} }

func (v *hostVolume) branch(name string) {
	v.t.Helper()
	head := v.rev("HEAD-" + v.current)
	v.current = name
	if _, err := os.Stat(v.path()); err != nil {
		v.copy(head, v.path())
		v.copy(head, v.rev("HEAD-"+name))
	}
}

func (v *hostVolume) restart() {}
