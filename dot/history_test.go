package dot

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"dm/internal/errs"
)

// model is what a dot should be: per branch its files, and per commit the files it holds. A nil content is a directory.
type model struct {
	h        *home
	n        Name
	branches map[string]*modelBranch
	current  string
	commits  map[string]map[string][]byte
	parents  map[string]string
}

type modelBranch struct {
	files map[string][]byte
	tip   string
	dirty bool
}

func (m *model) now() *modelBranch { return m.branches[m.current] }

func (m *model) pick(t *rapid.T, dirs bool) string {
	var list []string
	for p, data := range m.now().files {
		if (data == nil) == dirs {
			list = append(list, p)
		}
	}
	if len(list) == 0 {
		return ""
	}
	slices.Sort(list)
	return rapid.SampledFrom(list).Draw(t, "path")
}

// free returns a path that is not taken, in some directory.
func (m *model) free(t *rapid.T) string {
	p := path.Join(m.pick(t, true), fmt.Sprintf("n%d", rapid.IntRange(0, 30).Draw(t, "name")))
	if _, taken := m.now().files[p]; taken || strings.Count(p, "/") > 4 {
		return ""
	}
	return p
}

func (m *model) content(t *rapid.T) []byte {
	data := make([]byte, rapid.SampledFrom([]int{0, 1, 4000, 20_000, 65_536, 200_000, 1 << 20}).Draw(t, "size"))
	random(data, rapid.Uint64Range(0, 50).Draw(t, "seed"))
	return data
}

// edit changes the working copy of the current branch.
func (m *model) edit(t *rapid.T) {
	f, b := m.h.fs(m.n), m.now()
	switch rapid.SampledFrom([]string{"new", "new", "rewrite", "patch", "patch", "mkdir", "remove", "rename"}).Draw(t, "edit") {
	case "new":
		if p := m.free(t); p != "" {
			b.files[p] = m.content(t)
			f.write(p, b.files[p])
			b.dirty = true
		}
	case "rewrite":
		if p := m.pick(t, false); p != "" {
			b.files[p] = m.content(t)
			f.write(p, b.files[p])
			b.dirty = true
		}
	case "patch":
		if p := m.pick(t, false); p != "" && len(b.files[p]) > 0 {
			data := bytes.Clone(b.files[p])
			off := rapid.IntRange(0, len(data)-1).Draw(t, "off")
			end := min(len(data), off+rapid.SampledFrom([]int{1, 5000, 100_000}).Draw(t, "len"))
			random(data[off:end], rapid.Uint64().Draw(t, "seed"))
			f.writeAt(p, int64(off), data[off:end])
			b.files[p] = data
			b.dirty = true
		}
	case "mkdir":
		if p := m.free(t); p != "" {
			f.mkdir(p)
			b.files[p] = nil
			b.dirty = true
		}
	case "remove":
		if p := m.pick(t, rapid.Bool().Draw(t, "dir")); p != "" && p != "s" {
			f.remove(p)
			maps.DeleteFunc(b.files, func(q string, _ []byte) bool { return q == p || strings.HasPrefix(q, p+"/") })
			b.dirty = true
		}
	case "rename":
		from, to := m.pick(t, rapid.Bool().Draw(t, "dir")), m.free(t)
		if from == "" || from == "s" || to == "" || strings.HasPrefix(to, from+"/") {
			return
		}
		f.rename(from, to)
		for q, data := range maps.Clone(b.files) {
			if q == from || strings.HasPrefix(q, from+"/") {
				delete(b.files, q)
				b.files[to+q[len(from):]] = data
			}
		}
		b.dirty = true
	}
}

func (m *model) commit(t *rapid.T) {
	r := m.h.commit(m.n, "m")
	b := m.now()
	if old := m.commits[r.Commit]; old != nil {
		t.Fatalf("commit %s was made twice", r.Commit)
	}
	m.commits[r.Commit], m.parents[r.Commit] = maps.Clone(b.files), b.tip
	b.tip, b.dirty = r.Commit, false
}

