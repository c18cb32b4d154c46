package hub

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"dm/object"
	"dm/remote"
	"dm/remote/hubproto"
	"dm/remote/hubremote"
	"dm/remote/remotetest"
	"dm/store"
	"dm/store/pack"
)

// maxMemory is what no process may take for a transfer of any size, in bytes.
const maxMemory = 200 << 20

// Hub and clients move files that are larger than the memory they may take. Each is a process of its own, without a limit
// from outside, and what counts is the most that was ever resident.
func TestMemoryOfTransfers(t *testing.T) { eachEngine(t, testMemoryOfTransfers) }

func testMemoryOfTransfers(t *testing.T, engine string) {
	megabytes := 256
	if os.Getenv("DM_ROUNDS") != "" {
		megabytes = 1536 // three copies of it are on the disk
	}
	hub := newChild(t, engine)
	hub.start()
	defer hub.kill()
	from, to := filepath.Join(t.TempDir(), "from"), filepath.Join(t.TempDir(), "to")
	run := func(role, dir string) {
		t.Helper()
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "DM_TEST_ROLE="+role, "DM_TEST_DIR="+dir, "DM_TEST_URL=http://"+hub.addr, "DM_TEST_KEY="+hub.key,
			fmt.Sprintf("DM_TEST_MEGABYTES=%d", megabytes), "GOMEMLIMIT=off", "GOGC=100")
		cmd.Stderr = os.Stderr
		start := time.Now()
		out, err := cmd.Output()
		must(t, err)
		peak, err := strconv.Atoi(string(out))
		must(t, err)
		t.Logf("%s of %d MB of noise: %.1f s, at most %d MiB resident", role, megabytes, time.Since(start).Seconds(), peak>>20)
		if role != "fill" && peak > maxMemory {
			t.Errorf("%s took %d MiB", role, peak>>20)
		}
	}
	run("fill", from)
	run("push", from)
	run("pull", to)
	peak, err := peakOf(strconv.Itoa(hub.cmd.Process.Pid))
	must(t, err)
	t.Logf("the hub had at most %d MiB resident", peak>>20)
	if peak > maxMemory {
		t.Errorf("the hub took %d MiB", peak>>20)
	}
}

var peakRE = regexp.MustCompile(`VmHWM:\s+(\d+) kB`)

// peakOf returns the most memory that a process has had resident, in bytes.
func peakOf(pid string) (int, error) {
	b, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		return 0, err
	}
	m := peakRE.FindSubmatch(b)
	if m == nil {
		return 0, fmt.Errorf("no VmHWM in\n%s", b)
	}
	n, err := strconv.Atoi(string(m[1]))
	return n << 10, err
}

// role runs fn with the store in DM_TEST_DIR and prints the memory that the process took.
func withStore(ctx context.Context, fn func(s *store.Store, d remote.Dot) error) error {
	s, err := store.Open(ctx, os.Getenv("DM_TEST_DIR"), store.Options{})
	if err != nil {
		return err
	}
	r, err := hubremote.Open(hubremote.Config{URL: os.Getenv("DM_TEST_URL"), User: "alice", Key: os.Getenv("DM_TEST_KEY")})
	if err != nil {
		return err
	}
	d, err := r.Dot("alice/app")
	if err != nil {
		return err
	}
	if err := fn(s, d); err != nil {
		return err
	}
	if err := s.Close(); err != nil {
		return err
	}
	peak, err := peakOf("self")
	fmt.Print(peak)
	return err
}

const tipFile = "tip"

// fillRole commits a file of noise.
func fillRole(ctx context.Context) error {
	return withStore(ctx, func(s *store.Store, _ remote.Dot) error {
		megabytes, err := strconv.Atoi(os.Getenv("DM_TEST_MEGABYTES"))
		if err != nil {
			return err
		}
		tip, err := fill(ctx, s, megabytes)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(os.Getenv("DM_TEST_DIR"), tipFile), []byte(tip.String()), 0o600)
	})
}

