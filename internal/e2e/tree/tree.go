// Package tree makes directory trees that hold everything a Linux filesystem can hold, and compares two trees exactly.
//
// A comparison takes a Snapshot of each side, so that a tree can also be compared with what it was before. Content is
// compared by what reads return: a hole and a block of zeros are the same. Everything else stat(2), readlink(2) and
// listxattr(2) tell is compared to the bit, but for access and change times, inode numbers (which names share one is
// compared) and the sizes of directories.
package tree

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// Record is what is compared of one name.
type Record struct {
	Mode     uint32
	UID, GID uint32
	Nlink    uint64
	Rdev     uint64
	Size     int64 // 0 for a directory
	Sec      int64 // modification time
	Nsec     int64
	Target   string // of a symlink
	Xattrs   string // name=hex, sorted
	Digest   string // of a regular file's content
	Same     string // the first name, in order, of the same inode
}

// Snapshot maps each path below a directory, relative to it, to its record; the directory itself is ".".
type Snapshot map[string]Record

// Take reads the tree at dir.
func Take(dir string) (Snapshot, error) {
	snap := make(Snapshot)
	first := make(map[uint64]string)
	buf := make([]byte, 1<<20)
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		rec, ino, err := record(path, buf)
		if err != nil {
			return fmt.Errorf("look at %q: %w", path, err)
		}
		rec.Same = rel
		if rec.Mode&unix.S_IFMT != unix.S_IFDIR && rec.Nlink > 1 {
			if name, ok := first[ino]; ok {
				// The content was digested under the first name.
				rec.Same, rec.Digest = name, snap[name].Digest
			} else {
				first[ino] = rel
			}
		}
		snap[rel] = rec
		return nil
	})
	return snap, err
}

func record(path string, buf []byte) (Record, uint64, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return Record{}, 0, err
	}
	rec := Record{
		Mode: st.Mode, UID: st.Uid, GID: st.Gid, Nlink: uint64(st.Nlink), Rdev: st.Rdev, Size: st.Size,
		Sec: st.Mtim.Sec, Nsec: st.Mtim.Nsec,
	}
	var err error
	if rec.Xattrs, err = xattrs(path); err != nil {
		return rec, 0, err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		rec.Size = 0
	case unix.S_IFLNK:
		rec.Target, err = os.Readlink(path)
	case unix.S_IFREG:
		rec.Digest, err = digest(path, st.Size, buf)
	}
	return rec, st.Ino, err
}

func xattrs(path string) (string, error) {
	size, err := unix.Llistxattr(path, nil)
	if err != nil || size == 0 {
		return "", err
	}
	list := make([]byte, size)
	if size, err = unix.Llistxattr(path, list); err != nil {
		return "", err
	}
	names := strings.Split(strings.TrimSuffix(string(list[:size]), "\x00"), "\x00")
	sort.Strings(names)
	var b strings.Builder
	for _, name := range names {
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return "", fmt.Errorf("read attribute %s: %w", name, err)
		}
		fmt.Fprintf(&b, "%s=%s\n", name, hex.EncodeToString(value[:n]))
	}
	return b.String(), nil
}

const block = 4096

// maxData is more data than any file has that this package makes, in bytes.
const maxData = 512 << 20

// digest hashes the blocks that are not zero, each with its offset, so that holes count as the zeros they read as, and
// a sparse file costs what is in it.
func digest(path string, size int64, buf []byte) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if size <= int64(len(buf)) { // one read costs less than to ask where the holes are
		n, err := io.ReadFull(f, buf[:size])
		if err != nil && size > 0 {
			return "", fmt.Errorf("ends at %d, stat says %d: %w", n, size, err)
		}
		hashBlocks(h, buf[:n], 0)
		return hex.EncodeToString(h.Sum(nil)[:16]), nil
	}
	read := 0
	for off := int64(0); off < size; {
		data, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil {
			return "", fmt.Errorf("seek data from %d: %w", off, err)
		}
		if off = data / block * block; off >= size {
			break
		}
		end, err := unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return "", fmt.Errorf("seek hole from %d: %w", data, err)
		}
		for off < end && off < size {
			n, err := f.ReadAt(buf, off)
			if err != nil && err != io.EOF {
				return "", err
			}
			if n == 0 {
				return "", fmt.Errorf("ends at %d, stat says %d", off, size)
			}
			if read += n; read > maxData {
				return "", fmt.Errorf("SEEK_DATA leads through more than %d bytes: it does not see the holes", maxData)
			}
			hashBlocks(h, buf[:n], off)
			off += int64(n)
		}
		off = (off + block - 1) / block * block
	}
	return hex.EncodeToString(h.Sum(nil)[:16]), nil
}

func hashBlocks(h io.Writer, p []byte, off int64) {
	var zero [block]byte
	for len(p) > 0 {
		b := p[:min(block, len(p))]
		if !bytes.Equal(b, zero[:len(b)]) {
			var head [8]byte
			binary.LittleEndian.PutUint64(head[:], uint64(off))
			h.Write(head[:])
			// A last block is hashed without the zeros at its end, which only the size tells.
			h.Write(bytes.TrimRight(b, "\x00"))
		}
		off += int64(len(b))
		p = p[len(b):]
	}
}

// Diff returns what differs, one line a difference, at most limit lines; none means that the trees are identical.
func Diff(want, got Snapshot, limit int) []string {
	var paths []string
	for p := range want {
		paths = append(paths, p)
	}
	for p := range got {
		if _, ok := want[p]; !ok {
			paths = append(paths, p)
		}
	}
	sort.Strings(paths)
	var out []string
	for _, p := range paths {
		w, inWant := want[p]
		g, inGot := got[p]
		switch {
		case !inGot:
			out = append(out, fmt.Sprintf("%q is missing", p))
		case !inWant:
			out = append(out, fmt.Sprintf("%q should not be there", p))
		case w != g:
			out = append(out, fmt.Sprintf("%q differs: %s", p, difference(w, g)))
		}
		if len(out) >= limit {
			return append(out, "...")
		}
	}
	return out
}

func difference(w, g Record) string {
	var parts []string
	add := func(what string, w, g any) {
		if w != g {
			parts = append(parts, fmt.Sprintf("%s %v, want %v", what, g, w))
		}
	}
	add("mode", fmt.Sprintf("%o", w.Mode), fmt.Sprintf("%o", g.Mode))
	add("uid", w.UID, g.UID)
	add("gid", w.GID, g.GID)
	add("nlink", w.Nlink, g.Nlink)
	add("rdev", w.Rdev, g.Rdev)
	add("size", w.Size, g.Size)
	add("mtime", fmt.Sprintf("%d.%09d", w.Sec, w.Nsec), fmt.Sprintf("%d.%09d", g.Sec, g.Nsec))
	add("target", fmt.Sprintf("%q", w.Target), fmt.Sprintf("%q", g.Target))
	add("xattrs", fmt.Sprintf("%q", w.Xattrs), fmt.Sprintf("%q", g.Xattrs))
	add("content", w.Digest, g.Digest)
	add("hard link to", fmt.Sprintf("%q", w.Same), fmt.Sprintf("%q", g.Same))
	return strings.Join(parts, "; ")
}
