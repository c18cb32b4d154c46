package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// database is a database server with its own benchmark. Settings are the packages' defaults but for what keeps it in
// its directory; so every acknowledged transaction of MariaDB and PostgreSQL was synced.
type database interface {
	name() string
	// create makes an empty database in dir, which exists.
	create(ctx context.Context, dir string) error
	start(ctx context.Context, dir string) error
	stop() error
	// load fills it to the size that the options say.
	load(ctx context.Context) error
	// transact runs n small transactions.
	transact(ctx context.Context, n int) error
	// rate runs transactions for some seconds and returns how many there were a second.
	rate(ctx context.Context, seconds int) (float64, error)
}

func databases(l *lab) []database {
	return []database{&mariadb{dbserver{lab: l, user: "mysql"}}, &postgres{dbserver{lab: l, user: "postgres"}}, &redis{dbserver{lab: l, user: "redis"}}}
}

// dbserver is a server program that may be running.
type dbserver struct {
	*lab
	user   string
	cmd    *exec.Cmd
	done   chan struct{}
	runDir string // of sockets
}

// launch starts the program and waits until ready says nil.
func (d *dbserver) launch(ctx context.Context, ready func() error, name string, args ...string) error {
	log, err := os.Create(filepath.Join(d.root, d.user+".log"))
	if err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	defer log.Close()
	d.note(name, args...)
	cmd, err := d.command(context.Background(), d.user, "/", name, args...)
	if err != nil {
		return err
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	done := make(chan struct{})
	d.cmd, d.done = cmd, done
	go func() {
		cmd.Wait()
		close(done)
	}()
	for range 1200 {
		if err = ready(); err == nil {
			return nil
		}
		select {
		case <-done:
			return fmt.Errorf("start %s: it ended: %s", name, d.output())
		case <-ctx.Done():
			return errors.Join(ctx.Err(), d.end(syscall.SIGKILL))
		case <-time.After(50 * time.Millisecond):
		}
	}
	return errors.Join(fmt.Errorf("start %s: it does not answer: %w: %s", name, err, d.output()), d.end(syscall.SIGKILL))
}

func (d *dbserver) output() string {
	data, _ := os.ReadFile(filepath.Join(d.root, d.user+".log"))
	return tail(string(data))
}

// end stops the server with the signal that means a clean end to it. Stopping what does not run does nothing.
func (d *dbserver) end(sig syscall.Signal) error {
	if d.cmd == nil {
		return nil
	}
	cmd := d.cmd
	d.cmd = nil
	cmd.Process.Signal(sig)
	select {
	case <-d.done:
		return nil
	case <-time.After(2 * time.Minute):
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-d.done
		return fmt.Errorf("stop %s: it did not end within two minutes: %s", cmd.Path, d.output())
	}
}

// sockets returns the directory of the server's sockets and gives data to the server's user.
func (d *dbserver) sockets(data string) (string, error) {
	if d.runDir == "" {
		dir, err := d.mkdir("run", d.user)
		if err != nil {
			return "", fmt.Errorf("make a directory for sockets: %w", err)
		}
		d.runDir = dir
	}
	return d.runDir, errors.Join(d.own(d.runDir), d.own(data))
}

func (d *dbserver) own(dir string) error {
	uid, gid, err := ids(d.user)
	if err != nil {
		return err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) == uid {
		return nil
	}
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, uid, gid)
	})
}

// found returns the number in a program's output.
func found(re *regexp.Regexp, out string) (float64, error) {
	m := re.FindStringSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("no figure in the output: %s", tail(out))
	}
	return strconv.ParseFloat(m[1], 64)
}

type mariadb struct{ dbserver }

func (m *mariadb) name() string { return "mariadb" }

func (m *mariadb) create(ctx context.Context, dir string) error {
	// A MariaDB that starts removes every #sql file of its tmpdir, so that none may share one with another.
	run, err := m.sockets(dir)
	if err != nil {
		return err
	}
	_, _, err = m.runAs(ctx, m.user, "/", "mariadb-install-db", "--no-defaults", "--datadir="+dir, "--skip-test-db",
		"--auth-root-authentication-method=normal", "--tmpdir="+run)
	return err
}

func (m *mariadb) start(ctx context.Context, dir string) error {
	run, err := m.sockets(dir)
	if err != nil {
		return err
	}
	ready := func() error { return m.sql(ctx, "CREATE DATABASE IF NOT EXISTS sbtest") }
	return m.launch(ctx, ready, "mariadbd", "--no-defaults", "--datadir="+dir, "--socket="+run+"/s", "--pid-file="+run+"/pid",
		"--skip-networking", "--tmpdir="+run)
}

func (m *mariadb) sql(ctx context.Context, sql string) error {
	_, err := m.quiet(ctx, "mariadb", "--no-defaults", "--socket="+m.runDir+"/s", "--user=root", "--execute="+sql)
	return err
}

func (m *mariadb) stop() error { return m.end(syscall.SIGTERM) }

