package object

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"dm/internal/errs"
)

// Everything that decodes must encode to the same bytes, and nothing may panic: the bytes come from strangers.

func seeds(f *testing.F, kind Kind) {
	for _, v := range examples() {
		if k, b := encode(v); k == kind {
			f.Add(b)
		}
	}
	f.Add([]byte{})
	f.Add([]byte{1})
	f.Add(bytes.Repeat([]byte{0xff}, 40))
}

func FuzzDecodeList(f *testing.F) {
	seeds(f, KindList)
	f.Fuzz(func(t *testing.T, b []byte) { canonical(t, KindList, b) })
}

func FuzzDecodeTree(f *testing.F) {
	seeds(f, KindTree)
	f.Fuzz(func(t *testing.T, b []byte) { canonical(t, KindTree, b) })
}

func FuzzDecodeCommit(f *testing.F) {
	seeds(f, KindCommit)
	f.Fuzz(func(t *testing.T, b []byte) { canonical(t, KindCommit, b) })
}

func FuzzDecodeEntry(f *testing.F) {
	for _, e := range exampleDirectory().Entries {
		f.Add(AppendEntry(nil, &e))
	}
	root := exampleCommit().Root
	f.Add(append(AppendEntry(nil, &root), "what follows"...))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, rest, err := DecodeEntry(b)
		if err != nil {
			return
		}
		if again := append(AppendEntry(nil, &e), rest...); !bytes.Equal(again, b) {
			t.Errorf("an entry decodes, and encodes to other bytes:\n%s%s", hex.Dump(b), hex.Dump(again))
		}
		if err := e.Check(); err != nil {
			t.Errorf("an entry decodes, and Check says %v", err)
		}
	})
}

// edited returns a copy of the entry "small" after a change of it, in a tree of its own.
func edited(change func(e *Entry)) []byte {
	e := exampleDirectory().Entries[7]
	e.Xattrs = append([]Xattr(nil), e.Xattrs...)
	change(&e)
	return (&Tree{Level: 1, Entries: []Entry{e}}).Encode()
}

func hostileTrees() map[string][]byte {
	two := func(a, b string) []byte {
		return (&Tree{Level: 1, Entries: []Entry{*file(a, 2), *file(b, 3)}}).Encode()
	}
	named := func(name string) []byte { return edited(func(e *Entry) { e.Name = name }) }
	xattrs := func(x ...Xattr) []byte { return edited(func(e *Entry) { e.Xattrs = x }) }
	return map[string][]byte{
		"no items":                 {1, 1, 0},
		"level 0":                  {1, 0, 1},
		"level 17":                 {1, 17, 1},
		"count without items":      binary.AppendUvarint([]byte{1, 1}, 1<<21),
		"count above 64 bits":      append([]byte{1, 1}, bytes.Repeat([]byte{0xff}, 11)...),
		"empty name":               named(""),
		"name .":                   named("."),
		"name ..":                  named(".."),
		"absolute name":            named("/etc"),
		"name with a slash":        named("a/../../b"),
		"name with NUL":            named("a\x00b"),
		"long name":                named(strings.Repeat("n", MaxName+1)),
		"the same name twice":      two("a", "a"),
		"names descend":            two("b", "a"),
		"inode number 0":           edited(func(e *Entry) { e.Ino = 0 }),
		"the root's inode number":  edited(func(e *Entry) { e.Ino = RootIno }),
		"inode number of 41 bits":  edited(func(e *Entry) { e.Ino = MaxIno + 1 }),
		"unknown type":             edited(func(e *Entry) { e.Mode = 0o644 }),
		"mode above 16 bits":       edited(func(e *Entry) { e.Mode = 1<<16 | ModeRegular }),
		"nanoseconds":              edited(func(e *Entry) { e.Nsec = 1_000_000_000 }),
		"file too large":           edited(func(e *Entry) { e.Content.Size = maxFile + 1 }),
		"lists too deep":           edited(func(e *Entry) { e.Content.Depth = 17 }),
		"list without an id":       edited(func(e *Entry) { e.Content = Content{Size: 1, Depth: 1} }),
		"attribute twice":          xattrs(Xattr{Name: "user.a"}, Xattr{Name: "user.a"}),
		"attributes descend":       xattrs(Xattr{Name: "user.b"}, Xattr{Name: "user.a"}),
		"attribute without a name": xattrs(Xattr{Value: []byte("x")}),
		"attributes too large":     xattrs(Xattr{Name: "user.a", Value: make([]byte, MaxXattr)}),
		"symlink without target":   edited(func(e *Entry) { e.Mode = ModeSymlink | 0o777 }),
		"target with NUL":          edited(func(e *Entry) { e.Mode, e.Target = ModeSymlink|0o777, "a\x00" }),
		"linked directory":         edited(func(e *Entry) { e.Mode, e.Linked = ModeDir, true }),
		"directory with names":     edited(func(e *Entry) { e.Mode, e.Nlink = ModeDir|0o755, 2 }),
		"totals too large":         edited(func(e *Entry) { e.Mode, e.Totals.Files = ModeDir, maxTotal+1 }),
		"sums of totals too large": (&Tree{Level: 2, Branches: []Branch{
			{"a", filled(1), Totals{Bytes: maxTotal}}, {"b", filled(2), Totals{Bytes: 1}},
		}}).Encode(),
	}
}

