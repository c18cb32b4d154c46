package workcopy

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"dm/internal/errs"
	"dm/object"
)

// formatVector takes the block "vector NAME" out of docs/format/workcopy.md: bytes in hex, comments behind #.
func formatVector(t *testing.T, name string) []byte {
	t.Helper()
	doc, err := os.ReadFile("../docs/format/workcopy.md")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile("(?s)```vector " + name + "\n(.*?)```").FindStringSubmatch(string(doc))
	if m == nil {
		t.Fatalf("docs/format/workcopy.md has no vector %q", name)
	}
	var all []byte
	for line := range strings.Lines(m[1]) {
		digits, _, _ := strings.Cut(line, "#")
		b, err := hex.DecodeString(strings.Join(strings.Fields(digits), ""))
		if err != nil {
			t.Fatalf("vector %s: %q: %v", name, line, err)
		}
		all = append(all, b...)
	}
	return all
}

var vectorTime = Time{1_700_000_000, 5}

func vectorNode(ino uint64, in inode) *node {
	in.atime, in.mtime, in.ctime = vectorTime, vectorTime, vectorTime
	n := &node{ino: ino, inode: in}
	switch {
	case n.isDir():
		n.dir = &directory{}
	case n.isRegular():
		n.file = &content{}
	}
	return n
}

