package workcopy

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"

	"dm/object"
)

// FuzzJournal opens working copies with journals of any content, whose checksums are right. It is opened and can be read and
// closed, or it is refused.
func FuzzJournal(f *testing.F) {
	file := vectorNode(3, inode{mode: object.ModeRegular | 0o600, nlink: 1, size: 5000})
	top := vectorNode(1, inode{mode: object.ModeDir | 0o755, nlink: 2})
	j := &journal{}
	frame := func(write func()) []byte {
		j.begin()
		write()
		body := j.buf[frameHeader:]
		return append(binary.LittleEndian.AppendUint32(nil, uint32(len(body))), append(make([]byte, 4), body...)...)
	}
	tree := append(frame(func() { j.nextIno(4); j.inode(top) }), frame(func() { j.inode(file); j.bind(top, "data", file, true) })...)
	f.Add(append(tree[:len(tree):len(tree)], frame(func() { j.blocks(file, blocksDirty, 0, 2) })...))
	f.Add(append(tree[:len(tree):len(tree)], frame(func() { j.gone(3); j.totals(top); j.complete(file) })...))
	f.Add(append(tree[:len(tree):len(tree)], frame(func() { j.mark(recordCut); j.id(recordPrepare, object.ID{1}); j.mark(recordAbort) })...))
	f.Fuzz(func(t *testing.T, frames []byte) {
		dir := t.TempDir()
		h, err := json.Marshal(head{Version: headVersion, Journal: 1, Era: era(dir), NextIno: 2})
		if err != nil {
			t.Fatal(err)
		}
		for name, data := range map[string][]byte{"head": h, "journal/1": append([]byte(journalMagic), mendFrames(frames)...)} {
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
			return
		}
		defer c.Close(context.Background())
		read(context.Background(), c) // what is not in the store may be missing; it must not panic
	})
}

// mendFrames puts checksums right.
func mendFrames(b []byte) []byte {
	for rest := b; len(rest) >= frameHeader; {
		size := int(binary.LittleEndian.Uint32(rest))
		if size == 0 || size > len(rest)-frameHeader {
			break
		}
		body := rest[frameHeader : frameHeader+size]
		binary.LittleEndian.PutUint32(rest[4:], crc32.Checksum(body, castagnoli))
		rest = body[size:cap(body)][:len(rest)-frameHeader-size]
	}
	return b
}
