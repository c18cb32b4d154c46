package dbs

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"dm/internal/e2e/watchdog"
)

func TestMain(m *testing.M) {
	watchdog.Run()
	os.Exit(watchdog.Tests(func(string) int { return m.Run() }))
}

// open makes a directory that servers running as other users can reach.
func open(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "dmdbs")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// loaded has all databases running under load below a directory of the host.
func loaded(t *testing.T, clients int) ([]Database, string, *Load) {
	t.Helper()
	root, dbs := open(t), All()
	for _, db := range dbs {
		dir := filepath.Join(root, db.Name())
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Stop() })
		if err := db.Init(dir); err != nil {
			t.Fatal(err)
		}
		if err := db.Start(dir); err != nil {
			t.Fatal(err)
		}
	}
	l := NewLoad(dbs, clients)
	if err := l.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Stop(); err != nil {
			t.Error(err)
		}
	})
	return dbs, root, l
}

// stopped stops this process's descendants, calls fn, and lets them go on.
func stopped(t *testing.T, fn func()) {
	t.Helper()
	pids := make(map[int]bool) // of all rounds: one whose parent ends after the first is no descendant in the next
	defer func() {
		for pid := range pids {
			syscall.Kill(pid, syscall.SIGCONT)
		}
	}()
	for range 3 { // a process may fork until it is stopped itself
		for _, pid := range descendants(t) {
			pids[pid] = true
			syscall.Kill(pid, syscall.SIGSTOP)
		}
		time.Sleep(20 * time.Millisecond)
	}
	fn()
}

func descendants(t *testing.T) []int {
	t.Helper()
	parent := make(map[int]int)
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, p := range stats {
		data, err := os.ReadFile(p)
		if err != nil {
			continue
		}
		var pid, ppid int
		var state string
		fmt.Sscan(string(data), &pid)
		fmt.Sscan(string(data[bytes.LastIndexByte(data, ')')+1:]), &state, &ppid)
		parent[pid] = ppid
	}
	var list []int
	for pid := range parent {
		for p := parent[pid]; p > 1; p = parent[p] {
			if p == os.Getpid() {
				list = append(list, pid)
				break
			}
		}
	}
	if len(list) == 0 {
		t.Fatal("no processes to stop")
	}
	return list
}

// rounds waits until client 0, which goes from database to database, has gone round so many times more.
func rounds(t *testing.T, load *Load, n int64) {
	t.Helper()
	want := load.Now().Acked[0][0] + n
	for range 1200 {
		if load.Now().Acked[0][0] >= want {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("the load has not come to %d in a minute", want)
}

func cp(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "-a", "--sparse=always", from, to).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// Copies made while every process stands still verify, as does the clean end; what is no state of the log does not.
func TestVerifyOnTheHost(t *testing.T) {
	const clients = 2
	dbs, root, load := loaded(t, clients)
	type saved struct {
		dir           string
		before, after Moment
	}
	var copies []saved
	for i := range 2 {
		rounds(t, load, 4)
		s := saved{dir: filepath.Join(open(t), fmt.Sprint(i)), before: load.Now()}
		stopped(t, func() { cp(t, root, s.dir) })
		s.after = load.Now()
		copies = append(copies, s)
	}
	if err := load.Stop(); err != nil {
		t.Fatal(err)
	}
	for _, db := range dbs {
		if err := db.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	end := load.Now()
	for i, s := range copies {
		state, err := Verify(dbs, s.dir, clients, s.before, s.after)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("copy %d holds %v", i, state)
		if state[0][0] == 0 || state[0][1] == 0 {
			t.Errorf("nothing was done: %v", state)
		}
	}
	if _, err := Verify(dbs, root, clients, end, end); err != nil {
		t.Error(err)
	}
	if _, err := Verify(dbs, copies[0].dir, clients, end, end); err == nil || !strings.Contains(err.Error(), "acknowledged") {
		t.Errorf("a state from before the commit was taken for one of the commit: %v", err)
	}
	// A newer Redis beside older others: what a commit that is not one instant would hold.
	mixed := filepath.Join(open(t), "mixed")
	cp(t, copies[0].dir, mixed)
	if err := os.RemoveAll(filepath.Join(mixed, "redis")); err != nil {
		t.Fatal(err)
	}
	cp(t, filepath.Join(copies[1].dir, "redis"), filepath.Join(mixed, "redis"))
	if _, err := Verify(dbs, mixed, clients, copies[0].before, end); err == nil || !strings.Contains(err.Error(), "one instant") {
		t.Errorf("subdots of two moments were taken for one: %v", err)
	}
}

// Flipped bytes in the files make a database fail to start, to answer or to pass its check. SQLite's log is spoiled with its
// file: what it still holds would stand in for the damaged pages.
func TestVerifyFindsDamage(t *testing.T) {
	const clients = 1
	dbs, root, load := loaded(t, clients)
	time.Sleep(500 * time.Millisecond)
	if err := load.Stop(); err != nil {
		t.Fatal(err)
	}
	for _, db := range dbs {
		if err := db.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	end := load.Now()
	for i, file := range []string{"mariadb/dm/first.ibd", "postgres/base/16384/163[89]*", "redis/appendonlydir/*.aof", "sqlite/client0.db*"} {
		files, err := filepath.Glob(filepath.Join(root, file))
		if err != nil || len(files) == 0 {
			t.Fatalf("no %s: %v", file, err)
		}
		for _, f := range files {
			spoil(t, f)
		}
		sub := Moment{Sent: end.Sent[i : i+1], Acked: end.Acked[i : i+1]}
		if _, err := Verify(dbs[i:i+1], root, clients, sub, sub); err == nil {
			t.Errorf("%s is damaged, and passes", file)
		}
	}
}

// spoil overwrites bytes in every other page from the fourth on.
func spoil(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for at := min(3*4096, len(data)/2&^4095); at < len(data); at += 8192 {
		copy(data[at:], "spoiled bytes of a page that was good before")
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}
