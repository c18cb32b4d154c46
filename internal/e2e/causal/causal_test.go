package causal

import (
	"bytes"
	"encoding/binary"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	RunWorker()
	os.Exit(m.Run())
}

func ring() *Ring {
	return &Ring{Name: "ring", Subdots: []string{"a", "b", "c"}, Kinds: AllKinds()}
}

// start has a ring of three processes at work in a directory of the host.
func start(t *testing.T) (*Ring, string, *Load) {
	t.Helper()
	r, root := ring(), t.TempDir()
	first, err := Prepare(r, root)
	if err != nil {
		t.Fatal(err)
	}
	l, err := Start(r, root, first, 3, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Stop(); err != nil {
			t.Error(err)
		}
	})
	return r, root, l
}

func load(t *testing.T, root string) State {
	t.Helper()
	st, err := LoadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// A state that was is accepted: with all processes stopped, the directory shows one instant.
func TestStoppedWritersShowOneInstant(t *testing.T) {
	r, root, l := start(t)
	last := int64(0)
	for range 100 {
		time.Sleep(3 * time.Millisecond)
		if err := l.Pause(); err != nil {
			t.Fatal(err)
		}
		m, err := Check(r, load(t, root))
		if err != nil {
			t.Fatal(err)
		}
		if m < l.Done() || m > l.Begun() {
			t.Fatalf("the state shows step %d; done %d, begun %d", m, l.Done(), l.Begun())
		}
		last = m
		if err := l.Continue(); err != nil {
			t.Fatal(err)
		}
	}
	if last < 3*r.period() {
		t.Fatalf("only %d steps were taken", last)
	}
}

// Copying one subdot after the other while writers run, as one would without dm, is found out.
func TestCopyUnderLoadIsNotOneInstant(t *testing.T) {
	r, root, l := start(t)
	found := 0
	for range 10 {
		for begun := l.Begun(); l.Begun() < begun+r.period(); {
			time.Sleep(time.Millisecond)
		}
		to := t.TempDir()
		exec.Command("cp", "-a", root+"/.", to).Run() // complains of files that go away meanwhile
		st, err := LoadDir(to)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Check(r, st); err != nil {
			found++
		}
	}
	if found == 0 {
		t.Error("ten copies under load all look like states that were")
	}
}

// For every slot: taking back its last step, and nothing else, is found out, unless that was the last step of all.
func TestEverySlotMatters(t *testing.T) {
	r, root := ring(), t.TempDir()
	s, err := Prepare(r, root)
	if err != nil {
		t.Fatal(err)
	}
	w := newWriter(r, root)
	defer w.close()
	for range 2*r.period() + 7 {
		if err := w.step(s); err != nil {
			t.Fatal(err)
		}
		s++
	}
	good := load(t, root)
	if m, err := Check(r, good); err != nil || m != s-1 {
		t.Fatalf("step %d, want %d: %v", m, s-1, err)
	}
	for slot := range int(r.period()) {
		last := r.last(slot, s-1)
		if last == s-1 || r.kind(slot) == Create && r.last(slot+r.first(Unlink)-r.first(Create), s-1) > last {
			continue // a name that was removed since leaves nothing to be missed
		}
		st := maps.Clone(good)
		takeBack(r, st, slot, last)
		if _, err := Check(r, st); err == nil {
			t.Errorf("step %d (%s) is missing, and that was not found", last, r.describe(slot))
		}
	}
}

// takeBack makes a slot look as it did before the step.
func takeBack(r *Ring, st State, slot int, step int64) {
	prev := step - r.period()
	k := r.kind(slot)
	c := checker{ring: r, st: st}
	p := c.path(slot, k.String())
	f := st[p]
	move := func(from, to string) {
		st[to] = st[from]
		delete(st, from)
	}
	numbered := func(k Kind, slot int, s int64) string { return c.path(slot, "names/"+k.String()+"-"+decimal(s)) }
	switch k {
	case Grow:
		f.Size = prev
	case Shrink:
		f.Size = shrinkFrom - prev
	case SetTime:
		f.Sec = prev
	case SetXattr:
		f.Step = stamp(8, prev)
	case Append:
		f.Data = f.Data[:len(f.Data)-16]
	case Write, Direct, Replace, Map:
		f.Data = stamp(len(f.Data), prev)
	case Create:
		delete(st, numbered(Create, slot, step))
	case Unlink:
		st[numbered(Create, slot-r.first(Unlink)+r.first(Create), r.created(step))] = File{}
	case Rename:
		move(numbered(Rename, slot, step), numbered(Rename, slot, prev))
	case Move:
		before := r.movedBefore(step)
		move(numbered(Move, slot, step), numbered(Move, r.slot(before), before))
	}
	if _, ok := st[p]; ok {
		st[p] = f
	}
}

func decimal(s int64) string {
	var b []byte
	for ; s > 0; s /= 10 {
		b = append(b, byte('0'+s%10))
	}
	slices.Reverse(b)
	return string(b)
}

// A block of a file that is ahead of the other, and a block that is torn in itself, are found out.
func TestTornFilesAreFound(t *testing.T) {
	r, root := ring(), t.TempDir()
	s, err := Prepare(r, root)
	if err != nil {
		t.Fatal(err)
	}
	good := load(t, root)
	for _, at := range []int{0, block, 2*block - 8} {
		st := maps.Clone(good)
		f := st["a/ring/write"]
		f.Data = bytes.Clone(f.Data)
		for i := at; i < min(at+block, len(f.Data)); i += 8 {
			binary.LittleEndian.PutUint64(f.Data[i:], uint64(s+7))
		}
		st["a/ring/write"] = f
		if _, err := Check(r, st); err == nil {
			t.Errorf("torn at %d", at)
		}
	}
}

// A tar archive of a state is the same state.
func TestLoadTar(t *testing.T) {
	r, root := ring(), t.TempDir()
	if _, err := Prepare(r, root); err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(t.TempDir(), "a.tar")
	out, err := exec.Command("tar", "-C", root, "--format=posix", "--xattrs", "--sparse", "-cf", archive, ".").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := LoadTar(f)
	if err != nil {
		t.Fatal(err)
	}
	if m, err := Check(r, st); err != nil || m != r.period()-1 {
		t.Fatalf("step %d: %v", m, err)
	}
	var missing []string
	for p := range load(t, root) {
		if _, ok := st[p]; !ok {
			missing = append(missing, p)
		}
	}
	if len(missing) > 0 {
		t.Error("missing: ", strings.Join(missing, " "))
	}
}
