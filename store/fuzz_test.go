package store

import (
	"os"
	"path/filepath"
	"testing"

	"dm/object"
)

// FuzzJournal reads journals of any content, as a start does. What is read is written again, and says the same.
func FuzzJournal(f *testing.F) {
	id := object.ID{1, 2, 3}
	b := newJournalHeader()
	b = appendJournalRecord(b, recSnapshot, 7, []change{{op: opRef, key: "a", value: id[:]}, {op: opMeta, key: "m", value: []byte{}}})
	f.Add(b)
	f.Add(appendJournalRecord(b, recTx, 8, []change{{op: opRef, key: "a"}, {op: opMeta, key: "n", value: []byte("v")}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		mendJournal(b)
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, journalName), b, 0o600); err != nil {
			t.Fatal(err)
		}
		st, err := readJournal(dir)
		if err != nil {
			return
		}
		var all []change
		for key, value := range st.refs {
			all = append(all, change{op: opRef, key: key, value: value})
		}
		for key, value := range st.meta {
			all = append(all, change{op: opMeta, key: key, value: value})
		}
		again := &state{}
		body, n := nextJournalRecord(appendJournalRecord(nil, recSnapshot, st.seq, all))
		if n == 0 {
			t.Fatal("what was written is no record")
		}
		if err := again.apply(body); err != nil || again.seq != st.seq || len(again.refs) != len(st.refs) || len(again.meta) != len(st.meta) {
			t.Fatalf("what was read cannot be written and read: %v, %+v, %+v", err, st, again)
		}
	})
}

// mendJournal puts checksums right, so that what is behind them is reached.
func mendJournal(b []byte) {
	if len(b) < journalHeader {
		return
	}
	copy(b, newJournalHeader())
	for rest := b[journalHeader:]; len(rest) >= 8; {
		n := int(rest[0]) | int(rest[1])<<8
		rest[2], rest[3] = 0, 0
		if n > len(rest)-8 {
			return
		}
		sum := crc32c(rest[8 : 8+n])
		rest[4], rest[5], rest[6], rest[7] = byte(sum), byte(sum>>8), byte(sum>>16), byte(sum>>24)
		rest = rest[8+n:]
	}
}
