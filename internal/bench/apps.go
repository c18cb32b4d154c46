package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// commitEvery is the time between commits while a database is measured.
const commitEvery = 5 * time.Second

// withCommits is the name of a column: the dm volume while its dot is committed again and again.
const withCommits = "dm, commits every 5 s"

// programs runs databases, tar, git and find on each target.
func programs(ctx context.Context, l *lab, r *record, targets []target) error {
	for _, db := range databases(l)[:2] {
		if err := databaseRates(ctx, l, r, db, targets); err != nil {
			return fmt.Errorf("%s: %w", db.name(), err)
		}
	}
	return treeTimes(ctx, l, r, targets)
}

// databaseRates loads a database once, copies its stopped files to each target, and measures it there, in turns.
func databaseRates(ctx context.Context, l *lab, r *record, db database, targets []target) error {
	src, err := l.mkdir("source-" + db.name())
	if err != nil {
		return err
	}
	l.say("fs: load %s", db.name())
	if err := db.create(ctx, src); err != nil {
		return err
	}
	if err := db.start(ctx, src); err != nil {
		return err
	}
	if err := errors.Join(db.load(ctx), db.stop()); err != nil {
		return err
	}
	for _, t := range targets {
		if _, err := l.quiet(ctx, "cp", "-a", src, filepath.Join(t.dir, db.name())); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(src); err != nil {
		return err
	}
	for rep := range l.reps {
		for _, t := range targets {
			l.say("fs: repetition %d of %d: %s on %s", rep+1, l.reps, db.name(), t.name)
			v, err := rateOn(ctx, l, db, t, nil)
			if err != nil {
				return err
			}
			r.add("rate/"+db.name()+"/"+t.name, v)
			if t.server == nil {
				continue
			}
			if v, err = rateOn(ctx, l, db, t, r); err != nil {
				return err
			}
			r.add("rate/"+db.name()+"/"+withCommits, v)
		}
	}
	for _, t := range targets {
		if err := os.RemoveAll(filepath.Join(t.dir, db.name())); err != nil {
			return err
		}
	}
	return nil
}

// rateOn measures a database on a target; with a record, while its dot is being committed, which it then records.
func rateOn(ctx context.Context, l *lab, db database, t target, r *record) (rate float64, err error) {
	if err := l.settle(ctx, t.dir); err != nil {
		return 0, err
	}
	if err := db.start(ctx, filepath.Join(t.dir, db.name())); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, db.stop()) }()
	if r != nil {
		stop := commits(ctx, t.server, db.name(), r)
		defer func() { err = errors.Join(err, stop()) }()
	}
	return db.rate(ctx, 3*l.seconds)
}

// commits commits again and again until the function that it returns is called.
func commits(ctx context.Context, s *server, name string, r *record) func() error {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error)
	go func() {
		tick := time.NewTicker(commitEvery)
		defer tick.Stop()
		for {
			c, u, err := s.commit(context.WithoutCancel(ctx), "fs")
			if err != nil {
				done <- err
				return
			}
			r.add("commits/"+name+"/wall", u.wall.Seconds())
			r.add("commits/"+name+"/pause_ms", c.Pause)
			select {
			case <-ctx.Done():
				done <- nil
				return
			case <-tick.C:
			}
		}
	}()
	return func() error {
		cancel()
		return <-done
	}
}

// treeTimes times programs that work on many small files.
func treeTimes(ctx context.Context, l *lab, r *record, targets []target) error {
	archive, err := sourceTree(ctx, l)
	if err != nil {
		return err
	}
	for rep := range l.reps {
		for _, t := range targets {
			l.say("fs: repetition %d of %d: tar, git, find on %s", rep+1, l.reps, t.name)
			if err := treeOn(ctx, l, r, archive, t); err != nil {
				return fmt.Errorf("%s: %w", t.name, err)
			}
		}
	}
	return nil
}

// sourceTree makes an archive of a git working tree with many files of 1 to 8 KiB.
func sourceTree(ctx context.Context, l *lab) (string, error) {
	dir, err := l.mkdir("tree")
	if err != nil {
		return "", err
	}
	line := strings.Repeat("a line of source text, like so many others\n", 200)
	for i := range l.many {
		name := filepath.Join(dir, fmt.Sprintf("d%02d", i/1000), fmt.Sprintf("p%d", i/100%10), fmt.Sprintf("f%05d.txt", i))
		if err := errors.Join(ctx.Err(), os.MkdirAll(filepath.Dir(name), 0o755)); err != nil {
			return "", err
		}
		if err := os.WriteFile(name, []byte(fmt.Sprint(i, "\n", line[:1000+i%8*1000])), 0o644); err != nil {
			return "", err
		}
	}
	for _, args := range [][]string{{"init", "-q"}, {"add", "-A"}, {"commit", "-q", "-m", "all"}} {
		if _, err := l.quiet(ctx, "git", append([]string{"-C", dir, "-c", "gc.auto=0", "-c", "maintenance.auto=false"}, args...)...); err != nil {
			return "", err
		}
	}
	archive := filepath.Join(l.root, "tree.tar")
	if _, err := l.quiet(ctx, "tar", "-C", dir, "-cf", archive, "."); err != nil {
		return "", err
	}
	return archive, os.RemoveAll(dir)
}

// treeSteps is what is timed, in order; each in the directory that the first fills.
func treeSteps(archive string, many int) []struct{ name, shell string } {
	n := fmt.Sprint(many)
	return []struct{ name, shell string }{
		{"untar " + n + " files", "tar -xf " + archive},
		{"git status, first", "git status --porcelain"},
		{"git status, again", "git status --porcelain"},
		{"find -type f", "find . -type f"},
		{"find -newer (stat of each)", "find . -type f -newer /dev/null -size +0"},
		{"read all (grep)", "grep -rc nosuchtext . --exclude-dir=.git -l || true"},
		{"rm -rf", "rm -rf ./* .git"},
	}
}

func treeOn(ctx context.Context, l *lab, r *record, archive string, t target) error {
	dir := filepath.Join(t.dir, "tree")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for _, step := range treeSteps(archive, l.many) {
		if err := l.settle(ctx, t.dir); err != nil {
			return err
		}
		u, out, err := l.run(ctx, dir, "sh", "-c", step.shell)
		if err != nil {
			return err
		}
		if strings.HasPrefix(step.name, "git status") && out != "" {
			return fmt.Errorf("git sees changes where there are none: %s", tail(out))
		}
		r.add("tree/"+step.name+"/"+t.name, u.wall.Seconds())
	}
	return os.Remove(dir)
}