func TestHostileTrees(t *testing.T) {
	for name, b := range hostileTrees() {
		refused(t, KindTree, name, b)
	}
}

func TestHostileLists(t *testing.T) {
	list := func(level uint8, spans ...Span) []byte { return (&List{Level: level, Spans: spans}).Encode() }
	for name, b := range map[string][]byte{
		"no spans":            list(1),
		"too many spans":      list(1, make([]Span, maxNode+1)...),
		"empty span":          list(1, Span{0, filled(1)}),
		"hole above level 1":  list(2, Span{Size: 1}),
		"sizes overflow":      list(1, Span{maxFile, filled(1)}, Span{maxFile, filled(1)}, Span{2, filled(1)}),
		"size above 16 TiB":   list(1, Span{maxFile + 1, filled(1)}),
		"unknown cut":         (&List{Level: 1, Cut: 2, Spans: []Span{{1, filled(1)}}}).Encode(),
		"level 0":             list(0, Span{1, filled(1)}),
		"count without spans": binary.AppendUvarint([]byte{1, 1, 0}, 1000),
	} {
		refused(t, KindList, name, b)
	}
}

func TestHostileCommits(t *testing.T) {
	changed := func(change func(c *Commit)) []byte {
		c := exampleCommit()
		change(c)
		return c.Encode()
	}
	many := map[string]string{}
	for i := range MaxMeta + 1 {
		many[fmt.Sprint(i)] = ""
	}
	for name, b := range map[string][]byte{
		"root is a file":      changed(func(c *Commit) { c.Root = Entry{Ino: 1, Mode: ModeRegular} }),
		"root's inode number": changed(func(c *Commit) { c.Root.Ino = 2 }),
		"next number in use":  changed(func(c *Commit) { c.NextIno = 1 }),
		"too many parents":    changed(func(c *Commit) { c.Parents = make([]ID, maxParents+1) }),
		"year 10000":          changed(func(c *Commit) { c.Time = time.Unix(maxTime+1, 0) }),
		"year -1":             changed(func(c *Commit) { c.Time = time.Unix(minTime-1, 0) }),
		"time beyond all":     changed(func(c *Commit) { c.Time = time.Unix(math.MaxInt64, 0) }),
		"long message":        changed(func(c *Commit) { c.Message = strings.Repeat("m", MaxMessage+1) }),
		"too many key-values": changed(func(c *Commit) { c.Meta = many }),
		"keys descend":        bytes.Replace(exampleCommit().Encode(), []byte("\x02ci"), []byte("\x02zz"), 1),
		"key twice":           bytes.Replace(exampleCommit().Encode(), []byte("\x02ci\x0242\x03env"), []byte("\x02ci\x0242\x02ci"), 1),
	} {
		refused(t, KindCommit, name, b)
	}
}

// TestTimesOfCommits: what is accepted can be written as JSON.
func TestTimesOfCommits(t *testing.T) {
	for _, sec := range []int64{minTime, 0, maxTime} {
		c := exampleCommit()
		c.Time = time.Unix(sec, 999_999_999)
		got, err := DecodeCommit(c.Encode())
		if err != nil || !got.Time.Equal(c.Time) {
			t.Fatalf("%d seconds: %v, %v", sec, got, err)
		}
		if _, err := got.Time.MarshalJSON(); err != nil {
			t.Error(err)
		}
	}
}

