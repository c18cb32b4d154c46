package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"
)

// pause measures how long a write may wait for a commit, as the server says and as writers see it: first with the
// writers alone, then with three databases busy as well.
func pause(ctx context.Context, l *lab, r *record) (err error) {
	r.title("The pause of a commit")
	s, err := l.serve(ctx, "pause")
	if err != nil {
		return err
	}
	subdots := []string{"mariadb", "postgres", "redis", "bulk", "plain"}
	root, err := s.create(ctx, "pause", subdots...)
	if err != nil {
		return err
	}
	dbs := databases(l)
	for _, db := range dbs {
		l.say("pause: load %s", db.name())
		dir := filepath.Join(root, db.name())
		if err := db.create(ctx, dir); err != nil {
			return err
		}
		if err := db.start(ctx, dir); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, db.stop()) }()
		if err := db.load(ctx); err != nil {
			return err
		}
	}
	var dirs []string
	for _, d := range subdots {
		dirs = append(dirs, filepath.Join(root, d))
	}
	w, err := startWriters(l, dirs)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.end()) }()
	if err := pauseRounds(ctx, s, r, w, root, "writers"); err != nil {
		return err
	}
	stop := keepBusy(ctx, dbs)
	err = pauseRounds(ctx, s, r, w, root, "databases")
	if err = errors.Join(err, stop()); err != nil {
		return err
	}
	pauseTable(r)
	return nil
}

// keepBusy runs the databases' own benchmarks until the function that it returns is called.
func keepBusy(ctx context.Context, dbs []database) func() error {
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	errs := make([]error, len(dbs))
	for i, db := range dbs {
		all.Go(func() {
			for ctx.Err() == nil {
				if _, err := db.rate(ctx, 10); err != nil && ctx.Err() == nil {
					errs[i] = err
					return
				}
			}
		})
	}
	return func() error {
		cancel()
		all.Wait()
		return errors.Join(errs...)
	}
}

// quietLimit bounds the time for which writers are watched while there is no commit.
const quietLimit = 2 * time.Second

// pauseRounds writes fresh data and commits it, again and again. Before each commit the writers are watched for as long
// as the commit before took, or quietLimit.
func pauseRounds(ctx context.Context, s *server, r *record, w *writers, root, key string) error {
	bulk, err := os.OpenFile(filepath.Join(root, "bulk", "file"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return fmt.Errorf("write fresh data: %w", err)
	}
	defer bulk.Close()
	rng := rand.New(rand.NewPCG(3, 4))
	quiet := time.Second
	for i := range s.rounds {
		if i%10 == 0 {
			s.say("pause: %s: commit %d of %d", key, i+1, s.rounds)
		}
		if err := fresh(ctx, bulk, int64(s.freshMB)<<20, rng); err != nil {
			return err
		}
		if _, err := w.ask(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(quiet):
		}
		got, err := w.ask()
		if err != nil {
			return err
		}
		r.writers(key+"/quiet", got, quiet)
		c, u, err := s.commit(ctx, "pause")
		if err != nil {
			return err
		}
		if got, err = w.ask(); err != nil {
			return err
		}
		r.writers(key+"/commit", got, u.wall)
		r.add(key+"/pause_ms", c.Pause)
		r.add(key+"/dirty", float64(c.Dirty))
		r.usage(key, u)
		quiet = min(u.wall, quietLimit)
	}
	return nil
}

func (r *record) writers(key string, got seen, in time.Duration) {
	r.add(key+"_ms", got.longest)
	r.add(key+"_writes", got.writes/in.Seconds())
	r.add(key+"_slow", got.slow/in.Seconds())
}

// fresh writes new content over a whole file. It compresses well, so that many rounds fit on a disk.
func fresh(ctx context.Context, f *os.File, size int64, rng *rand.Rand) error {
	buf := make([]byte, 256*page)
	for at := int64(0); at < size; at += int64(len(buf)) {
		for p := 0; p < len(buf); p += page {
			fill(buf[p:p+16], rng)
		}
		if _, err := f.WriteAt(buf, at); err != nil {
			return fmt.Errorf("write fresh data: %w", err)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

// writers is the process of the writers.
type writers struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func startWriters(l *lab, dirs []string) (*writers, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("start the writers: %w", err)
	}
	w := &writers{cmd: exec.Command(self, append([]string{writersArg, fmt.Sprint(l.openFiles)}, dirs...)...)}
	w.cmd.Stderr = os.Stderr
	if w.in, err = w.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("start the writers: %w", err)
	}
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start the writers: %w", err)
	}
	w.out = bufio.NewReader(out)
	if err := w.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the writers: %w", err)
	}
	if line, err := w.out.ReadString('\n'); line != "ready\n" {
		return nil, fmt.Errorf("start the writers: %w: %q", err, line)
	}
	return w, nil
}

// seen is what the writers saw since they were last asked.
type seen struct {
	writes, slow float64
	longest      float64 // milliseconds
}

func (w *writers) ask() (seen, error) {
	if _, err := io.WriteString(w.in, "\n"); err != nil {
		return seen{}, fmt.Errorf("ask the writers: %w", err)
	}
	line, err := w.out.ReadString('\n')
	var got seen
	if err == nil {
		_, err = fmt.Sscan(line, &got.writes, &got.slow, &got.longest)
	}
	if err != nil {
		return seen{}, fmt.Errorf("ask the writers: %w", err)
	}
	got.longest /= 1e6
	return got, nil
}

func (w *writers) end() error {
	if err := errors.Join(w.in.Close(), w.cmd.Wait()); err != nil {
		return fmt.Errorf("end the writers: %w", err)
	}
	return nil
}

func pauseTable(r *record) {
	var rows [][]string
	for _, load := range []struct{ key, name string }{{"writers", "writers"}, {"databases", "writers, three databases"}} {
		for _, m := range []struct{ key, name string }{
			{"pause_ms", "pause, the server's figure"},
			{"commit_ms", "longest write while a commit runs"},
			{"quiet_ms", fmt.Sprintf("longest write in up to %v without one", quietLimit)},
		} {
			k := load.key + "/" + m.key
			rows = append(rows, []string{load.name, m.name, millis(r.med(k)), millis(r.quantile(k, 0.99)), millis(r.quantile(k, 1))})
		}
	}
	r.table(fmt.Sprintf("%d commits of a dot of 5 subdots, each with %d MiB of fresh dirty data, while %d threads write 4 KiB pages into %d files "+
		"held open (aim: median under 5 ms, p99 under 20 ms). A write that waits for a processor counts as well.",
		r.lab.rounds, r.lab.freshMB, writerCount, r.lab.openFiles), []string{"load", "", "median", "p99", "max"}, rows)
	rows = nil
	for _, key := range []string{"writers", "databases"} {
		rows = append(rows, []string{
			key, megabytes(r.med(key + "/dirty")), seconds(r.med(key + "/wall")), megabytes(r.quantile(key+"/rss", 1)), count(r.med(key + "/quiet_writes")),
			count(r.med(key + "/commit_writes")), fmt.Sprintf("%.1f", r.med(key+"/quiet_slow")), fmt.Sprintf("%.1f", r.med(key+"/commit_slow")),
		})
	}
	r.table(fmt.Sprintf("These commits (medians; memory: the largest). Slow writes are those of %v and more.", slowWrite), []string{
		"load", "dirty", "wall", "peak memory", "writes/s before", "writes/s meanwhile", "slow writes/s before", "slow writes/s meanwhile",
	}, rows)
}
