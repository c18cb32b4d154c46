package dot

import (
	"context"
	"fmt"
	"path"
	"reflect"
	"sort"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"dm/internal/errs"
	"dm/object"
)

func ident(n uint64) object.ID { return object.Sum(object.KindChunk, fmt.Append(nil, n)) }

func plainFile(name string, ino, content uint64) *object.Entry {
	return &object.Entry{
		Name: name, Ino: ino, Mode: object.ModeRegular | 0o644,
		Content: object.Content{Size: 100, Root: ident(content)},
	}
}

func editTree(t fatal, m *memory, base object.ID, edits map[string]*object.Entry) (object.ID, object.Totals) {
	var list []object.Edit
	for name, e := range edits {
		list = append(list, object.Edit{Name: name, Entry: e})
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Name < list[j].Name })
	id, totals, err := object.EditTree(context.Background(), m, m, base, list)
	if err != nil {
		t.Fatal(err)
	}
	return id, totals
}

// The difference of two trees of one directory is the difference of the maps they stand for.
func TestDiffDirIsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMemory()
		old, new := map[string]*object.Entry{}, map[string]*object.Entry{}
		for i := range uint64(rapid.IntRange(0, 3000).Draw(t, "names")) {
			name := fmt.Sprintf("n%d", i*7919%10007)
			old[name] = plainFile(name, i+2, i)
			new[name] = old[name]
		}
		want := map[string][2]*object.Entry{}
		for range rapid.IntRange(0, 300).Draw(t, "edits") {
			i := rapid.Uint64Range(0, 3500).Draw(t, "i")
			name := fmt.Sprintf("n%d", i*7919%10007)
			if rapid.Bool().Draw(t, "delete") {
				delete(new, name)
			} else {
				new[name] = plainFile(name, i+2, i+5000)
			}
			want[name] = [2]*object.Entry{old[name], new[name]}
			if old[name] == nil && new[name] == nil {
				delete(want, name)
			}
		}
		from, _ := editTree(t, m, object.ID{}, old)
		to, _ := editTree(t, m, object.ID{}, new)
		last := ""
		err := diffDir(context.Background(), m, from, to, func(o, n *object.Entry) error {
			name := ""
			for _, e := range []*object.Entry{o, n} {
				if e != nil {
					name = e.Name
				}
			}
			if name <= last {
				t.Fatalf("%s comes after %s", name, last)
			}
			last = name
			w, ok := want[name]
			if !ok || !reflect.DeepEqual(w, [2]*object.Entry{o, n}) {
				t.Fatalf("%s: %v %v, want %v", name, o, n, w)
			}
			delete(want, name)
			return nil
		})
		if err != nil || len(want) != 0 {
			t.Fatalf("%v; not found: %v", err, want)
		}
	})
}

func TestDiffDirReadsLittle(t *testing.T) {
	m := newMemory()
	all := map[string]*object.Entry{}
	for i := range uint64(200_000) {
		name := fmt.Sprintf("file-%06d", i)
		all[name] = plainFile(name, i+2, i)
	}
	from, _ := editTree(t, m, object.ID{}, all)
	to, _ := editTree(t, m, from, map[string]*object.Entry{
		"file-050000": nil, "file-123456": plainFile("file-123456", 5, 1e9), "file-123456x": plainFile("file-123456x", 1e6, 3),
	})
	m.gets = 0
	found := 0
	if err := diffDir(context.Background(), m, from, to, func(_, _ *object.Entry) error { found++; return nil }); err != nil {
		t.Fatal(err)
	}
	if found != 3 || m.gets > 24 {
		t.Errorf("found %d of 3 differences with %d reads", found, m.gets)
	}
}

