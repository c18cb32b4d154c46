package dbs

import (
	"path/filepath"
	"sort"
	"strings"
	"syscall"
)

// Postgres is PostgreSQL.
type Postgres struct{ srv *server }

// Name is "postgres".
func (p *Postgres) Name() string { return "postgres" }

// program finds one of the server's programs, which Debian keeps in a directory for each version.
func (p *Postgres) program(name string) string {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	sort.Strings(found)
	if len(found) == 0 {
		return name
	}
	return found[len(found)-1]
}

// Init makes a cluster, and our tables with a first run of the server.
func (p *Postgres) Init(dir string) error {
	if err := own(dir, "postgres"); err != nil {
		return err
	}
	_, err := run("postgres", p.program("initdb"), "-D", dir, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale")
	if err != nil {
		return err
	}
	if err := p.Start(dir); err != nil {
		return err
	}
	if _, err := p.query("postgres", "CREATE DATABASE dm"); err != nil {
		return err
	}
	if _, err := p.query("dm", strings.Replace(schema(), "payload(20)", "payload", 1)); err != nil {
		return err
	}
	return p.Stop()
}

// Start starts the server, with fsync and full pages as is its default, and frequent checkpoints.
func (p *Postgres) Start(dir string) error {
	srv, err := newServer("postgres")
	if err != nil {
		return err
	}
	p.srv = srv
	ready := func() error { _, err := p.query("postgres", "SELECT 1"); return err }
	return srv.start(ready, p.program("postgres"), "-D", dir, "-k", srv.runDir, "-c", "listen_addresses=",
		"-c", "shared_buffers=32MB", "-c", "max_connections=20", "-c", "checkpoint_timeout=30s", "-c", "max_wal_size=64MB",
		"-c", "min_wal_size=32MB", "-c", "autovacuum_naptime=5s")
}

// Stop shuts down fast: clients are sent away, then a checkpoint is made.
func (p *Postgres) Stop() error {
	defer func() { p.srv = nil }()
	return p.srv.stop(syscall.SIGINT)
}

func (p *Postgres) query(db, sql string) (string, error) {
	return run("postgres", p.program("psql"), "-h", p.srv.runDir, "-U", "postgres", "-d", db, "-qAtX", "-v", "ON_ERROR_STOP=1", "-c", sql)
}

// Connect starts a psql.
func (p *Postgres) Connect(client int) (Conn, error) {
	return newShell(client, "postgres", p.program("psql"), "-h", p.srv.runDir, "-U", "postgres", "-d", "dm", "-qAtX", "-v", "ON_ERROR_STOP=1")
}

// Check runs pg_amcheck on all databases: every heap and every B-tree, and that each row is in its indexes.
func (p *Postgres) Check() error {
	out, err := run("postgres", p.program("pg_amcheck"), "-h", p.srv.runDir, "-U", "postgres", "--all", "--install-missing", "--heapallindexed")
	if err != nil {
		return err
	}
	for line := range strings.Lines(out) {
		if !strings.HasPrefix(line, "NOTICE:") && strings.TrimSpace(line) != "" {
			return &checkError{out}
		}
	}
	return nil
}

// Read returns the state.
func (p *Postgres) Read(n int) ([]int64, error) {
	out, err := p.query("dm", stateQuery)
	if err != nil {
		return nil, err
	}
	return counts(out, n)
}
