package dbs

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// SQLite has no server: each client has a database file of its own, with a write-ahead log (and its shared memory file) if
// its number is even, with a rollback journal if it is odd.
type SQLite struct{ dir string }

// Name is "sqlite".
func (s *SQLite) Name() string { return "sqlite" }

func (s *SQLite) file(client int) string {
	return filepath.Join(s.dir, fmt.Sprintf("client%d.db", client))
}

// Init makes the clients' files.
func (s *SQLite) Init(dir string) error {
	s.dir = dir
	sql := strings.Replace(schema(), "payload(20)", "payload", 1)
	for c := range clients {
		mode := []string{"WAL", "DELETE"}[c%2]
		if _, err := run("root", "sqlite3", "-batch", "-bail", s.file(c), "PRAGMA journal_mode="+mode+";"+sql); err != nil {
			return err
		}
	}
	return nil
}

// Start notes the directory.
func (s *SQLite) Start(dir string) error {
	s.dir = dir
	_, err := os.Stat(s.file(0))
	return err
}

// Stop does nothing.
func (s *SQLite) Stop() error { return nil }

// Connect starts a sqlite3 on the client's file. Small automatic checkpoints move the log into the file often.
func (s *SQLite) Connect(client int) (Conn, error) {
	return newShell(client, "root", "sqlite3", "-batch", "-bail", "-cmd", "PRAGMA synchronous=FULL", "-cmd", ".timeout 10000",
		"-cmd", ".output /dev/null", "-cmd", "PRAGMA wal_autocheckpoint=100", "-cmd", ".output stdout", s.file(client))
}

// Check runs pragma integrity_check on every file.
func (s *SQLite) Check() error {
	for c := range clients {
		out, err := run("root", "sqlite3", "-batch", "-bail", s.file(c), "PRAGMA integrity_check")
		if err != nil {
			return err
		}
		if strings.TrimSpace(out) != "ok" {
			return &checkError{out}
		}
	}
	return nil
}

// Read returns the state: of each file, what it holds of its own client.
func (s *SQLite) Read(n int) ([]int64, error) {
	var all strings.Builder
	for c := range min(n, clients) {
		out, err := run("root", "sqlite3", "-batch", "-bail", s.file(c), stateQuery)
		if err != nil {
			return nil, err
		}
		all.WriteString(out)
	}
	return counts(all.String(), n)
}