// refused checks that b does not decode, with an error of the kind that says that data is not what it should be.
func refused(t *testing.T, kind Kind, name string, b []byte) {
	t.Helper()
	if v, err := decode(kind, b); err == nil {
		t.Errorf("%s: decodes to %+v", name, v)
	} else if errs.KindOf(err) != errs.Damaged {
		t.Errorf("%s: error of kind %s: %v", name, errs.KindOf(err), err)
	}
}

// TestNeedlessZeros: a number in a longer form than it needs would give one object two encodings, and two ids.
func TestNeedlessZeros(t *testing.T) {
	b := (&List{Level: 1, Spans: []Span{{5, filled(1)}}}).Encode()
	long := append(append(bytes.Clone(b[:4]), 0x85, 0x00), b[5:]...)
	refused(t, KindList, "needless zeros", long)
}

// TestListThatLies: a list behind a span must have the span's size and the level below, or an offset in the file would
// lead elsewhere than its writer meant.
func TestListThatLies(t *testing.T) {
	ctx := context.Background()
	m := newMemory()
	id, err := m.Put(ctx, KindList, (&List{Level: 1, Spans: []Span{{100, filled(1)}}}).Encode())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []Content{{Size: 101, Depth: 1, Root: id}, {Size: 100, Depth: 2, Root: id}} {
		err := WalkSpans(ctx, m, c, 0, func(uint64, Span) error { return nil })
		if errs.KindOf(err) != errs.Damaged {
			t.Errorf("content %+v of a list of level 1 with 100 bytes: %v", c, err)
		}
	}
}

// TestTreeThatLies: a tree behind a branch must have the branch's last name and totals, and no name of the branch before
// it, or a name could be looked for in the wrong place or be there twice.
func TestTreeThatLies(t *testing.T) {
	ctx := context.Background()
	m := newMemory()
	leaf := func(names ...string) Branch {
		tree := &Tree{Level: 1}
		for i, name := range names {
			tree.Entries = append(tree.Entries, *file(name, uint64(i+2)))
		}
		id, err := m.Put(ctx, KindTree, tree.Encode())
		if err != nil {
			t.Fatal(err)
		}
		return Branch{Last: names[len(names)-1], ID: id, Totals: tree.Totals()}
	}
	node := func(level uint8, branches ...Branch) Branch {
		tree := &Tree{Level: level, Branches: branches}
		id, err := m.Put(ctx, KindTree, tree.Encode())
		if err != nil {
			t.Fatal(err)
		}
		return Branch{Last: branches[len(branches)-1].Last, ID: id, Totals: tree.Totals()}
	}
	walk := func(branches ...Branch) error {
		return WalkTree(ctx, m, node(2, branches...).ID, "", func(*Entry) error { return nil })
	}
	a, b := leaf("a", "b"), leaf("c", "d")
	if err := walk(a, b); err != nil {
		t.Fatal(err)
	}
	name, totals := b, b
	name.Last = "e"
	totals.Totals.Bytes++
	for what, lie := range map[string][]Branch{
		"last name": {a, name}, "totals": {a, totals}, "a name twice": {a, leaf("b", "z")}, "names overlap": {a, leaf("aa", "z")},
	} {
		if err := walk(lie...); errs.KindOf(err) != errs.Damaged {
			t.Errorf("%s: %v", what, err)
		}
	}
	// The same across the first branch of a node: what comes before stands one level higher.
	deep := node(3, node(2, a), node(2, leaf("b", "y"), leaf("z"))).ID
	if err := WalkTree(ctx, m, deep, "", func(*Entry) error { return nil }); errs.KindOf(err) != errs.Damaged {
		t.Errorf("names overlap below another branch: %v", err)
	}
	if _, _, err := EditTree(ctx, m, m, deep, []Edit{{Name: "bb"}}); errs.KindOf(err) != errs.Damaged {
		t.Errorf("a tree whose names overlap can be edited: %v", err)
	}
}
