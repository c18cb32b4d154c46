package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"dm/internal/durable"
)

// To walk the index file before bbolt is let near it takes as long as reading it: nothing for most stores, half a minute for
// two hundred million objects. So a store that is closed in order leaves a note of which file it left, and an Open that
// finds the very same file goes without. The note is gone before anything else is written; after a crash there is none. What
// changes a file in place changes its times. That a disk gives back other bytes than were written is not noticed then,
// as it is not while the store is open: fsck walks the file every time.

const cleanName = "clean"

// cleanNote describes the index file.
func cleanNote(dir string) (string, error) {
	var st syscall.Stat_t
	if err := syscall.Stat(filepath.Join(dir, indexName), &st); err != nil {
		return "", err
	}
	return fmt.Sprintf("dm clean 1: index.db of %d bytes, inode %d, written at %d, changed at %d\n", st.Size, st.Ino, st.Mtim.Nano(),
		st.Ctim.Nano()), nil
}

// leaveClean leaves the note. The index is closed.
func (s *Store) leaveClean() error {
	note, err := cleanNote(s.dir)
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(s.dir, cleanName), []byte(note), 0o600)
}

// takeClean takes the note away and says whether it is about the index file that is there.
func (s *Store) takeClean() (bool, error) {
	path := filepath.Join(s.dir, cleanName)
	was, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	note, noteErr := cleanNote(s.dir)
	same := err == nil && noteErr == nil && note == string(was)
	if err := os.Remove(path); err != nil {
		return false, fmt.Errorf("remove %s: %w", path, err)
	}
	if err := durable.SyncDir(s.dir); err != nil {
		return false, fmt.Errorf("remove %s: %w", path, err)
	}
	return same, nil
}
