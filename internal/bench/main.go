// Command bench measures dm: against restic and borg on the files of real databases, against itself as dots grow, against
// the host's filesystem and other FUSE filesystems, and the pause that a commit causes.
//
// Everything that is compared is measured in one run on one machine, on directories of one filesystem, in interleaved
// repetitions (A B A B), and reported as medians beside the commands that were run. Sizes are flags, so that one part
// can be tried small; what docs/performance.md shows is the defaults.
//
//	main.go       parts, flags
//	lab.go        the directory where it happens, running and measuring commands
//	dm.go         a dm server of its own, its CPU time and memory
//	database.go   MariaDB, PostgreSQL and Redis, their loads
//	stack.go      part "stack": commits and restores of databases, beside restic and borg
//	backup.go     restic, borg and dm as three ways to keep the same files
//	change.go     making one tree of files equal to another by writing what differs
//	transfer.go   part "transfer": the same files to a server, beside rsync, restic and rclone
//	movers.go     dm, rsync, restic and rclone as four ways to send files, and their servers
//	link.go       a connection with a delay
//	deltas.go     part "deltas": ways to store what changed
//	files.go      part "files": one file touched in dots of many files
//	dirty.go      part "dirty": few bytes changed in large files
//	fs.go         part "fs": the volume as a filesystem: its targets and fio
//	apps.go       programs on these filesystems: databases, tar, git, find
//	pause.go      part "pause": how long writers wait for a commit
//	writers.go    the writers, a process of their own
//	record.go     samples, medians, tables
//	report.go     markdown and JSON
//	chart.go      SVG
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"dm/internal/e2e/watchdog"
)

// options is what the flags say.
type options struct {
	dm, dir, docs string
	parts         string
	reps          int
	keep          bool

	sysbenchRows, pgScale, redisKeys int
	commits                          int
	versions                         string

	fileCounts string
	largeGB    string
	dirtyMB    string

	seconds int
	fioMB   int
	targets string
	many    int

	rounds    int
	freshMB   int
	openFiles int
}

func (o *options) register(f *flag.FlagSet) {
	f.StringVar(&o.dm, "dm", "bin/dm", "the dm program")
	f.StringVar(&o.dir, "dir", "/var/tmp", "where to work; everything is compared on this filesystem")
	f.StringVar(&o.docs, "docs", "docs", "the folder of performance.md and its pictures; empty: print only")
	f.StringVar(&o.parts, "parts", strings.Join(partNames(), ","), "the parts to run")
	f.IntVar(&o.reps, "reps", 3, "interleaved repetitions of what is compared")
	f.BoolVar(&o.keep, "keep", false, "leave the working directory")
	f.IntVar(&o.sysbenchRows, "sysbench-rows", 250000, "rows in each of 4 sysbench tables")
	f.IntVar(&o.pgScale, "pgbench-scale", 20, "pgbench's scale")
	f.IntVar(&o.redisKeys, "redis-keys", 400000, "keys of 100 bytes in Redis")
	f.IntVar(&o.commits, "commits", 50, "commits in a row")
	f.StringVar(&o.versions, "versions", "", "DIR,DIR: two versions of files for part deltas, in place of running databases")
	f.StringVar(&o.fileCounts, "files", "1000,50000,200000,500000", "numbers of files in a dot")
	f.StringVar(&o.largeGB, "large-gb", "1,10", "sizes of the files in which few bytes change")
	f.StringVar(&o.dirtyMB, "dirty-mb", "1,10,100", "how many MB of them change")
	f.IntVar(&o.seconds, "seconds", 5, "how long one fio job runs; a database runs three times as long")
	f.IntVar(&o.fioMB, "fio-mb", 512, "size of fio's file")
	f.StringVar(&o.targets, "targets", "host,dm,loopback,overlayfs,bindfs", "the filesystems to compare")
	f.IntVar(&o.many, "many", 50000, "files to untar, look at and find")
	f.IntVar(&o.rounds, "rounds", 100, "commits whose pause is measured")
	f.IntVar(&o.freshMB, "fresh-mb", 1024, "MB written just before each of these commits")
	f.IntVar(&o.openFiles, "open-files", 2000, "files open for writing during these commits")
}

// part is one part of the benchmark. It records samples and tables in r.
type part struct {
	name  string
	limit time.Duration
	run   func(ctx context.Context, l *lab, r *record) error
}

func parts() []part {
	return []part{
		{"stack", 45 * time.Minute, stack},
		{"transfer", 60 * time.Minute, transfers},
		{"deltas", 20 * time.Minute, deltas},
		{"files", 30 * time.Minute, files},
		{"dirty", 20 * time.Minute, dirty},
		{"fs", 90 * time.Minute, filesystems},
		{"pause", 90 * time.Minute, pause},
	}
}

func partNames() []string {
	var names []string
	for _, p := range parts() {
		names = append(names, p.name)
	}
	return names
}

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	watchdog.Run()
	if len(args) > 0 && args[0] == writersArg {
		return writersMain(args[1:])
	}
	var o options
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	o.register(flags)
	if flags.Parse(args) != nil {
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := bench(ctx, &o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	return 0
}

func bench(ctx context.Context, o *options) (err error) {
	names := strings.Split(o.parts, ",")
	for _, n := range names {
		if !slices.Contains(partNames(), n) {
			return fmt.Errorf("no part %q: there are %s", n, strings.Join(partNames(), ", "))
		}
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("database servers run as users of their own, and volumes are shown to them: run this as root")
	}
	for _, p := range parts() {
		if !slices.Contains(names, p.name) {
			continue
		}
		if err := runPart(ctx, o, p); err != nil {
			return fmt.Errorf("part %s: %w", p.name, err)
		}
	}
	return nil
}

func runPart(ctx context.Context, o *options, p part) (err error) {
	ctx, cancel := context.WithTimeout(ctx, p.limit)
	defer cancel()
	l, err := newLab(o, p.name)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := l.close(); err == nil {
			err = cerr
		}
	}()
	r := newRecord(p.name, l)
	if err := p.run(ctx, l, r); err != nil {
		return err
	}
	r.finish()
	return r.publish(o.docs)
}