func (m *model) checkout(t *rapid.T) {
	ctx := context.Background()
	name := fmt.Sprintf("b%d", rapid.IntRange(0, 3).Draw(t, "branch"))
	_, there := m.branches[name]
	var err error
	if there {
		err = m.h.Checkout(ctx, m.n, name)
	} else {
		err = m.h.branchOut(ctx, m.n, name)
	}
	switch {
	case m.now().tip == "" && !there:
		if errs.KindOf(err) != errs.Conflict {
			t.Fatalf("branching off nothing: %v", err)
		}
		return
	case err != nil:
		t.Fatal(err)
	case !there:
		m.branches[name] = &modelBranch{files: maps.Clone(m.commits[m.now().tip]), tip: m.now().tip}
	}
	m.current = name
}

func (m *model) reset(t *rapid.T) {
	if len(m.commits) == 0 {
		return
	}
	id := rapid.SampledFrom(sortedKeys(m.commits)).Draw(t, "commit")
	hard := rapid.Bool().Draw(t, "hard")
	_, err := m.h.Reset(context.Background(), m.n, id, hard)
	b := m.now()
	if b.dirty && !hard {
		// What was changed and changed back may count as clean.
		if err != nil && errs.KindOf(err) != errs.Conflict {
			t.Fatal(err)
		}
		if err != nil {
			return
		}
	} else if err != nil {
		t.Fatal(err)
	}
	b.files, b.tip, b.dirty = maps.Clone(m.commits[id]), id, false
}

func (m *model) restore(t *rapid.T) {
	if len(m.commits) == 0 {
		return
	}
	id := rapid.SampledFrom(sortedKeys(m.commits)).Draw(t, "commit")
	files := m.commits[id]
	p := rapid.SampledFrom(sortedKeys(files)).Draw(t, "restore")
	b := m.now()
	for d := path.Dir(p); d != "."; d = path.Dir(d) {
		if data, there := b.files[d]; there && data != nil {
			return // a file is where a directory would have to be
		}
	}
	if err := m.h.Restore(context.Background(), m.n, id, p); err != nil {
		t.Fatal(err)
	}
	maps.DeleteFunc(b.files, func(q string, _ []byte) bool { return q == p || strings.HasPrefix(q, p+"/") })
	for d := path.Dir(p); d != "."; d = path.Dir(d) {
		b.files[d] = nil
	}
	for q, data := range files {
		if q == p || strings.HasPrefix(q, p+"/") {
			b.files[q] = data
		}
	}
	b.dirty = true
}

// check compares everything with the model.
func (m *model) check(t *rapid.T) {
	ctx := context.Background()
	b := m.now()
	if got := m.h.fs(m.n).all(); !sameFiles(got, b.files) {
		t.Fatalf("branch %s holds %v, want %v; first difference %s", m.current, describe(got), describe(b.files), difference(got, b.files))
	}
	st, err := m.h.Status(ctx, m.n)
	if err != nil || st.Branch != m.current || st.Commit != b.tip || !b.dirty && (st.Dirty != 0 || st.Changed != 0) {
		t.Fatalf("status %+v, %v; want tip %s, dirty %v", st, err, b.tip, b.dirty)
	}
	size, depth := uint64(0), 0
	for _, data := range b.files {
		size += uint64(len(data))
	}
	for id := b.tip; id != ""; id = m.parents[id] {
		depth++
	}
	if l, err := m.h.List(ctx); err != nil || l[0].Error != "" || l[0].Size != size || l[0].Commits != uint64(depth) {
		t.Fatalf("list %+v, %v; want size %d, %d commits", l, err, size, depth)
	}
	if b.tip == "" {
		return
	}
	m.checkDiff(t, "", m.commits[b.tip])
	id := rapid.SampledFrom(sortedKeys(m.commits)).Draw(t, "look at")
	m.checkDiff(t, id, m.commits[id])
	for p, data := range m.commits[id] {
		if data == nil {
			continue
		}
		var got bytes.Buffer
		if err := m.h.Cat(ctx, m.n, id, p, &got); err != nil || !bytes.Equal(got.Bytes(), data) {
			t.Fatalf("commit %s, %s: %v", id, p, err)
		}
	}
}

