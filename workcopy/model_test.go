package workcopy

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"dm/internal/errs"
	"dm/object"
)

// memory is a store in memory.
type memory struct {
	mu sync.Mutex
	m  map[object.ID][]byte
}

func newMemory() *memory { return &memory{m: map[object.ID][]byte{}} }

func (s *memory) Put(_ context.Context, k object.Kind, b []byte) (object.ID, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := object.Sum(k, b)
	s.m[id] = append([]byte(nil), b...)
	return id, nil
}

func (s *memory) Get(_ context.Context, k object.Kind, id object.ID) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.m[id]
	if !ok {
		return nil, errs.New(errs.NotFound, "no %s %s", k, id)
	}
	return b, nil
}

// chunkSize is odd, so that chunks and blocks do not end together.
const chunkSize = 10_007

// chunkAll makes the content of a frozen file anew and checks on the way that what is outside of Dirty is as in Base.
func chunkAll(ctx context.Context, s *memory, f *File) (object.Content, error) {
	data := make([]byte, f.Size())
	if _, err := f.ReadAt(data, 0); err != nil {
		return object.Content{}, err
	}
	base, err := readContent(ctx, s, f.Base())
	if err != nil {
		return object.Content{}, err
	}
	dirty := make([]bool, len(data))
	for _, r := range f.Dirty() {
		for i := r.Off; i < r.Off+r.Len; i++ {
			dirty[i] = true
		}
	}
	for i, d := range dirty {
		if !d && (i >= len(base) || base[i] != data[i]) {
			return object.Content{}, fmt.Errorf("%s: byte %d differs from the base and is not dirty", f.Path(), i)
		}
	}
	for off := uint64(0); off < f.Size(); {
		start, end := f.NextData(off)
		for i := off; i < start; i++ {
			if data[i] != 0 {
				return object.Content{}, fmt.Errorf("%s: byte %d is said to be in a hole", f.Path(), i)
			}
		}
		off = end
	}
	return putContent(ctx, s, data)
}

func putContent(ctx context.Context, s *memory, data []byte) (object.Content, error) {
	ed := object.NewListEditor(ctx, s, s, object.Content{}, object.CutFixed)
	for len(data) > 0 {
		piece := data[:min(len(data), chunkSize)]
		data = data[len(piece):]
		sp := object.Span{Size: uint64(len(piece))}
		if !allZero(piece) {
			sp.ID, _ = s.Put(ctx, object.KindChunk, piece)
		}
		if err := ed.Add(sp); err != nil {
			return object.Content{}, err
		}
	}
	return ed.Finish()
}

func allZero(p []byte) bool { return len(bytes.Trim(p, "\x00")) == 0 }

func readContent(ctx context.Context, s object.Source, c object.Content) ([]byte, error) {
	data := make([]byte, c.Size)
	err := object.WalkSpans(ctx, s, c, 0, func(off uint64, sp object.Span) error {
		if sp.ID.IsZero() {
			return nil
		}
		b, err := s.Get(ctx, object.KindChunk, sp.ID)
		copy(data[off:], b)
		return err
	})
	return data, err
}

// branch is where commits of a test go.
type branch struct {
	store *memory
	id    object.ID
}

func (b *branch) commit(ctx context.Context, c *Copy, during func()) (object.ID, error) {
	s, err := c.Freeze(ctx)
	if err != nil {
		return object.ID{}, err
	}
	defer s.Abort()
	if during != nil {
		during()
	}
	if err := b.prepare(ctx, s, nil); err != nil {
		return b.id, err
	}
	return b.id, s.Done(ctx)
}

// prepare makes a commit of a snapshot and moves the branch to it. between is called before each file and at the end.
func (b *branch) prepare(ctx context.Context, s *Snapshot, between func()) (err error) {
	if between == nil {
		between = func() {}
	}
	for _, f := range s.Files() {
		between()
		content, err := chunkAll(ctx, b.store, f)
		if err != nil {
			return err
		}
		f.SetContent(content)
	}
	between()
	commit := &object.Commit{Time: time.Unix(1, 0).UTC()}
	if commit.Root, commit.Links, commit.NextIno, err = s.Root(ctx, b.store); err != nil {
		return err
	}
	if !b.id.IsZero() {
		commit.Parents = []object.ID{b.id}
	}
	if err := commit.Check(); err != nil {
		return err
	}
	id, _ := b.store.Put(ctx, object.KindCommit, commit.Encode())
	if err := s.Prepare(ctx, id, commit); err != nil {
		return err
	}
	b.id = id
	return nil
}

// state is a tree as a test sees it: path to a description of what is there.
type state map[string]string

