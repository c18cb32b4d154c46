package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
)

// A large file holds dense random bytes at the start of each stride and a hole after them: what a database's file with
// free space is like, at the cost of a tenth of its size.
const (
	stride = 1 << 20
	dense  = 104 << 10
)

// writeBytes is what is written at once: a database's page.
const writeBytes = 8 << 10

// dirty measures commits of few changed bytes in large files.
func dirty(ctx context.Context, l *lab, r *record) error {
	r.title("Cost as data grows: few bytes changed in a large file")
	sizes, err := numbers(l.largeGB)
	if err != nil {
		return err
	}
	amounts, err := numbers(l.dirtyMB)
	if err != nil {
		return err
	}
	s, err := l.serve(ctx, "dirty")
	if err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for _, gb := range sizes {
		l.say("dirty: make a file of %d GB", gb)
		if err := largeFile(ctx, s, r, gb, rng); err != nil {
			return err
		}
	}
	for rep := range l.reps {
		for _, mb := range amounts {
			for _, gb := range sizes {
				l.say("dirty: repetition %d of %d: %d MB of %d GB", rep+1, l.reps, mb, gb)
				for _, scattered := range []bool{true, false} {
					if err := dirtyCommit(ctx, s, r, gb, mb, scattered, rng); err != nil {
						return err
					}
				}
			}
		}
	}
	dirtyTables(r, sizes, amounts)
	return nil
}

func largeDot(gb int) string { return fmt.Sprintf("large%d", gb) }

func largeFile(ctx context.Context, s *server, r *record, gb int, rng *rand.Rand) error {
	root, err := s.create(ctx, largeDot(gb), "data")
	if err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(root, "data", "file"))
	if err != nil {
		return fmt.Errorf("make a large file: %w", err)
	}
	defer f.Close()
	size := int64(gb) * 1e9 / stride * stride
	if err := f.Truncate(size); err != nil {
		return fmt.Errorf("make a large file: %w", err)
	}
	buf := make([]byte, dense)
	for at := int64(0); at < size && ctx.Err() == nil; at += stride {
		fill(buf, rng)
		if _, err := f.WriteAt(buf, at); err != nil {
			return fmt.Errorf("make a large file: %w", err)
		}
	}
	_, u, err := s.commit(ctx, largeDot(gb))
	if err != nil {
		return err
	}
	r.usage(largeDot(gb)+"/first", u)
	return f.Close()
}

// fill makes bytes that do not compress.
func fill(b []byte, rng *rand.Rand) {
	for i := 0; i+8 <= len(b); i += 8 {
		v := rng.Uint64()
		for j := range 8 {
			b[i+j] = byte(v >> (8 * j))
		}
	}
}

// dirtyCommit writes mb megabytes in pieces of 8 KiB, anywhere or in one row, and commits.
func dirtyCommit(ctx context.Context, s *server, r *record, gb, mb int, scattered bool, rng *rand.Rand) error {
	root, err := s.path(ctx, largeDot(gb)+".data")
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(root, "file"), os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("write to a large file: %w", err)
	}
	defer f.Close()
	slots := int64(gb) * 1e9 / stride * stride / writeBytes
	n := int64(mb) * 1e6 / writeBytes
	begin := rng.Int64N(slots - n)
	buf := make([]byte, writeBytes)
	for i := range n {
		slot := begin + i
		if scattered {
			slot = rng.Int64N(slots)
		}
		fill(buf, rng)
		if _, err := f.WriteAt(buf, slot*writeBytes); err != nil {
			return fmt.Errorf("write to a large file: %w", err)
		}
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("write to a large file: %w", err)
	}
	c, u, err := s.commit(ctx, largeDot(gb))
	if err != nil {
		return err
	}
	k := dirtyKey(gb, mb, scattered)
	r.usage(k, u)
	r.add(k+"/dirty", float64(c.Dirty))
	r.add(k+"/read", float64(c.Read))
	r.add(k+"/stored", float64(c.Stored))
	r.add(k+"/pause_ms", c.Pause)
	return nil
}

func dirtyKey(gb, mb int, scattered bool) string {
	if scattered {
		return fmt.Sprintf("%dgb/%dmb/scattered", gb, mb)
	}
	return fmt.Sprintf("%dgb/%dmb/row", gb, mb)
}

func dirtyTables(r *record, sizes, amounts []int) {
	var rows [][]string
	var wall, read []series
	for _, scattered := range []bool{true, false} {
		where := map[bool]string{true: "anywhere", false: "in one row"}[scattered]
		for _, gb := range sizes {
			w, rd := series{name: fmt.Sprintf("%d GB, %s", gb, where)}, series{name: fmt.Sprintf("%d GB, %s", gb, where)}
			for _, mb := range amounts {
				k := dirtyKey(gb, mb, scattered)
				rows = append(rows, []string{
					fmt.Sprintf("%d GB", gb), fmt.Sprintf("%d MB %s", mb, where), seconds(r.med(k + "/wall")), seconds(r.med(k + "/cpu")),
					megabytes(r.med(k + "/rss")), millis(r.med(k + "/pause_ms")), megabytes(r.med(k + "/dirty")), megabytes(r.med(k + "/read")),
					ratio(r.med(k+"/read") / r.med(k+"/dirty")), megabytes(r.med(k + "/stored")),
				})
				w.xy = append(w.xy, [2]float64{r.med(k + "/dirty"), 1000 * r.med(k+"/wall")})
				rd.xy = append(rd.xy, [2]float64{r.med(k+"/dirty") / 1e6, r.med(k+"/read") / 1e6})
			}
			for i := range w.xy {
				w.xy[i][0] /= 1e6
			}
			wall, read = append(wall, w), append(read, rd)
		}
	}
	r.table(fmt.Sprintf("One file in one dot: of each MiB, %d KiB are random bytes and the rest is a hole. Random bytes are written in pieces of 8 KiB, at random "+
		"offsets or in one row, then comes a commit. Medians of %d interleaved repetitions.", dense>>10, r.lab.reps),
		[]string{"file", "written", "wall", "cpu", "peak memory", "pause", "dirty", "read", "read / dirty", "stored"}, rows)
	r.draw("dirty-time.svg", chart{title: "Commit of few changed bytes in a large file", x: "dirty MB", y: "ms", series: wall})
	r.draw("dirty-read.svg", chart{title: "Bytes read by the commit", x: "dirty MB", y: "MB read", series: read})
}