func fill(ctx context.Context, s *store.Store, megabytes int) (tip object.ID, err error) {
	b, err := s.Begin(ctx)
	if err != nil {
		return tip, err
	}
	defer b.Abort()
	rng := rand.NewChaCha8([32]byte{1})
	ed := object.NewListEditor(ctx, b, b, object.Content{}, object.CutFixed)
	chunk := make([]byte, 64<<10)
	for range megabytes << 4 {
		rng.Read(chunk)
		id, err := b.Put(ctx, object.KindChunk, chunk)
		if err != nil {
			return tip, err
		}
		if err := ed.Add(object.Span{Size: uint64(len(chunk)), ID: id}); err != nil {
			return tip, err
		}
	}
	content, err := ed.Finish()
	if err != nil {
		return tip, err
	}
	root, totals, err := object.EditTree(ctx, b, b, object.ID{}, []object.Edit{{Name: "noise", Entry: &object.Entry{
		Name: "noise", Ino: 2, Mode: object.ModeRegular | 0o644, Content: content,
	}}})
	if err != nil {
		return tip, err
	}
	c := &object.Commit{
		Root:    object.Entry{Ino: 1, Mode: object.ModeDir | 0o755, Tree: root, Totals: totals},
		NextIno: 3, Author: "test", Time: time.Unix(1000, 0).UTC(), Message: "noise",
	}
	if tip, err = b.Put(ctx, object.KindCommit, c.Encode()); err != nil {
		return tip, err
	}
	_, err = b.Commit(ctx, nil)
	return tip, err
}

// pushRole pushes what fillRole has made.
func pushRole(ctx context.Context) error {
	return withStore(ctx, func(s *store.Store, d remote.Dot) error {
		hex, err := os.ReadFile(filepath.Join(os.Getenv("DM_TEST_DIR"), tipFile))
		if err != nil {
			return err
		}
		tip, err := object.ParseID(string(hex))
		if err != nil {
			return err
		}
		_, err = remote.PushRef(ctx, remote.FromStore(s), d, remote.Push{Ref: "heads/master", Tip: tip})
		return err
	})
}

// pullRole pulls it.
func pullRole(ctx context.Context) error {
	return withStore(ctx, func(s *store.Store, d remote.Dot) error {
		_, release, err := remotetest.PullRef(ctx, remote.FromStore(s), d, remotetest.Pull{Ref: "heads/master"})
		if err == nil {
			release()
		}
		return err
	})
}

// chain is a pack of n deltas of 4 MiB, each on top of the one before.
func chain(n int) []byte {
	p := newPack()
	content := make([]byte, object.MaxSize)
	rand.NewChaCha8([32]byte{2}).Read(content)
	base := object.Sum(object.KindChunk, content)
	p.whole(object.KindChunk, content)
	for i := range n {
		next := bytes.Clone(content)
		next[i]++
		p.delta(object.KindChunk, next, base, content)
		content, base = next, object.Sum(object.KindChunk, next)
	}
	return p.seal().Data
}

// Many clients at a time send what is made to take memory: packs that unpack to more than is allowed, bodies without an end,
// chains and loops of deltas. The hub refuses all of it within its memory, and serves others meanwhile.
func TestMemoryOfHostileRequests(t *testing.T) { eachEngine(t, testMemoryOfHostileRequests) }

func testMemoryOfHostileRequests(t *testing.T, engine string) {
	hub := newChild(t, engine)
	hub.start()
	defer hub.kill()
	long, longest, inflated := chain(hubproto.MaxChain+1), chain(hubproto.MaxChain), inflating().Data
	bodies := map[string]func() io.Reader{
		"packs":  func() io.Reader { return bytes.NewReader(inflated) },
		"packs#": func() io.Reader { return bytes.NewReader(long) },
		"packs##": func() io.Reader {
			return io.MultiReader(bytes.NewReader(pack.AppendHeader(nil)), &records{codec: newPack().codec})
		},
		"missing": func() io.Reader { return endless{} },
		"load":    func() io.Reader { return endless{} },
		"refs":    func() io.Reader { return io.MultiReader(strings.NewReader(`{"ref":"`), endless{}) },
	}
	var wg sync.WaitGroup
	bodies["packs###"] = func() io.Reader { return bytes.NewReader(longest) } // which is allowed, and 260 MB
	for path, body := range bodies {
		for range 4 {
			wg.Go(func() {
				url := "http://" + hub.addr + "/v1/dots/alice/app/" + strings.TrimRight(path, "#")
				req, err := http.NewRequest(http.MethodPost, url, io.LimitReader(body(), 2*hubproto.MaxPack))
				if err != nil {
					t.Error(err)
					return
				}
				req.SetBasicAuth("alice", hub.key)
				resp, err := http.DefaultClient.Do(req)
				if err != nil {
					return // hung up: that is fine, too
				}
				resp.Body.Close()
				if path == "packs###" && resp.StatusCode == http.StatusNoContent {
					return
				}
				if resp.StatusCode < 400 || resp.StatusCode == http.StatusInternalServerError {
					t.Errorf("%s: status %d", path, resp.StatusCode)
				}
			})
		}
	}
	wg.Wait()
	peak, err := peakOf(strconv.Itoa(hub.cmd.Process.Pid))
	must(t, err)
	t.Logf("the hub had at most %d MiB resident", peak>>20)
	if peak > maxMemory {
		t.Errorf("the hub took %d MiB", peak>>20)
	}
}