func (m *mariadb) sysbench(ctx context.Context, args ...string) (string, error) {
	all := []string{
		"oltp_read_write", "--db-driver=mysql", "--mysql-socket=" + m.runDir + "/s", "--mysql-user=root", "--tables=4",
		"--table-size=" + strconv.Itoa(m.sysbenchRows),
	}
	_, out, err := m.run(ctx, "", "sysbench", append(all, args...)...)
	return out, err
}

func (m *mariadb) load(ctx context.Context) error {
	_, err := m.sysbench(ctx, "--threads=2", "prepare")
	return err
}

func (m *mariadb) transact(ctx context.Context, n int) error {
	_, err := m.sysbench(ctx, "--threads=2", "--time=0", "--events="+strconv.Itoa(n), "run")
	return err
}

func (m *mariadb) rate(ctx context.Context, seconds int) (float64, error) {
	out, err := m.sysbench(ctx, "--threads=4", "--time="+strconv.Itoa(seconds), "run")
	if err != nil {
		return 0, err
	}
	return found(regexp.MustCompile(`transactions:\s+\d+\s+\(([\d.]+) per sec`), out)
}

type postgres struct{ dbserver }

func (p *postgres) name() string { return "postgres" }

// program finds one of the server's programs, which Debian keeps in a directory for each version.
func (p *postgres) program(name string) string {
	all, err := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	if err != nil || len(all) == 0 {
		return name
	}
	return slices.Max(all)
}

func (p *postgres) create(ctx context.Context, dir string) error {
	if err := p.own(dir); err != nil {
		return err
	}
	_, _, err := p.runAs(ctx, p.user, "/", p.program("initdb"), "-D", dir, "-U", "postgres", "-A", "trust", "--no-locale")
	return err
}

func (p *postgres) start(ctx context.Context, dir string) error {
	run, err := p.sockets(dir)
	if err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return err
	}
	ready := func() error {
		_, err := p.quiet(ctx, p.program("psql"), "-h", run, "-U", "postgres", "-c", "SELECT 1")
		return err
	}
	return p.launch(ctx, ready, p.program("postgres"), "-D", dir, "-k", run, "-c", "listen_addresses=")
}

func (p *postgres) stop() error { return p.end(syscall.SIGINT) }

func (p *postgres) pgbench(ctx context.Context, args ...string) (string, error) {
	_, out, err := p.run(ctx, "", p.program("pgbench"), append([]string{"-h", p.runDir, "-U", "postgres"}, append(args, "postgres")...)...)
	return out, err
}

func (p *postgres) load(ctx context.Context) error {
	_, err := p.pgbench(ctx, "-i", "-q", "-s", strconv.Itoa(p.pgScale))
	return err
}

func (p *postgres) transact(ctx context.Context, n int) error {
	_, err := p.pgbench(ctx, "-n", "-c", "2", "-j", "2", "-t", strconv.Itoa((n+1)/2))
	return err
}

func (p *postgres) rate(ctx context.Context, seconds int) (float64, error) {
	out, err := p.pgbench(ctx, "-n", "-c", "4", "-j", "2", "-T", strconv.Itoa(seconds))
	if err != nil {
		return 0, err
	}
	return found(regexp.MustCompile(`tps = ([\d.]+)`), out)
}

type redis struct{ dbserver }

func (r *redis) name() string { return "redis" }

func (r *redis) create(_ context.Context, dir string) error { return r.own(dir) }

func (r *redis) start(ctx context.Context, dir string) error {
	run, err := r.sockets(dir)
	if err != nil {
		return err
	}
	ready := func() error {
		out, err := r.quiet(ctx, "redis-cli", "-s", run+"/s", "ping")
		if err == nil && out != "PONG\n" {
			err = errors.New(out)
		}
		return err
	}
	return r.launch(ctx, ready, "redis-server", "--dir", dir, "--port", "0", "--unixsocket", run+"/s", "--appendonly", "yes", "--save", "")
}

func (r *redis) stop() error { return r.end(syscall.SIGTERM) }

func (r *redis) sets(ctx context.Context, n, pipeline int) (string, error) {
	_, out, err := r.run(ctx, "", "redis-benchmark", "-s", r.runDir+"/s", "-t", "set", "-d", "100", "-q", "-r", strconv.Itoa(r.redisKeys),
		"-n", strconv.Itoa(n), "-P", strconv.Itoa(pipeline))
	return out, err
}

func (r *redis) load(ctx context.Context) error {
	_, err := r.sets(ctx, r.redisKeys, 16)
	return err
}

func (r *redis) transact(ctx context.Context, n int) error {
	_, err := r.sets(ctx, n, 1)
	return err
}

// rate counts single writes; their number stands for the time.
func (r *redis) rate(ctx context.Context, seconds int) (float64, error) {
	out, err := r.sets(ctx, seconds*20000, 1)
	if err != nil {
		return 0, err
	}
	return found(regexp.MustCompile(`SET: ([\d.]+) requests`), out)
}