func describe(a Attr, data []byte, target string) string {
	d := fmt.Sprintf("%o %d:%d mtime %d.%d", a.Mode, a.UID, a.GID, a.Mtime.Sec, a.Mtime.Nsec)
	switch a.Mode & object.ModeType {
	case object.ModeRegular:
		d += fmt.Sprintf(" nlink %d size %d %s", a.Nlink, len(data), object.Sum(object.KindChunk, data).Short())
	case object.ModeSymlink:
		d += " -> " + target
	}
	return d
}

// read walks a working copy the way the kernel does.
func read(ctx context.Context, c *Copy) (state, error) {
	st := state{}
	id, _, err := c.Lookup(ctx, RootID, ".")
	if err != nil {
		return nil, err
	}
	defer c.Forget(id, 1)
	return st, readDir(ctx, c, id, "", st)
}

func readDir(ctx context.Context, c *Copy, dir NodeID, prefix string, st state) error {
	var names []string
	var cookie uint64
	for { // in small pages, to exercise cookies
		n := 0
		if err := c.ReadDir(ctx, dir, cookie, func(e DirEntry) bool {
			names = append(names, e.Name)
			cookie = e.Cookie
			n++
			return n < 7
		}); err != nil {
			return err
		}
		if n == 0 {
			break
		}
	}
	subdirs := uint32(0)
	for _, name := range names {
		id, a, err := c.Lookup(ctx, dir, name)
		if err != nil {
			return fmt.Errorf("%s%s is listed: %w", prefix, name, err)
		}
		p := prefix + name
		if _, twice := st[p]; twice {
			return fmt.Errorf("%s is listed twice", p)
		}
		var data []byte
		var target string
		switch a.Mode & object.ModeType {
		case object.ModeDir:
			subdirs++
			if err := readDir(ctx, c, id, p+"/", st); err != nil {
				return err
			}
		case object.ModeRegular:
			data = make([]byte, a.Size)
			n, err := c.Read(ctx, id, data, 0)
			if err != nil || n != len(data) {
				return fmt.Errorf("read %s: %d of %d, %w", p, n, len(data), err)
			}
		case object.ModeSymlink:
			if target, err = c.Readlink(ctx, id); err != nil {
				return err
			}
		}
		st[p] = describe(a, data, target)
		c.Forget(id, 1)
	}
	if a, err := c.GetAttr(ctx, dir); err != nil || a.Nlink != 2+subdirs {
		return fmt.Errorf("%q has %d links and %d subdirectories, %v", prefix, a.Nlink, subdirs, err)
	}
	return nil
}

// committed walks a commit.
func committed(ctx context.Context, s *memory, id object.ID) (state, error) {
	st := state{}
	commit, err := readCommit(ctx, s, id)
	if err != nil {
		return nil, err
	}
	var walk func(tree object.ID, prefix string) error
	walk = func(tree object.ID, prefix string) error {
		return object.WalkTree(ctx, s, tree, "", func(e *object.Entry) error {
			full := *e
			if e.Linked {
				l, ok, err := object.LookupTree(ctx, s, commit.Links, object.LinkName(e.Ino))
				if err != nil || !ok {
					return fmt.Errorf("no link entry of %s: %w", e.Name, err)
				}
				full = l
			}
			a := Attr{Mode: full.Mode, UID: full.UID, GID: full.GID, Nlink: max(1, full.Nlink), Mtime: Time{full.Sec, full.Nsec}}
			data, err := readContent(ctx, s, full.Content)
			if err != nil {
				return err
			}
			st[prefix+e.Name] = describe(a, data, full.Target)
			if e.IsDir() {
				return walk(e.Tree, prefix+e.Name+"/")
			}
			return nil
		})
	}
	return st, walk(commit.Root.Tree, "")
}

func (st state) diff(o state) string {
	var out []string
	for p, d := range st {
		if o[p] != d {
			out = append(out, fmt.Sprintf("%s:\n\t%s\n\t%s", p, d, o[p]))
		}
	}
	for p, d := range o {
		if _, ok := st[p]; !ok {
			out = append(out, fmt.Sprintf("%s:\n\t-\n\t%s", p, d))
		}
	}
	sort.Strings(out)
	return strings.Join(out, "\n")
}

// kill leaves a working copy as a killed server does.
func kill(c *Copy) {
	c.stop()
	c.tasks.Wait()
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.closeFiles()
	c.journal.f.Close()
}

// TestHistories plays random histories: whatever happens, commits hold exactly the state at their cut, and the working
// copy survives restarts, kills and resets with exactly what was in it.
func TestHistories(t *testing.T) {
	for seed := range uint64(rounds(t, 16)) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			playHistory(t, seed, 400)
		})
	}
}