// treeOf builds directories from paths; a path that ends with a slash is a directory with the inode of its entry.
func treeOf(t fatal, m *memory, files map[string]*object.Entry) state {
	dirs := map[string]map[string]*object.Entry{"": {}}
	inos := map[string]uint64{}
	for p, e := range files {
		if d, ok := strings.CutSuffix(p, "/"); ok {
			inos[d] = e.Ino
			if dirs[d] == nil {
				dirs[d] = map[string]*object.Entry{}
			}
			continue
		}
		e := *e
		e.Name = path.Base(p)
		dir := strings.TrimPrefix(path.Dir("/"+p), "/")
		if dirs[dir] == nil {
			dirs[dir] = map[string]*object.Entry{}
		}
		dirs[dir][e.Name] = &e
	}
	names := sortedKeys(dirs)
	sort.Slice(names, func(i, j int) bool { return strings.Count(names[i], "/") > strings.Count(names[j], "/") })
	s := emptyState(m)
	for _, d := range names {
		if d == "" {
			continue
		}
		tree, totals := editTree(t, m, object.ID{}, dirs[d])
		parent := strings.TrimPrefix(path.Dir("/"+d), "/")
		dirs[parent][path.Base(d)] = &object.Entry{
			Name: path.Base(d), Ino: inos[d], Mode: object.ModeDir | 0o755, Tree: tree, Totals: totals,
		}
	}
	s.root.Tree, s.root.Totals = editTree(t, m, object.ID{}, dirs[""])
	return s
}

func dirEntry(ino uint64) *object.Entry { return &object.Entry{Ino: ino, Mode: object.ModeDir | 0o755} }

func lines(changes []Change) (list []string) {
	for _, c := range changes {
		s := fmt.Sprintf("%s %s %d", c.Kind, c.Path, c.Bytes)
		if c.OldPath != "" {
			s += " from " + c.OldPath
		}
		list = append(list, s)
	}
	return list
}

func TestDiffStates(t *testing.T) {
	type files = map[string]*object.Entry
	base := files{
		"db/": dirEntry(2), "db/a": plainFile("", 10, 1), "db/b": plainFile("", 11, 2),
		"db/old/": dirEntry(3), "db/old/x": plainFile("", 12, 3), "db/old/y": plainFile("", 13, 4),
		"www/": dirEntry(4), "www/i": plainFile("", 14, 5),
	}
	touched := plainFile("", 10, 1)
	touched.Sec = 77
	for _, c := range []struct {
		name string
		edit files // nil: removed
		want []string
	}{
		{"nothing", files{}, nil},
		{"modified", files{"db/a": plainFile("", 10, 9)}, []string{"M db/a 100"}},
		{"touched", files{"db/a": touched}, []string{"M db/a 0"}},
		{"added and removed", files{"db/a": nil, "www/n": plainFile("", 99, 9)}, []string{"- db/a 100", "+ www/n 100"}},
		{"renamed", files{"db/a": nil, "www/a2": plainFile("", 10, 1)}, []string{"R www/a2 0 from db/a"}},
		{"renamed and modified", files{"db/a": nil, "db/z": plainFile("", 10, 9)}, []string{"R db/z 100 from db/a"}},
		{"renamed over", files{"db/a": nil, "db/b": plainFile("", 10, 1)}, []string{"R db/b 0 from db/a", "- db/b 100"}},
		{"replaced", files{"db/a": plainFile("", 99, 9)}, []string{"M db/a 100"}},
		{
			"replaced by a symlink",
			files{"db/a": &object.Entry{Ino: 99, Mode: object.ModeSymlink | 0o777, Target: "b"}},
			[]string{"M db/a 0"},
		},
		{
			"swapped",
			files{"db/a": plainFile("", 11, 2), "db/b": plainFile("", 10, 1)},
			[]string{"R db/a 0 from db/b", "R db/b 0 from db/a"},
		},
		{"directory renamed", files{
			"db/old/": nil, "db/old/x": nil, "db/old/y": nil,
			"www/new/": dirEntry(3), "www/new/x": plainFile("", 12, 3), "www/new/y": plainFile("", 13, 8),
		}, []string{"R www/new 0 from db/old", "M www/new/y 100"}},
		{"moved out of a removed directory", files{
			"db/old/": nil, "db/old/x": nil, "db/old/y": nil, "www/x": plainFile("", 12, 3),
		}, []string{"- db/old 0", "- db/old/y 100", "R www/x 0 from db/old/x"}},
		{
			"directory replaced by file",
			files{"db/old/": nil, "db/old/x": nil, "db/old/y": nil, "db/old": plainFile("", 99, 9)},
			[]string{"- db/old 0", "+ db/old 100", "- db/old/x 100", "- db/old/y 100"},
		},
		{"directory made anew", files{"db/old/": dirEntry(99), "db/old/x": plainFile("", 98, 9)}, []string{"M db/old/x 100"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMemory()
			after := files{}
			for p, e := range base {
				after[p] = e
			}
			for p, e := range c.edit {
				if after[p] = e; e == nil {
					delete(after, p)
				}
			}
			got, err := diffStates(context.Background(), treeOf(t, m, base), treeOf(t, m, after))
			if err != nil {
				t.Fatal(err)
			}
			have := lines(got)
			sort.Strings(have)
			sort.Strings(c.want)
			if !reflect.DeepEqual(have, c.want) {
				t.Errorf("got %q\nwant %q", have, c.want)
			}
		})
	}
}

