package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// delays is how long the way to the server takes there and back.
func delays() []time.Duration { return []time.Duration{0, 50 * time.Millisecond} }

// nothingRounds is how often it is measured that there is nothing to send.
const nothingRounds = 5

// transfers sends the files of three databases, and what small transactions have changed of them, to a server behind a link:
// with dm to a hub, and with rsync, restic and rclone.
func transfers(ctx context.Context, l *lab, r *record) error {
	r.title("Transfers: beside rsync, restic and rclone")
	small := *l.options
	small.commits = 0 // the two versions are all that is needed of the databases
	l.options = &small
	first, second, err := live(ctx, l, r)
	if err != nil {
		return err
	}
	size, err := onDisk(second)
	if err != nil {
		return err
	}
	r.add("size", float64(size))
	for rep := range l.reps {
		for _, delay := range delays() {
			for _, m := range movers(l) {
				l.say("transfer: repetition %d of %d, delay %v: %s", rep+1, l.reps, delay, m.name())
				if err := move(ctx, l, r, m, delay, first, second); err != nil {
					return fmt.Errorf("%s: %w", m.name(), err)
				}
			}
		}
	}
	transferTables(r)
	return nil
}

// move has one mover send the first version, nothing, and then the second.
func move(ctx context.Context, l *lab, r *record, m mover, delay time.Duration, first, second string) (err error) {
	dir, k, err := m.prepare(ctx, delay/2)
	defer func() {
		if cerr := m.close(); err == nil {
			err = cerr
		}
	}()
	if err != nil {
		return err
	}
	if _, err := l.quiet(ctx, "cp", "-a", first+"/.", dir); err != nil {
		return err
	}
	key := func(what string) string { return fmt.Sprintf("%s/%d/%s", what, delay.Milliseconds(), m.name()) }
	if err := sendOne(ctx, l, r, m, k, dir, key("first")); err != nil {
		return err
	}
	for range nothingRounds {
		if err := send(ctx, r, m, k, key("nothing")); err != nil {
			return err
		}
	}
	if _, err := change(ctx, dir, first, second); err != nil {
		return err
	}
	if err := sendOne(ctx, l, r, m, k, dir, key("second")); err != nil {
		return err
	}
	if to := m.arrived(); to != "" {
		if err := same(ctx, second, to); err != nil {
			return err
		}
	}
	if d, ok := m.(*dmMover); ok {
		return manyCommits(ctx, l, r, d, k, key("many"))
	}
	return nil
}

// sendOne sends what is in dir. dm's commit is measured by itself: it is what makes the rest know what there is to send.
func sendOne(ctx context.Context, l *lab, r *record, m mover, k *link, dir, key string) error {
	if err := l.settle(ctx, dir); err != nil {
		return err
	}
	if d, ok := m.(*dmMover); ok {
		_, u, err := d.server.commit(ctx, "stack")
		if err != nil {
			return err
		}
		r.usage(key+"/commit", u)
	}
	return send(ctx, r, m, k, key)
}

// send has a mover send what there is, and records the cost.
func send(ctx context.Context, r *record, m mover, k *link, key string) error {
	before := k.bytes.Load()
	u, err := m.send(ctx)
	if err != nil {
		return err
	}
	r.usage(key, u)
	r.add(key+"/bytes", float64(k.bytes.Load()-before))
	return nil
}

const manyCount = 1000

// manyCommits pushes a thousand small commits at once.
func manyCommits(ctx context.Context, l *lab, r *record, m *dmMover, k *link, key string) error {
	file := filepath.Join(m.dir, "redis", "counter")
	for i := range manyCount {
		if err := os.WriteFile(file, []byte(strings.Repeat(fmt.Sprintln(i), 20)), 0o644); err != nil {
			return err
		}
		if _, _, err := m.server.commit(ctx, "stack"); err != nil {
			return err
		}
	}
	return send(ctx, r, m, k, key)
}

func transferTables(r *record) {
	for _, delay := range delays() {
		ms := delay.Milliseconds()
		var rows [][]string
		for _, what := range []struct{ key, text string }{
			{"first", "everything, to an empty server"}, {"second", "after small transactions"}, {"nothing", "nothing to send"},
		} {
			for _, name := range []string{"dm", "rsync", "restic", "rclone"} {
				k := fmt.Sprintf("%s/%d/%s", what.key, ms, name)
				restic := r.med(fmt.Sprintf("%s/%d/restic/bytes", what.key, ms))
				tool := name
				if name == "dm" && what.key != "nothing" {
					tool = fmt.Sprintf("dm push (commit before it: %s)", seconds(r.med(k+"/commit/wall")))
				}
				rows = append(rows, []string{
					what.text, tool, seconds(r.med(k + "/wall")), seconds(r.med(k + "/cpu")), megabytes(r.med(k + "/rss")),
					megabytes(r.med(k + "/bytes")), ratio(r.med(k+"/bytes") / restic),
				})
			}
		}
		k := fmt.Sprintf("many/%d/dm", ms)
		rows = append(rows, []string{
			fmt.Sprintf("%d commits of a small file", manyCount), "dm push", seconds(r.med(k + "/wall")), seconds(r.med(k + "/cpu")),
			megabytes(r.med(k + "/rss")), megabytes(r.med(k + "/bytes")), "-",
		})
		r.table(fmt.Sprintf("%d ms there and back. The files of three stopped databases (%s on disk), then what %d sysbench and %d pgbench transactions and %d Redis "+
			"writes changed. Bytes are those in both directions over the connections; CPU and memory are those of the near side, dm's server included. "+
			"Medians of %d repetitions, %d times as many of nothing.", ms, megabytes(r.med("size")), sysbenchEvents, pgbenchEvents, redisWrites, r.lab.reps, nothingRounds),
			[]string{"what", "tool", "wall", "cpu", "peak memory", "bytes", "bytes / restic"}, rows)
	}
}