// rounds returns how often to repeat: ci times, or what DM_ROUNDS says for a long campaign.
func rounds(t *testing.T, ci int) int {
	if s := os.Getenv("DM_ROUNDS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	return ci
}

// fastDir returns a directory on which fsync costs nothing: histories are about logic, not about durability.
func fastDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "dm-workcopy-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func playHistory(t *testing.T, seed uint64, steps int) {
	ctx := context.Background()
	store := newMemory()
	dir := fastDir(t)
	cfg := Config{Source: store, tick: 2 * time.Millisecond}
	c, err := Create(ctx, dir, cfg, object.ID{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	b := &branch{store: store}
	p := &player{t: t, rnd: rand.New(rand.NewPCG(seed, 7)), ctx: ctx, c: c, dirs: []string{"."}}
	defer func() {
		switch {
		case p.c == nil:
		case t.Failed(): // a commit may be open
			kill(p.c)
		default:
			p.c.Close(ctx)
		}
	}()
	commits := map[object.ID]state{}
	check := func(want state, what string) {
		t.Helper()
		got, err := read(ctx, p.c)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if d := want.diff(got); d != "" {
			t.Fatalf("%s: want, got\n%s", what, d)
		}
	}
	for i := range steps {
		for range 1 + p.rnd.IntN(4) {
			if err := p.step(); err != nil {
				t.Fatalf("step %d: %v", i, err)
			}
		}
		if err := p.c.broken(); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
		switch p.rnd.IntN(12) {
		case 0, 1: // commit, with changes after the cut
			before, err := read(ctx, p.c)
			if err != nil {
				t.Fatalf("step %d: %v", i, err)
			}
			id, err := b.commit(ctx, p.c, func() {
				for range p.rnd.IntN(12) {
					if err := p.step(); err != nil {
						t.Fatalf("step %d, after the cut: %v", i, err)
					}
				}
			})
			if err != nil {
				t.Fatalf("step %d: commit: %v", i, err)
			}
			got, err := committed(ctx, store, id)
			if err != nil {
				t.Fatal(err)
			}
			if d := before.diff(got); d != "" {
				t.Fatalf("step %d: at the cut, in the commit\n%s", i, d)
			}
			commits[id] = got
		case 2: // a commit given up
			s, err := p.c.Freeze(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for range p.rnd.IntN(6) {
				if err := p.step(); err != nil {
					t.Fatal(err)
				}
			}
			before, _ := read(ctx, p.c)
			s.Abort()
			check(before, fmt.Sprintf("step %d: after an abort", i))
		case 3, 4:
			before, err := read(ctx, p.c)
			if err != nil {
				t.Fatal(err)
			}
			if p.rnd.IntN(2) == 0 {
				kill(p.c)
			} else if err := p.c.Close(ctx); err != nil {
				t.Fatal(err)
			}
			p.held = nil
			if p.c, err = Open(ctx, dir, cfg, b.id); err != nil {
				t.Fatalf("step %d: open: %v", i, err)
			}
			check(before, fmt.Sprintf("step %d: after a restart", i))
		case 5:
			if p.rnd.IntN(4) == 0 && len(commits) > 0 {
				for id, want := range commits {
					commit, _ := readCommit(ctx, store, id)
					if err := p.c.Reset(ctx, id, commit, func() error { b.id = id; return nil }); err != nil {
						t.Fatal(err)
					}
					check(want, fmt.Sprintf("step %d: after a reset", i))
					break
				}
			}
		case 6:
			if err := p.c.promote(); err != nil {
				t.Fatal(err)
			}
			if err := p.c.settleDown(); err != nil {
				t.Fatal(err)
			}
		case 7:
			before, _ := read(ctx, p.c)
			if err := p.c.compact(); err != nil {
				t.Fatal(err)
			}
			check(before, "after a compaction")
		case 8, 9:
			p.overlap(b, dir, cfg, fmt.Sprintf("step %d", i))
		}
		if i%10 == 0 {
			checkTotals(t, p.c)
		}
	}
}

// checkTotals compares the sums kept along the way with a count.
func checkTotals(t *testing.T, c *Copy) {
	t.Helper()
	ctx := context.Background()
	st, err := c.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var size, files uint64
	seen := map[uint64]bool{}
	var walk func(dir NodeID)
	walk = func(dir NodeID) {
		c.ReadDir(ctx, dir, 0, func(e DirEntry) bool {
			id, a, err := c.Lookup(ctx, dir, e.Name)
			if err != nil {
				t.Fatal(err)
			}
			switch a.Mode & object.ModeType {
			case object.ModeDir:
				walk(id)
			case object.ModeRegular:
				if !seen[a.Ino] {
					size += a.Size
				}
				seen[a.Ino] = true
				files++
			default:
				files++
			}
			c.Forget(id, 1)
			return true
		})
	}
	walk(RootID)
	if st.Size != size || st.Files != files {
		t.Fatalf("status says %d bytes in %d files, there are %d in %d", st.Size, st.Files, size, files)
	}
}