// checkDiff applies a diff to the names of a commit, which must give the names of the working copy, and looks for every
// changed content in it.
func (m *model) checkDiff(t *rapid.T, rev string, old map[string][]byte) {
	changes, err := m.h.Diff(context.Background(), m.n, rev, "")
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for p := range old {
		names[p] = true
	}
	moved, listed := map[string]string{}, map[string]bool{}
	for _, c := range changes {
		listed[c.Path] = true
		switch c.Kind {
		case Removed:
			delete(names, c.Path)
		case Renamed:
			moved[c.OldPath] = c.Path
		}
	}
	after := map[string]bool{}
	for p := range names { // a name moves with the nearest directory above it that did
		q, rest := p, ""
		for q != "." {
			if to, ok := moved[q]; ok {
				q = to
				break
			}
			rest = path.Join(path.Base(q), rest)
			q = path.Dir(q)
		}
		after[path.Join(q, rest)] = true
	}
	for _, c := range changes {
		if c.Kind == Added {
			after[c.Path] = true
		}
	}
	now := m.now().files
	for p, data := range now {
		if !after[p] {
			t.Fatalf("diff from %q does not give %s: %q", rev, p, lines(changes))
		}
		if before, ok := old[p]; ok && data != nil && !bytes.Equal(before, data) && !listed[p] && before != nil && len(moved) == 0 {
			t.Fatalf("diff from %q does not list the changed %s: %q", rev, p, lines(changes))
		}
	}
	for p := range after {
		if _, ok := now[p]; !ok {
			t.Fatalf("diff from %q gives %s, which is not there: %q", rev, p, lines(changes))
		}
	}
}

func sameFiles(a, b map[string][]byte) bool {
	return maps.EqualFunc(a, b, func(x, y []byte) bool { return (x == nil) == (y == nil) && bytes.Equal(x, y) })
}

// difference tells where two sets of files with the same names begin to differ.
func difference(a, b map[string][]byte) string {
	for _, p := range sortedKeys(a) {
		for i := range min(len(a[p]), len(b[p])) {
			if a[p][i] != b[p][i] {
				return fmt.Sprintf("%s at %d: %x, want %x", p, i, a[p][i:min(i+4, len(a[p]))], b[p][i:min(i+4, len(b[p]))])
			}
		}
	}
	return "in names or sizes"
}

func describe(m map[string][]byte) (list []string) {
	for _, p := range sortedKeys(m) {
		list = append(list, fmt.Sprintf("%s:%d", p, len(m[p])))
	}
	return list
}

// Random histories of edits, commits, branches, resets, restores and restarts, against a model.
func TestRandomHistories(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		h := &home{t: rt, dir: t.TempDir()}
		h.open()
		defer h.shut()
		m := &model{
			h: h, n: h.create("d", "s"), current: DefaultBranch,
			branches: map[string]*modelBranch{DefaultBranch: {files: map[string][]byte{"s": nil}, dirty: true}},
			commits:  map[string]map[string][]byte{}, parents: map[string]string{},
		}
		for range rapid.IntRange(5, 30).Draw(rt, "steps") {
			switch rapid.SampledFrom([]string{"edit", "edit", "edit", "edit", "commit", "commit", "checkout", "reset", "restore", "reopen"}).Draw(rt, "step") {
			case "edit":
				m.edit(rt)
			case "commit":
				m.commit(rt)
			case "checkout":
				m.checkout(rt)
			case "reset":
				m.reset(rt)
			case "restore":
				m.restore(rt)
			case "reopen":
				h.reopen()
			}
			m.check(rt)
		}
	})
}
