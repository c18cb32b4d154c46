package dot

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// crashHome names the directory in which this process is to work until it is killed.
const crashHome = "DM_TEST_CRASH_HOME"

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashHome); dir != "" {
		victim(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

// loud is a tester for a process that only has to live or die.
type loud struct{}

func (loud) Helper()         {}
func (loud) Error(a ...any)  { loud{}.Fatal(a...) }
func (loud) Fatal(a ...any)  { fmt.Println(append([]any{"FAIL"}, a...)...); os.Exit(1) }
func say(what string, n int) { fmt.Println(what, n) }

// The two files that a victim keeps in step, a always first. The second is large enough to be cut into many chunks.
const (
	fileA, fileB = "s/a", "u/b"
	sizeB        = 4 << 20
)

func putStep(f *files, p string, n int) {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(n))
	f.writeAt(p, 0, b[:])
}

// victim writes numbers, commits and resets, and says before (capital letter) and after each what it does.
func victim(dir string) {
	h := &home{t: loud{}, dir: dir}
	h.open()
	n := Name{Namespace: DefaultNamespace, Dot: "d"}
	f := h.fs(n)
	tips := map[string]int{}
	var ids []string
	for step := getStep(f.read(fileA)) + 1; ; step++ {
		switch {
		case step%7 == 6 && len(ids) > 1:
			id := ids[rand.IntN(len(ids))]
			fmt.Println("R", tips[id], id)
			if _, err := h.Reset(context.Background(), n, id, true); err != nil {
				loud{}.Fatal(err)
			}
			fmt.Println("r", tips[id], id)
			step = max(step, tips[id])
		default:
			say("W", step)
			putStep(f, fileA, step)
			random := make([]byte, 1+rand.IntN(200_000))
			random[0] = byte(step)
			f.writeAt(fileB, 8+rand.Int64N(sizeB-300_000), random)
			putStep(f, fileB, step)
			say("w", step)
		}
		if step%3 == 0 {
			now := getStep(f.read(fileA))
			say("C", now)
			id := h.commit(n, strconv.Itoa(now)).Commit
			fmt.Println("c", now, id)
			tips[id] = now
			ids = append(ids, id)
		}
	}
}

func getStep(b []byte) int { return int(binary.BigEndian.Uint64(b)) }

// last is what the victim said before it died.
type last struct {
	done    int    // the number that is in both files for sure, unless more was begun
	tip     string // the branch's commit for sure, unless more was begun
	begun   string // the operation under way: W, C, R or none
	begunN  int
	begunID string
}

func (l *last) read(r io.Reader) error {
	for s := bufio.NewScanner(r); s.Scan(); {
		word := append(strings.Fields(s.Text()), "")
		if word[0] == "FAIL" {
			return fmt.Errorf("the victim failed: %s", s.Text())
		}
		n, err := strconv.Atoi(word[1])
		if err != nil {
			return err
		}
		switch word[0] {
		case "W", "C", "R":
			l.begun, l.begunN, l.begunID = word[0], n, word[2]
			continue
		case "w":
			l.done = n
		case "c", "r":
			l.done, l.tip = n, word[2]
		}
		l.begun = ""
	}
	return nil
}

// Killed at any moment, everything that was said to be done is done, what was under way happened wholly or not at all,
// and work goes on.
func TestKilledAtAnyMoment(t *testing.T) {
	dir := t.TempDir()
	h := &home{t: t, dir: dir}
	h.open()
	n := h.create("d", "s", "u")
	f := h.fs(n)
	f.write(fileA, make([]byte, 8))
	f.write(fileB, make([]byte, sizeB))
	l := &last{tip: h.commit(n, "0").Commit}
	h.shut()
	t.Cleanup(h.shut)
	for round := range 25 {
		l.begun = ""
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
		cmd := exec.CommandContext(ctx, os.Args[0])
		cmd.Env = append(os.Environ(), crashHome+"="+dir)
		var said bytes.Buffer
		cmd.Stdout = &said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(100+rand.IntN(400)) * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // killed, and that is an error
		cancel()
		if err := l.read(&said); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		h.open()
		l.check(t, h, n)
		h.shut()
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "work", "*")); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
}

func (l *last) check(t *testing.T, h *home, n Name) {
	t.Helper()
	ctx := t.Context()
	b := mustBranch(h, n)
	f := h.fs(n)
	a, bb := getStep(f.read(fileA)), getStep(f.read(fileB)[:8])
	_, c, err := h.Resolve(ctx, n, "HEAD")
	if err != nil {
		t.Fatal(err)
	}
	tip, wantTip := b.tip.String(), l.tip
	switch {
	case l.begun == "C" && tip != l.tip: // it took place
		if c.Parents[0].String() != l.tip {
			t.Errorf("after %+v the branch is at %s, whose parent is not the tip before", l, tip)
		}
		wantTip = tip
	case l.begun == "R" && tip == l.begunID && a == l.begunN:
		wantTip, l.done = l.begunID, l.begunN
	}
	if tip != wantTip {
		t.Errorf("after %+v the branch is at %s", l, tip)
	}
	wantA, wantB := a == l.done, bb == l.done
	if l.begun == "W" {
		wantA, wantB = wantA || a == l.begunN, wantB || bb == l.begunN && a == l.begunN
	}
	if !wantA || !wantB {
		t.Errorf("after %+v the files are at %d and %d", l, a, bb)
	}
	var committed bytes.Buffer
	if err := h.Cat(ctx, n, "HEAD", fileA, &committed); err != nil {
		t.Fatal(err)
	}
	st, err := h.Status(ctx, n)
	if err != nil || getStep(committed.Bytes()) != a && st.Dirty == 0 {
		t.Errorf("after %+v: committed %d, live %d, status %+v, %v", l, getStep(committed.Bytes()), a, st, err)
	}
	whole := f.read(fileB)
	next := h.commit(n, "after the crash")
	committed.Reset()
	if err := h.Cat(ctx, n, "HEAD", fileB, &committed); err != nil || !bytes.Equal(committed.Bytes(), whole) {
		t.Errorf("after %+v the next commit is not what was there: %v", l, err)
	}
	if log, err := h.Log(ctx, n, "", 0); err != nil || uint64(len(log)) != mustBranch(h, n).rec.Count {
		t.Errorf("after %+v: %d commits, counted %d, %v", l, len(log), mustBranch(h, n).rec.Count, err)
	}
	l.tip, l.done = next.Commit, a
}

// A working copy whose making was cut short is made again.
func TestHalfMadeWorkingCopy(t *testing.T) {
	h := newHome(t)
	n := h.create("d", "s")
	h.fs(n).write("s/f", []byte("x"))
	h.commit(n, "1")
	if err := h.branchOut(t.Context(), n, "b"); err != nil {
		t.Fatal(err)
	}
	half := h.copyDir(mustBranch(h, n).rec.Copy)
	if err := os.MkdirAll(filepath.Join(half, "journal"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(half, "head"), []byte("half of it"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := string(h.fs(n).read("s/f")); got != "x" {
		t.Errorf("%q", got)
	}
}
