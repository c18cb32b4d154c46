package main

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// writersArg makes the program run as the writers: a process of its own, so that nothing else here delays them.
const writersArg = "writers"

// writerCount is how many of them write at the same time; writerRest is what each waits between two writes, so that the
// machine's processors are not full of them.
const (
	writerCount = 4
	writerRest  = 500 * time.Microsecond
	slowWrite   = 2 * time.Millisecond // what takes this long is counted
)

// watch is what was measured between two questions.
type watch struct {
	writes, slow, longest atomic.Int64 // longest in nanoseconds
}

// writersMain holds n files open in each directory and writes 4 KiB at a time into them, one after the other. Each line
// of input is answered with the number of writes since the last, that of the slow ones among them, and the longest in
// nanoseconds. The end of the input is the end.
func writersMain(args []string) int {
	if err := runWriters(args); err != nil {
		fmt.Fprintln(os.Stderr, "bench writers:", err)
		return 1
	}
	return 0
}

func runWriters(args []string) error {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return fmt.Errorf("read the number of files: %w", err)
	}
	var files []*os.File
	for i := range n {
		dir := filepath.Join(args[1:][i%len(args[1:])], "writers")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make a directory: %w", err)
		}
		f, err := os.OpenFile(filepath.Join(dir, fmt.Sprintf("w%05d", i)), os.O_RDWR|os.O_CREATE, 0o644)
		if err != nil {
			return fmt.Errorf("open a file: %w", err)
		}
		defer f.Close()
		files = append(files, f)
	}
	var w watch
	var stop atomic.Bool
	var all sync.WaitGroup
	failed := make(chan error, writerCount)
	for i := range writerCount {
		all.Go(func() { failed <- write(files, i, &w, &stop) })
	}
	fmt.Println("ready")
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		fmt.Println(w.writes.Swap(0), w.slow.Swap(0), w.longest.Swap(0))
	}
	stop.Store(true)
	all.Wait()
	for range writerCount {
		if err := <-failed; err != nil {
			return err
		}
	}
	return nil
}

// write goes round its share of the files.
func write(files []*os.File, first int, w *watch, stop *atomic.Bool) error {
	rng := rand.New(rand.NewPCG(uint64(first), 1))
	buf := make([]byte, page)
	for i := first; !stop.Load(); i += writerCount {
		fill(buf[:64], rng)
		begin := time.Now()
		if _, err := files[i%len(files)].WriteAt(buf, rng.Int64N(16)*page); err != nil {
			return fmt.Errorf("write: %w", err)
		}
		took := int64(time.Since(begin))
		w.writes.Add(1)
		if took >= int64(slowWrite) {
			w.slow.Add(1)
		}
		for old := w.longest.Load(); took > old && !w.longest.CompareAndSwap(old, took); old = w.longest.Load() {
		}
		time.Sleep(writerRest)
	}
	return nil
}