// A commit may come from a stranger, with directories nested so deep that to write down their paths takes all memory.
func TestNestedTooDeep(t *testing.T) {
	m := newMemory()
	nest := func(file *object.Entry, deep int) state {
		file.Name = "f"
		e, totals := *file, object.Totals{}
		for range deep {
			var root object.ID
			var err error
			if root, totals, err = object.EditTree(t.Context(), m, m, object.ID{}, []object.Edit{{Name: e.Name, Entry: &e}}); err != nil {
				t.Fatal(err)
			}
			e = *dirEntry(2)
			e.Name, e.Tree, e.Totals = "d", root, totals
		}
		return state{src: m, root: e}
	}
	for deep, want := range map[int]errs.Kind{1000: 0, 20_000: errs.Usage} {
		a, b := nest(plainFile("", 10, 1), deep), nest(plainFile("", 10, 9), deep)
		paths := 0
		err := a.walk(t.Context(), a.root.Tree, "", func(string, *object.Entry) error { paths++; return nil })
		if want == 0 && (err != nil || paths != deep) || want != 0 && errs.KindOf(err) != want {
			t.Errorf("%d deep: %d paths, %v", deep, paths, err)
		}
		for _, from := range []state{emptyState(m), a} {
			if _, err := diffStates(t.Context(), from, b); (err != nil) != (want != 0) || err != nil && errs.KindOf(err) != want {
				t.Errorf("difference %d deep: %v", deep, err)
			}
		}
	}
}

// A hard-linked file's change is in the link table alone; the diff finds its names.
func TestDiffFindsHardLinks(t *testing.T) {
	m := newMemory()
	link := func() *object.Entry {
		return &object.Entry{Ino: 10, Mode: object.ModeRegular, Linked: true}
	}
	files := map[string]*object.Entry{"a/": dirEntry(2), "a/x": link(), "b/": dirEntry(3), "b/y": link(), "b/z": plainFile("", 11, 1)}
	table := func(content uint64) object.ID {
		e := plainFile(object.LinkName(10), 10, content)
		e.Nlink = 2
		id, _ := editTree(t, m, object.ID{}, map[string]*object.Entry{e.Name: e})
		return id
	}
	from, to := treeOf(t, m, files), treeOf(t, m, files)
	from.links, to.links = table(1), table(2)
	got, err := diffStates(context.Background(), from, to)
	if want := []string{"M a/x 100", "M b/y 100"}; err != nil || !reflect.DeepEqual(lines(got), want) {
		t.Errorf("got %q, %v; want %q", lines(got), err, want)
	}
}

// The number of changed bytes is that of a comparison chunk by chunk.
func TestChangedBytes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMemory()
		ctx := context.Background()
		var old, new []object.Span
		for i := range uint64(rapid.IntRange(1, 600).Draw(t, "chunks")) {
			s := object.Span{Size: 10, ID: ident(i)}
			if rapid.IntRange(0, 9).Draw(t, "hole") == 0 {
				s.ID = object.ID{}
			}
			old = append(old, s)
			if rapid.IntRange(0, 19).Draw(t, "edit") == 0 {
				s.ID = ident(i + 1e6)
			}
			new = append(new, s)
		}
		new = new[:rapid.IntRange(0, len(new)).Draw(t, "cut")]
		want := uint64(10 * (len(old) - len(new)))
		for i := range new {
			if new[i] != old[i] {
				want += 10
			}
		}
		build := func(list []object.Span) object.Content {
			ed := object.NewListEditor(ctx, m, m, object.Content{}, object.CutFixed)
			for _, s := range list {
				if err := ed.Add(s); err != nil {
					t.Fatal(err)
				}
			}
			c, err := ed.Finish()
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		got, err := object.ChangedBytes(ctx, m, build(old), build(new))
		if err != nil || got != want {
			t.Fatalf("%d bytes changed, %v; want %d", got, err, want)
		}
	})
}
