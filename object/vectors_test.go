package object

import (
	"bytes"
	"encoding/hex"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"
)

// vector is one worked example of docs/format/objects.md.
type vector struct {
	kind  string
	id    string
	bytes []byte
}

// readVectors takes the fenced blocks "vector KIND NAME" out of the document: a line with the id, then bytes in hex, each
// line with a comment behind #.
func readVectors(t *testing.T) map[string]vector {
	t.Helper()
	doc, err := os.ReadFile("../docs/format/objects.md")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]vector{}
	block := regexp.MustCompile("(?s)```vector (\\w+) (\\w+)\nid ([0-9a-f]+)\n(.*?)```")
	for _, m := range block.FindAllStringSubmatch(string(doc), -1) {
		v := vector{kind: m[1], id: m[3]}
		for line := range strings.Lines(m[4]) {
			digits, _, _ := strings.Cut(line, "#")
			b, err := hex.DecodeString(strings.Join(strings.Fields(digits), ""))
			if err != nil {
				t.Fatalf("vector %s: %q: %v", m[2], line, err)
			}
			v.bytes = append(v.bytes, b...)
		}
		found[m[2]] = v
	}
	return found
}

func filled(b byte) (id ID) { return ID(bytes.Repeat([]byte{b}, IDSize)) }

func exampleDirectory() *Tree {
	return &Tree{Level: 1, Entries: []Entry{
		{Name: "block", Ino: 9, Mode: ModeBlock | 0o660, GID: 6, Sec: 1, Rdev: 0x801},
		{Name: "char", Ino: 10, Mode: ModeChar | 0o666, Sec: 1, Rdev: 0x103},
		{Name: "empty", Ino: 3, Mode: ModeRegular | 0o644, UID: 1000, GID: 1000, Sec: 1700000000, Nsec: 999999999},
		{Name: "fifo", Ino: 7, Mode: ModeFifo | 0o600, Sec: -1},
		{Name: "hard", Ino: 11, Mode: ModeRegular, Linked: true},
		{Name: "hole", Ino: 4, Mode: ModeRegular | 0o600, Content: Content{Size: 1 << 30}},
		{Name: "link", Ino: 6, Mode: ModeSymlink | 0o777, Target: "../target"},
		{
			Name: "small", Ino: 5, Mode: ModeRegular | 0o4755, Content: Content{Size: 6, Root: filled(0x55)},
			Xattrs: []Xattr{{Name: "user.a", Value: []byte("1")}, {Name: "user.b"}},
		},
		{Name: "socket", Ino: 8, Mode: ModeSocket | 0o755},
		{
			Name: "sub", Ino: 2, Mode: ModeDir | 0o755, UID: 999, GID: 999, Nsec: 1, Tree: filled(0x66),
			Totals: Totals{Subdirs: 1, Files: 12, Bytes: 345},
		},
	}}
}

func exampleCommit() *Commit {
	return &Commit{
		Root: Entry{
			Ino: 1, Mode: ModeDir | 0o755, Sec: 1700000000, Nsec: 5, Tree: filled(0xaa),
			Totals: Totals{Subdirs: 2, Files: 40, Bytes: 123456},
		},
		Links: filled(0xbb), NextIno: 300, Parents: []ID{filled(0xcc), filled(0xdd)},
		Author: "ann", Time: time.Unix(1700000001, 250_000_000).UTC(), Message: "two",
		Meta: map[string]string{"ci": "42", "env": ""}, System: map[string]string{"image.db": "mariadb:11"},
	}
}

