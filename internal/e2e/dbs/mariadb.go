package dbs

import (
	"os"
	"strings"
	"syscall"
)

// MariaDB is mariadbd with InnoDB.
type MariaDB struct{ srv *server }

// Name is "mariadb".
func (m *MariaDB) Name() string { return "mariadb" }

// Init makes the system tables with the package's script, and ours with a first run of the server.
func (m *MariaDB) Init(dir string) error {
	if err := own(dir, "mysql"); err != nil {
		return err
	}
	// A MariaDB that starts removes every #sql file of its tmpdir, so that none may share one with another.
	tmp, err := os.MkdirTemp("", "dmdb")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if err := own(tmp, "mysql"); err != nil {
		return err
	}
	_, err = run("mysql", "mariadb-install-db", "--no-defaults", "--datadir="+dir, "--skip-test-db",
		"--auth-root-authentication-method=normal", "--innodb-log-file-size=32M", "--tmpdir="+tmp)
	if err != nil {
		return err
	}
	if err := m.Start(dir); err != nil {
		return err
	}
	if _, err := m.query("", "CREATE DATABASE dm; USE dm;\n"+schema()); err != nil {
		return err
	}
	return m.Stop()
}

// Start starts the server. Every transaction is synced, and files are written with O_DIRECT, as is its default.
func (m *MariaDB) Start(dir string) error {
	srv, err := newServer("mysql")
	if err != nil {
		return err
	}
	m.srv = srv
	ready := func() error { _, err := m.query("", "SELECT 1;"); return err }
	return srv.start(ready, "mariadbd", "--no-defaults", "--datadir="+dir, "--socket="+m.socket(), "--skip-networking",
		"--pid-file="+srv.runDir+"/pid", "--innodb-buffer-pool-size=32M", "--innodb-log-file-size=32M",
		"--innodb-flush-log-at-trx-commit=1", "--tmpdir="+srv.runDir)
}

// Stop shuts down.
func (m *MariaDB) Stop() error {
	defer func() { m.srv = nil }()
	return m.srv.stop(syscall.SIGTERM)
}

func (m *MariaDB) socket() string { return m.srv.runDir + "/s" }

func (m *MariaDB) args(db string, more ...string) []string {
	args := []string{"--no-defaults", "--socket=" + m.socket(), "--user=root", "--batch", "--skip-column-names"}
	if db != "" {
		args = append(args, "--database="+db)
	}
	return append(args, more...)
}

func (m *MariaDB) query(db, sql string) (string, error) {
	return run("mysql", "mariadb", m.args(db, "--execute="+sql)...)
}

// Connect starts a mariadb client.
func (m *MariaDB) Connect(client int) (Conn, error) {
	return newShell(client, "mysql", "mariadb", m.args("dm", "--unbuffered")...)
}

// Check runs mariadb-check on all tables.
func (m *MariaDB) Check() error {
	out, err := run("mysql", "mariadb-check", "--no-defaults", "--socket="+m.socket(), "--user=root", "--all-databases",
		"--check", "--extended")
	if err != nil {
		return err
	}
	return eachLineEnds(out, "OK")
}

// Read returns the state.
func (m *MariaDB) Read(n int) ([]int64, error) {
	out, err := m.query("dm", stateQuery)
	if err != nil {
		return nil, err
	}
	return counts(out, n)
}

func eachLineEnds(out, end string) error {
	for line := range strings.Lines(out) {
		if l := strings.TrimSpace(line); l != "" && !strings.HasSuffix(l, end) {
			return &checkError{out}
		}
	}
	return nil
}

// checkError is what a checker printed.
type checkError struct{ output string }

func (e *checkError) Error() string { return "the check says: " + e.output }
