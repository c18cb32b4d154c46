package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// filesPerDir and fileBytes shape the dots of many files.
const (
	filesPerDir = 250
	fileBytes   = 100
)

// touched is how many times one file is touched, and how many files in the other measurement.
const (
	touchedRounds = 7
	touchedMany   = 10
)

// files measures what one touched file costs in dots of different numbers of files, and what asking costs.
func files(ctx context.Context, l *lab, r *record) error {
	r.title("Cost as a dot grows: number of files")
	counts, err := numbers(l.fileCounts)
	if err != nil {
		return err
	}
	s, err := l.serve(ctx, "files")
	if err != nil {
		return err
	}
	for _, n := range counts {
		l.say("files: make a dot of %d files", n)
		if err := manyFiles(ctx, s, r, n); err != nil {
			return err
		}
	}
	for round := range touchedRounds {
		for _, n := range counts {
			if err := touchAndCommit(ctx, s, r, n, round, 1); err != nil {
				return err
			}
			if err := touchAndCommit(ctx, s, r, n, round, touchedMany); err != nil {
				return err
			}
			if err := look(ctx, s, r, n); err != nil {
				return err
			}
		}
	}
	filesTables(r, counts)
	return nil
}

func numbers(list string) ([]int, error) {
	var all []int
	for _, s := range strings.Split(list, ",") {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			return nil, fmt.Errorf("%q is no list of numbers above 0", list)
		}
		all = append(all, n)
	}
	return all, nil
}

func dotOf(n int) string { return "files" + strconv.Itoa(n) }

func fileOf(root string, i int) string {
	return filepath.Join(root, fmt.Sprintf("d%04d", i/filesPerDir), fmt.Sprintf("f%06d", i))
}

// manyFiles makes the files on the host, imports and commits them.
func manyFiles(ctx context.Context, s *server, r *record, n int) error {
	src, err := s.mkdir("source")
	if err != nil {
		return err
	}
	for i := range n {
		if i%filesPerDir == 0 {
			if err := errors.Join(ctx.Err(), os.Mkdir(filepath.Dir(fileOf(src, i)), 0o755)); err != nil {
				return fmt.Errorf("make files: %w", err)
			}
		}
		if err := os.WriteFile(fileOf(src, i), []byte(fmt.Sprintf("%-*d", fileBytes, i)), 0o644); err != nil {
			return fmt.Errorf("make files: %w", err)
		}
	}
	if _, err := s.create(ctx, dotOf(n)); err != nil {
		return err
	}
	u, _, err := s.dm(ctx, "import", src, dotOf(n)+".data")
	if err != nil {
		return err
	}
	r.usage(dotOf(n)+"/import", u)
	c, u, err := s.commit(ctx, dotOf(n))
	if err != nil {
		return err
	}
	r.usage(dotOf(n)+"/first", u)
	r.add(dotOf(n)+"/first/pause_ms", c.Pause)
	return os.RemoveAll(src)
}

// touchAndCommit rewrites some files, spread over the dot, and commits.
func touchAndCommit(ctx context.Context, s *server, r *record, n, round, touch int) error {
	root, err := s.path(ctx, dotOf(n)+".data")
	if err != nil {
		return err
	}
	for i := range touch {
		at := (i*n/touch + round*7919) % n
		text := fmt.Sprintf("%-*s", fileBytes, fmt.Sprint("round ", round, " ", touch, " ", at))
		if err := os.WriteFile(fileOf(root, at), []byte(text), 0o644); err != nil {
			return fmt.Errorf("touch a file: %w", err)
		}
	}
	c, u, err := s.commit(ctx, dotOf(n))
	if err != nil {
		return err
	}
	k := fmt.Sprintf("%s/touch%d", dotOf(n), touch)
	r.usage(k, u)
	r.add(k+"/duration", c.Duration/1000)
	r.add(k+"/pause_ms", c.Pause)
	r.add(k+"/read", float64(c.Read))
	r.add(k+"/stored", float64(c.Stored))
	return nil
}

// look asks for what a user asks for all the time.
func look(ctx context.Context, s *server, r *record, n int) error {
	for _, args := range [][]string{{"list"}, {"status", "--dot", dotOf(n)}, {"diff", "--dot", dotOf(n)}} {
		u, _, err := s.dm(ctx, args...)
		if err != nil {
			return err
		}
		r.usage(dotOf(n)+"/"+args[0], u)
	}
	return nil
}

func filesTables(r *record, counts []int) {
	var rows [][]string
	var first, one, ten, status [][2]float64
	for _, n := range counts {
		d := dotOf(n)
		rows = append(rows, []string{
			count(float64(n)), seconds(r.med(d + "/import/wall")), seconds(r.med(d + "/first/wall")), millis(r.med(d + "/first/pause_ms")),
			seconds(r.med(d + "/touch1/wall")), ratio(r.med(d+"/touch1/wall") / r.med(dotOf(counts[0])+"/touch1/wall")),
			megabytes(r.med(d + "/touch1/read")), millis(r.med(d + "/touch1/pause_ms")), seconds(r.med(d + "/touch10/wall")),
			megabytes(r.med(d + "/touch10/read")), seconds(r.med(d + "/list/wall")), seconds(r.med(d + "/status/wall")), seconds(r.med(d + "/diff/wall")),
		})
		x := float64(n)
		one = append(one, [2]float64{x, 1000 * r.med(d+"/touch1/wall")})
		ten = append(ten, [2]float64{x, 1000 * r.med(d+"/touch10/wall")})
		status = append(status, [2]float64{x, 1000 * r.med(d+"/status/wall")})
		first = append(first, [2]float64{x, 1000 * r.med(d+"/first/wall")})
	}
	r.table(fmt.Sprintf("Dots of files of %d bytes, %d in a directory, all on one server. Wall times of the commands; medians of %d rounds that go round the dots. "+
		"`dm list` lists all these dots each time.", fileBytes, filesPerDir, touchedRounds),
		[]string{
			"files", "`dm import`", "first commit", "its pause", "1 touched: commit", "/ smallest", "read", "pause", "10 touched: commit", "read",
			"`dm list`", "`dm status`", "`dm diff`",
		}, rows)
	r.draw("files.svg", chart{
		title: "Commands in dots of many files", x: "files in the dot", y: "ms",
		series: []series{{"first commit", first}, {"commit, 10 touched", ten}, {"commit, 1 touched", one}, {"dm status", status}},
	})
}