// writeFrames writes a journal file, one frame for each function, and returns its bytes.
func writeFrames(t *testing.T, frames ...func(j *journal)) []byte {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "journal"), 0o700); err != nil {
		t.Fatal(err)
	}
	j, err := createJournal(dir, 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer j.f.Close()
	for _, write := range frames {
		j.begin()
		write(j)
		if _, err := j.commit(); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(journalPath(dir, 1))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func sameBytes(t *testing.T, got, documented []byte) {
	t.Helper()
	if !bytes.Equal(got, documented) {
		t.Errorf("written\n%s, documented\n%s", hex.Dump(got), hex.Dump(documented))
	}
}

// TestFormatJournal writes the document's journal, and opens a working copy that has it.
func TestFormatJournal(t *testing.T) {
	top := vectorNode(1, inode{mode: object.ModeDir | 0o755, nlink: 2})
	db := vectorNode(2, inode{mode: object.ModeDir | 0o750, uid: 7, gid: 8, nlink: 2})
	file := vectorNode(3, inode{
		mode: object.ModeRegular | 0o600, uid: 7, gid: 8, nlink: 1, xattrs: []object.Xattr{{Name: "user.a", Value: []byte("1")}},
	})
	doc := formatVector(t, "journal")
	sameBytes(t, writeFrames(t,
		func(j *journal) { j.nextIno(2); j.inode(top) },
		func(j *journal) { j.inode(db); j.bind(top, "db", db, true) },
		func(j *journal) { j.inode(file); j.bind(db, "data", file, true) },
		func(j *journal) { file.size = 5000; j.blocks(file, blocksDirty, 0, 2) },
	), doc)

	c := openDocumented(t, doc)
	defer c.Close(context.Background())
	got, err := read(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	file.size = 5000
	want := state{
		"db":      describe(db.inodeAttr(), nil, ""),
		"db/data": describe(file.inodeAttr(), bytes.Repeat([]byte("x"), 5000), ""),
	}
	if d := want.diff(got); d != "" {
		t.Errorf("want, got\n%s", d)
	}
	if c.nextIno != 4 {
		t.Errorf("next inode number %d", c.nextIno)
	}
}

func (n *node) inodeAttr() Attr {
	return Attr{Mode: n.mode, UID: n.uid, GID: n.gid, Nlink: n.nlink, Mtime: n.mtime}
}

// openDocumented opens a working copy with the document's journal, whose file has its bytes.
func openDocumented(t *testing.T, journal []byte) *Copy {
	t.Helper()
	dir := t.TempDir()
	h, err := json.Marshal(head{Version: headVersion, Journal: 1, Era: era(dir), NextIno: 2})
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"head": h, "journal/1": journal, "data/0/03/3": bytes.Repeat([]byte("x"), 5000),
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := Open(context.Background(), dir, Config{Source: newMemory()}, object.ID{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestFormatRecords writes one of every record that the first example does not have.
func TestFormatRecords(t *testing.T) {
	dir := vectorNode(2, inode{mode: object.ModeDir | 0o755})
	dir.dir.files, dir.dir.bytes = 1, 5000
	n := vectorNode(9, inode{mode: object.ModeRegular | 0o644, nlink: 1, size: 9000})
	n.file.limit = 9000
	id := object.ID(bytes.Repeat([]byte{0x22}, object.IDSize))
	entry := object.Entry{
		Name: "f", Ino: 9, Mode: object.ModeRegular | 0o644,
		Content: object.Content{Size: 9000, Root: object.ID(bytes.Repeat([]byte{0x11}, object.IDSize))},
	}
	sameBytes(t, writeFrames(t,
		func(j *journal) { j.base(&entry); j.bind(dir, "f", n, false) },
		func(j *journal) { j.blocks(n, blocksPartial|blocksLocal, 1, 1) },
		func(j *journal) { n.file.limit = 8192; j.blocks(n, blocksZero|blocksPartial|blocksLocal, 0, 1) },
		func(j *journal) { j.complete(n) },
		func(j *journal) { j.bind(dir, "f", nil, true); j.gone(9) },
		func(j *journal) { j.totals(dir) },
		func(j *journal) { j.mark(recordCut) },
		func(j *journal) { j.id(recordPrepare, id) },
		func(j *journal) { j.id(recordDone, id) },
		func(j *journal) { j.mark(recordAbort) },
		func(j *journal) { j.id(recordReset, id) },
	), formatVector(t, "records"))
}

// frames returns the bodies that readJournal finds in data.
func frames(t *testing.T, data []byte) (bodies [][]byte, end int64, err error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "1")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	end, err = readJournal(path, func(body []byte) error {
		bodies = append(bodies, bytes.Clone(body))
		return nil
	})
	return bodies, end, err
}

// TestFormatTornTail cuts the journal at every byte: whole frames count, what follows does not, and it is no error.
func TestFormatTornTail(t *testing.T) {
	doc := formatVector(t, "journal")
	all, end, err := frames(t, doc)
	if err != nil || len(all) != 4 || end != int64(len(doc)) {
		t.Fatalf("%d frames to %d of %d: %v", len(all), end, len(doc), err)
	}
	for cut := range doc {
		got, end, err := frames(t, doc[:cut])
		if cut < len(journalMagic) {
			if err != nil || len(got) > 0 || end != 0 {
				t.Errorf("cut at %d: %d frames to %d: %v", cut, len(got), end, err)
			}
			continue
		}
		want, at := 0, int64(len(journalMagic))
		for want < len(all) && at+frameHeader+int64(len(all[want])) <= int64(cut) {
			at += frameHeader + int64(len(all[want]))
			want++
		}
		if err != nil || len(got) != want || end != at {
			t.Errorf("cut at %d: %d frames to %d, want %d to %d: %v", cut, len(got), end, want, at, err)
		}
	}
}

// TestFormatFlippedBits flips each bit of the journal's last frame but one: it and what follows do not count.
func TestFormatFlippedBits(t *testing.T) {
	doc := formatVector(t, "journal")
	all, end, err := frames(t, doc)
	if err != nil {
		t.Fatal(err)
	}
	last := end - frameHeader - int64(len(all[3]))
	first := last - frameHeader - int64(len(all[2]))
	for bit := first * 8; bit < last*8; bit++ {
		flipped := bytes.Clone(doc)
		flipped[bit/8] ^= 1 << (bit % 8)
		got, end, err := frames(t, flipped)
		if err != nil || len(got) != 2 || end != first {
			t.Fatalf("bit %d flipped: %d frames to %d, want 2 to %d: %v", bit, len(got), end, first, err)
		}
	}
}

// TestFormatNewer: a newer dm's files are refused, and it is said what to do.
func TestFormatNewer(t *testing.T) {
	doc := formatVector(t, "journal")
	doc[7]++
	if _, _, err := frames(t, doc); errs.KindOf(err) != errs.Damaged || errs.HintOf(err) == "" {
		t.Errorf("newer journal: %v", err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "head"), []byte(`{"version": 2}`), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(context.Background(), dir, Config{Source: newMemory()}, object.ID{})
	if errs.KindOf(err) != errs.Damaged || errs.HintOf(err) == "" {
		t.Errorf("newer head: %v", err)
	}
	if _, _, err := frames(t, []byte("something else")); errs.KindOf(err) != errs.Damaged {
		t.Errorf("not a journal: %v", err)
	}
}

// TestFormatUnknownRecord: a whole frame with a record that this dm does not know is not skipped.
func TestFormatUnknownRecord(t *testing.T) {
	r := &replayer{c: newCopy(t.TempDir(), Config{})}
	r.c.journal = &journal{} // as while replaying
	for _, body := range [][]byte{{0}, {200}, {recordGone}, {recordInode, 1}, {recordBind, 1, 5, 'a'}, {recordPrepare, 1}} {
		if err := r.frame(body); err == nil {
			t.Errorf("frame % x is accepted", body)
		}
	}
}