// examples are the objects that the document describes, by the names of its vectors.
func examples() map[string]any {
	return map[string]any{
		"hello": []byte("hello\n"),
		"leaf": &List{Level: 1, Cut: CutFixed, Spans: []Span{
			{65536, filled(0x11)}, {131072, ID{}}, {100, filled(0x22)},
		}},
		"upper":     &List{Level: 2, Cut: CutGear, Spans: []Span{{8 << 20, filled(0x33)}, {5 << 20, filled(0x44)}}},
		"directory": exampleDirectory(),
		"branches": &Tree{Level: 2, Branches: []Branch{
			{"m", filled(0x77), Totals{Files: 130, Bytes: 9000}},
			{"z", filled(0x88), Totals{Subdirs: 1, Files: 90, Bytes: 1}},
		}},
		"links": &Tree{Level: 1, Entries: []Entry{{
			Name: LinkName(11), Ino: 11, Mode: ModeRegular | 0o644, Nlink: 2,
			Content: Content{Size: 70000, Depth: 1, Root: filled(0x99)},
		}}},
		"first": &Commit{
			Root: Entry{Ino: 1, Mode: ModeDir | 0o755}, NextIno: 2, Time: time.Unix(0, 0).UTC(),
		},
		"second": exampleCommit(),
	}
}

func encode(v any) (Kind, []byte) {
	switch v := v.(type) {
	case *List:
		return KindList, v.Encode()
	case *Tree:
		return KindTree, v.Encode()
	case *Commit:
		return KindCommit, v.Encode()
	}
	return KindChunk, v.([]byte)
}

func decode(k Kind, b []byte) (any, error) {
	switch k {
	case KindList:
		return DecodeList(b)
	case KindTree:
		return DecodeTree(b)
	case KindCommit:
		return DecodeCommit(b)
	}
	return b, nil
}

// TestVectors holds the document and the code together: the examples encode to the document's bytes, these decode to the
// examples, and the ids are right.
func TestVectors(t *testing.T) {
	found := readVectors(t)
	want := examples()
	for name := range found {
		if want[name] == nil {
			t.Errorf("docs/format/objects.md has a vector %q of which this test knows nothing: add it to examples", name)
		}
	}
	for name, v := range want {
		doc, ok := found[name]
		if !ok {
			t.Errorf("docs/format/objects.md has no vector %q", name)
			continue
		}
		kind, b := encode(v)
		if kind.String() != doc.kind || !bytes.Equal(b, doc.bytes) {
			t.Errorf("%s %s: encoded\n%s, documented\n%s", doc.kind, name, hex.Dump(b), hex.Dump(doc.bytes))
		}
		if id := Sum(kind, doc.bytes).String(); id != doc.id {
			t.Errorf("%s %s: id %s, documented %s", doc.kind, name, id, doc.id)
		}
		got, err := decode(kind, doc.bytes)
		if err != nil || !reflect.DeepEqual(got, v) {
			t.Errorf("%s %s: decoded %+v, %v", doc.kind, name, got, err)
		}
	}
}

// TestDamagedVectors cuts every example short, makes it longer, raises its version and flips each of its bits: it must
// be refused, or be another object whose canonical form it is.
func TestDamagedVectors(t *testing.T) {
	for name, v := range examples() {
		kind, b := encode(v)
		if kind == KindChunk {
			continue
		}
		for n := range b {
			if _, err := decode(kind, b[:n]); err == nil {
				t.Errorf("%s: the first %d of %d bytes decode", name, n, len(b))
			}
		}
		if _, err := decode(kind, append(bytes.Clone(b), 0)); err == nil {
			t.Errorf("%s: decodes with a byte behind its end", name)
		}
		newer := bytes.Clone(b)
		newer[0]++
		if _, err := decode(kind, newer); err == nil || !strings.Contains(err.Error(), "newer") {
			t.Errorf("%s: of a newer version: %v", name, err)
		}
		for bit := range 8 * len(b) {
			flipped := bytes.Clone(b)
			flipped[bit/8] ^= 1 << (bit % 8)
			canonical(t, kind, flipped)
		}
	}
}

// canonical checks that what decodes encodes to the same bytes again.
func canonical(t *testing.T, kind Kind, b []byte) {
	t.Helper()
	v, err := decode(kind, b)
	if err != nil {
		return
	}
	if _, again := encode(v); !bytes.Equal(again, b) {
		t.Errorf("%s decodes, and encodes to other bytes:\n%s%s", kind, hex.Dump(b), hex.Dump(again))
	}
}
