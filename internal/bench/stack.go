package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// The small transactions between two commits.
const (
	sysbenchEvents = 200
	pgbenchEvents  = 500
	redisWrites    = 500
)

// stack runs three databases on three subdots of one dot, commits them, and gives the same two versions of their files to
// each keeper.
func stack(ctx context.Context, l *lab, r *record) error {
	r.title("Databases: commits and restores, beside restic and borg")
	first, second, err := live(ctx, l, r)
	if err != nil {
		return err
	}
	for rep := range l.reps {
		for _, k := range keepers(l) {
			l.say("stack: repetition %d of %d: %s", rep+1, l.reps, k.name())
			if err := keepBoth(ctx, l, r, k, first, second); err != nil {
				return fmt.Errorf("%s: %w", k.name(), err)
			}
		}
	}
	stackTables(r)
	return nil
}

// live is the databases at work on a volume. It returns two copies of the dot on the host, made from mounts of two commits.
func live(ctx context.Context, l *lab, r *record) (first, second string, err error) {
	s, err := l.serve(ctx, "live")
	if err != nil {
		return "", "", err
	}
	root, err := s.create(ctx, "stack", "mariadb", "postgres", "redis")
	if err != nil {
		return "", "", err
	}
	dbs := databases(l)
	for _, db := range dbs {
		dir := filepath.Join(root, db.name())
		l.say("stack: load %s on the volume", db.name())
		if err := db.create(ctx, dir); err != nil {
			return "", "", err
		}
		if err := db.start(ctx, dir); err != nil {
			return "", "", err
		}
		defer func() {
			if serr := db.stop(); err == nil {
				err = serr
			}
		}()
		if err := db.load(ctx); err != nil {
			return "", "", err
		}
	}
	// The two versions are of stopped databases, which have written all their pages; the commits in a row are not.
	l.say("stack: commits of the stopped databases")
	if first, err = stoppedCommit(ctx, s, r, dbs, root, "first"); err != nil {
		return "", "", err
	}
	if err := transactions(ctx, dbs); err != nil {
		return "", "", err
	}
	if second, err = stoppedCommit(ctx, s, r, dbs, root, "second"); err != nil {
		return "", "", err
	}
	l.say("stack: commits of the running databases")
	return first, second, inARow(ctx, s, r, dbs)
}

// stoppedCommit stops the databases, commits, and starts them again.
func stoppedCommit(ctx context.Context, s *server, r *record, dbs []database, root, which string) (string, error) {
	for _, db := range dbs {
		if err := db.stop(); err != nil {
			return "", err
		}
	}
	to, err := commitAndCopy(ctx, s, r, which)
	if err != nil {
		return "", err
	}
	for _, db := range dbs {
		if err := db.start(ctx, filepath.Join(root, db.name())); err != nil {
			return "", err
		}
	}
	return to, nil
}

func transactions(ctx context.Context, dbs []database) error {
	for i, n := range []int{sysbenchEvents, pgbenchEvents, redisWrites} {
		if err := dbs[i].transact(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

// commitAndCopy commits the stack and copies the commit to the host.
func commitAndCopy(ctx context.Context, s *server, r *record, which string) (string, error) {
	c, u, err := s.commit(ctx, "stack")
	if err != nil {
		return "", err
	}
	r.usage("volume/"+which, u)
	r.add("volume/"+which+"/pause_ms", c.Pause)
	r.add("volume/"+which+"/dirty", float64(c.Dirty))
	r.add("volume/"+which+"/read", float64(c.Read))
	r.add("volume/"+which+"/stored", float64(c.Stored))
	at, err := s.mkdir("mounted-" + which)
	if err != nil {
		return "", err
	}
	to, err := s.mkdir("copy-" + which)
	if err != nil {
		return "", err
	}
	if _, _, err := s.dm(ctx, "mount", "stack:"+c.ID, at); err != nil {
		return "", err
	}
	if _, _, err := s.run(ctx, "", "cp", "-a", at+"/.", to); err != nil {
		return "", err
	}
	_, _, err = s.dm(ctx, "umount", at)
	return to, err
}

// inARow commits after each of many rounds of small transactions, and reads the state that this leaves in the store.
func inARow(ctx context.Context, s *server, r *record, dbs []database) error {
	var last committed
	for i := range s.commits {
		if err := transactions(ctx, dbs); err != nil {
			return err
		}
		c, u, err := s.commit(ctx, "stack")
		if err != nil {
			return err
		}
		last = c
		third := min(3*i/max(s.commits, 1), 2) // beginning, middle and end: does it grow?
		for _, key := range []string{fmt.Sprintf("row/%d", third), "row/all"} {
			r.add(key+"/wall", u.wall.Seconds())
			r.add(key+"/stored", float64(c.Stored))
			r.add(key+"/dirty", float64(c.Dirty))
			r.add(key+"/read", float64(c.Read))
			r.add(key+"/pause_ms", c.Pause)
			r.add(key+"/rss", float64(u.rss))
		}
	}
	if last.ID == "" {
		return nil
	}
	at, err := s.mkdir("mounted-last")
	if err != nil {
		return err
	}
	if _, _, err := s.dm(ctx, "mount", "stack:"+last.ID, at); err != nil {
		return err
	}
	u, n, err := readAll(ctx, s.lab, at)
	if err != nil {
		return err
	}
	r.add("row/read_mb_s", float64(n)/1e6/u.wall.Seconds())
	_, _, err = s.dm(ctx, "umount", at)
	return err
}

// keepBoth has one keeper keep the first version, then the second, then restore that.
func keepBoth(ctx context.Context, l *lab, r *record, k keeper, first, second string) (err error) {
	dir, err := k.prepare(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := k.close(context.WithoutCancel(ctx)); err == nil {
			err = cerr
		}
	}()
	if _, err := l.quiet(ctx, "cp", "-a", first+"/.", dir); err != nil {
		return err
	}
	if err := keepOne(ctx, l, r, k, dir, "first"); err != nil {
		return err
	}
	c, err := change(ctx, dir, first, second)
	if err != nil {
		return err
	}
	r.add("changed/files", float64(c.files))
	r.add("changed/bytes", float64(c.bytes))
	if err := keepOne(ctx, l, r, k, dir, "second"); err != nil {
		return err
	}
	size, err := onDisk(second)
	if err != nil {
		return err
	}
	r.add("size", float64(size))
	for _, way := range k.restores() {
		if err := l.settle(ctx); err != nil {
			return err
		}
		out, u, err := way.do(ctx)
		if err != nil {
			return err
		}
		r.usage("restore/"+way.how, u)
		if err := same(ctx, second, out); err != nil {
			return err
		}
		if out != dir {
			if err := os.RemoveAll(out); err != nil {
				return err
			}
		}
	}
	return nil
}

func keepOne(ctx context.Context, l *lab, r *record, k keeper, dir, which string) error {
	before, err := k.stored()
	if err != nil {
		return err
	}
	if err := l.settle(ctx, dir); err != nil {
		return err
	}
	u, err := k.keep(ctx)
	if err != nil {
		return err
	}
	after, err := k.stored()
	if err != nil {
		return err
	}
	r.usage(which+"/"+k.name(), u)
	r.add(which+"/"+k.name()+"/stored", float64(after-before))
	return nil
}
