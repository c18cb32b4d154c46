package store

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dm/internal/errs"
	"dm/object"
)

// TestStoreOfVersion1 opens a store that the first version of this format wrote. It stays in testdata for ever: what was
// committed once is read by every later version. testdata/v1.txt says what is in it.
func TestStoreOfVersion1(t *testing.T) {
	openKept(t, "v1")
}

// TestStoreOfVersion1b is the same of a later writer of version 1, with deltas that are compressed as a whole and XORed,
// pruned commits, and a checksum of the format's number.
func TestStoreOfVersion1b(t *testing.T) {
	openKept(t, "v1b")
}

func openKept(t *testing.T, name string) {
	want, err := os.ReadFile("testdata/" + name + ".txt")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "store")
	if err := os.CopyFS(dir, os.DirFS("testdata/"+name)); err != nil {
		t.Fatal(err)
	}
	for _, lost := range []string{"nothing", indexName, journalName} {
		os.Remove(filepath.Join(dir, lost))
		s := testStore(t, dir, Options{})
		if got := describe(t, s); got != string(want) {
			t.Errorf("without %s the store holds\n%s\nwant\n%s", lost, got, want)
		}
		if r := fsck(t, s, FsckOptions{}); !r.OK() {
			t.Errorf("without %s: %+v", lost, r.Problems)
		}
		s.Close()
	}
}

// describe returns refs, metadata and all that is reachable, as text.
func describe(t *testing.T, s *Store) string {
	var out strings.Builder
	objects := map[object.ID]object.Kind{}
	err := s.View(func(tx *Tx) error {
		for name, id := range tx.Refs("") {
			fmt.Fprintf(&out, "ref %s %s\n", name, id)
			if err := reachKept(t.Context(), s, id, objects); err != nil {
				return err
			}
		}
		for key, value := range tx.Metas("") {
			fmt.Fprintf(&out, "meta %s %q\n", key, value)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]int{}
	for id, kind := range objects {
		e, ok, err := s.lookup(id)
		if err != nil || !ok {
			t.Fatal(err)
		}
		kinds[fmt.Sprint(kind, " ", e.enc)]++
	}
	for _, kind := range []object.Kind{object.KindChunk, object.KindList, object.KindTree, object.KindCommit} {
		for _, enc := range []string{"raw", "zstd", "delta", "dict"} {
			if n := kinds[fmt.Sprint(kind, " ", enc)]; n > 0 {
				fmt.Fprintf(&out, "%d %s %s\n", n, kind, enc)
			}
		}
	}
	return out.String()
}

func TestNewerFormatIsRefused(t *testing.T) {
	for name, content := range map[string]string{
		"format": formatText(2),
		journalName: string(func() []byte {
			b := newJournalHeader()
			b[8]++
			crc := crc32c(b[:12])
			copy(b[12:], []byte{byte(crc), byte(crc >> 8), byte(crc >> 16), byte(crc >> 24)})
			return b
		}()),
	} {
		dir := t.TempDir()
		s := testStore(t, dir, Options{})
		s.Close()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Open(t.Context(), dir, Options{})
		wantKind(t, err, errs.Usage)
		if errs.HintOf(err) == "" {
			t.Errorf("newer %s: no hint: %v", name, err)
		}
	}
}
