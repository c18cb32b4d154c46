package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"dm/internal/e2e/tree"
)

// Damage to any of the server's own files is found: bits that flip, tails that are lost, stretches that are zeros or come twice
// or in each other's place, files that are missing, or another's copy, or swapped. Nothing wrong is ever returned as data.
// Either the server says that it cannot start, or what it then shows is right or an error, and fsck says which.
func TestDamagedState(t *testing.T) {
	seed := uint64(number(t, "DM_SEED", int(time.Now().UnixNano()&0xffffff)))
	t.Logf("seed %d", seed)
	d := newDamage(t, seed)
	rounds := number(t, "DM_ROUNDS", 36)
	kinds := damages()
	for i := range rounds {
		d.once(d.files[i%len(d.files)], kinds[(i+i/len(d.files))%len(kinds)])
	}
	t.Logf("%d damages: %v", rounds, d.outcomes)
	if d.outcomes["found by fsck"] == 0 {
		t.Error("no damage was found by fsck: the test damages the wrong files")
	}
}

// damage is a stopped server's state directory, a copy of it for each round, and what it has to show.
type damage struct {
	*dmVolume
	rnd       *rand.Rand
	pristine  string
	files     []string // below home, those that are the server's own
	rev       string
	live      map[string]file // the working copy
	committed map[string]file
	lost      []string // what is missing in the present round, without a word
	outcomes  map[string]int
}

func newDamage(t *testing.T, seed uint64) *damage {
	v := newVolume(newServer(t, through), "d", "sub")
	sub := filepath.Join(v.path(), "sub")
	if err := tree.Many(sub, 60, seed); err != nil {
		t.Fatal(err)
	}
	if err := writeRandom(filepath.Join(sub, "big"), 2<<20); err != nil {
		t.Fatal(err)
	}
	d := &damage{dmVolume: v, rnd: rand.New(rand.NewPCG(seed, 8)), outcomes: make(map[string]int)}
	d.rev = v.commit("to be damaged")
	d.committed = readFiles(t, sub)
	v.branch("work") // whose content is in the store alone
	if err := os.WriteFile(filepath.Join(sub, "uncommitted"), []byte("not in any commit"), 0o644); err != nil {
		t.Fatal(err)
	}
	d.live = readFiles(t, sub)
	v.stop()
	d.pristine = filepath.Join(v.base, "pristine")
	copyTree(t, v.home, d.pristine)
	err := filepath.WalkDir(d.pristine, func(p string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(d.pristine, p)
		info, statErr := e.Info()
		// The backing files of a working copy hold its bytes as any filesystem would, and the log is for people.
		if err != nil || statErr != nil || strings.Contains(rel, "/data/") || strings.HasSuffix(rel, ".log") || e.Name() == "lock" || info.Size() == 0 {
			return err
		}
		d.files = append(d.files, rel)
		return nil
	})
	if err != nil || len(d.files) < 3 {
		t.Fatalf("files %v: %v", d.files, err)
	}
	t.Logf("files: %v", d.files)
	return d
}

// once damages one file of a fresh copy of the state and looks at everything.
func (d *damage) once(file string, kind spoiling) {
	d.t.Helper()
	if err := os.RemoveAll(d.home); err != nil {
		d.t.Fatal(err)
	}
	copyTree(d.t, d.pristine, d.home)
	d.lost = nil
	path := filepath.Join(d.home, file)
	other := d.files[d.rnd.IntN(len(d.files))]
	if err := kind.do(d.rnd, path, filepath.Join(d.home, other)); err != nil {
		d.t.Fatal(err)
	}
	what := file + ", " + kind.name
	if kind.files {
		what += " " + other
	}
	outcome := d.look(what)
	d.outcomes[outcome]++
	if d.t.Failed() {
		d.t.Fatalf("%s: %s", what, outcome)
	}
}

// spoiling is a kind of damage to a file, perhaps with another one.
type spoiling struct {
	name  string
	files bool
	do    func(rnd *rand.Rand, path, other string) error
}

// damages returns all kinds.
func damages() []spoiling {
	bytesOf := func(fn func(rnd *rand.Rand, data []byte) []byte) func(*rand.Rand, string, string) error {
		return func(rnd *rand.Rand, path, _ string) error {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			return os.WriteFile(path, fn(rnd, data), 0o600)
		}
	}
	// stretch is a random piece of data.
	stretch := func(rnd *rand.Rand, data []byte) (from, to int) {
		from = rnd.IntN(len(data))
		return from, min(from+1+rnd.IntN(5000), len(data))
	}
	return []spoiling{
		{"a bit flipped", false, bytesOf(func(rnd *rand.Rand, data []byte) []byte {
			data[rnd.IntN(len(data))] ^= 1 << rnd.IntN(8)
			return data
		})},
		{"cut", false, bytesOf(func(rnd *rand.Rand, data []byte) []byte { return data[:rnd.IntN(len(data))] })},
		{"deleted", false, func(_ *rand.Rand, path, _ string) error { return os.Remove(path) }},
		{"a stretch of zeros", false, bytesOf(func(rnd *rand.Rand, data []byte) []byte {
			from, to := stretch(rnd, data)
			clear(data[from:to])
			return data
		})},
		{"a stretch twice", false, bytesOf(func(rnd *rand.Rand, data []byte) []byte {
			from, to := stretch(rnd, data)
			return slices.Insert(data, to, bytes.Clone(data[from:to])...)
		})},
		{"two stretches swapped", false, bytesOf(func(rnd *rand.Rand, data []byte) []byte {
			a, to := stretch(rnd, data)
			b := rnd.IntN(len(data))
			for i := range min(to-a, len(data)-b) {
				data[a+i], data[b+i] = data[b+i], data[a+i]
			}
			return data
		})},
		{"a copy of", true, func(_ *rand.Rand, path, other string) error {
			data, err := os.ReadFile(other)
			if err != nil {
				return err
			}
			return os.WriteFile(path, data, 0o600)
		}},
		{"swapped with", true, func(_ *rand.Rand, path, other string) error {
			if path == other {
				return nil
			}
			for _, move := range [][2]string{{path, path + ".tmp"}, {other, path}, {path + ".tmp", other}} {
				if err := os.Rename(move[0], move[1]); err != nil {
					return err
				}
			}
			return nil
		}},
	}
}

// look starts the server on the damaged state and returns what came of it.
func (d *damage) look(what string) string {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	var log bytes.Buffer
	cmd := d.command(ctx, "server", "--cache", d.cache)
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		cmd.Wait()
		close(ended)
	}()
	defer func() {
		d.try("cluster", "stop")
		<-ended
		unmountBelow(d.t, d.home)
	}()
	for {
		if _, _, code := d.try("cluster", "status"); code == 0 {
			break
		}
		select {
		case <-ended:
			return d.refused(what, cmd, log.String())
		case <-time.After(10 * time.Millisecond):
		}
	}
	return d.running(what)
}

// refused: the server ended by itself, saying what is wrong in the way that every command does.
func (d *damage) refused(what string, cmd *exec.Cmd, log string) string {
	d.t.Helper()
	if code := cmd.ProcessState.ExitCode(); code != 7 || !strings.Contains(log, "dm: ") || strings.Contains(log, "goroutine ") {
		d.t.Errorf("%s: the server ended with %d, want 7 and a message\n%s", what, code, log)
	}
	return "refused to start"
}

// running: what can be read is right.
func (d *damage) running(what string) string {
	d.t.Helper()
	out, stderr, fsck := d.try("fsck")
	if fsck != 0 && fsck != 7 {
		d.t.Errorf("%s: dm fsck ended with %d: %s%s", what, fsck, out, stderr)
	}
	unread := 0
	path, _, code := d.try("path", d.dot)
	if code != 0 {
		unread++
	} else {
		unread += d.compare(what, filepath.Join(strings.TrimSpace(path), "sub"), d.live)
	}
	dir, err := os.MkdirTemp(d.base, "mnt")
	if err != nil {
		d.t.Fatal(err)
	}
	defer os.Remove(dir)
	if _, stderr, code := d.try("mount", d.dot+":"+d.rev, dir); code == 0 {
		unread += d.compare(what+" (the commit)", filepath.Join(dir, "sub"), d.committed)
		d.dm("umount", dir)
	} else {
		unread++
		if code != 7 && code != 3 {
			d.t.Errorf("%s: mounting the commit ended with %d: %s", what, code, stderr)
		}
	}
	switch {
	case fsck == 7:
		return "found by fsck"
	case unread > 0:
		return "an error where it is read"
	case len(d.lost) > 0 && strings.Contains(what, "journal"):
		// A tail of a journal that is not whole is what a power cut leaves of what was not synced.
		return "the end of a journal was dropped"
	case len(d.lost) > 0:
		d.t.Errorf("%s: these are missing, without a word: %v", what, d.lost)
	}
	return "harmless"
}

// compare reads what there is and returns how much of it cannot be read; what can must be right. Names that are missing
// where nothing says so are counted as lost.
func (d *damage) compare(what, dir string, want map[string]file) (unread int) {
	d.t.Helper()
	seen := make(map[string]bool)
	err := filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
		rel, relErr := filepath.Rel(dir, p)
		seen[rel] = true
		if err != nil || relErr != nil {
			unread++
			return nil
		}
		if w, ok := want[rel]; !ok {
			d.t.Errorf("%s: %s should not be there", what, rel)
		} else if got, err := readFile(p); err != nil {
			unread++
		} else if rel == "uncommitted" && got.sum == sha256.Sum256(nil) && strings.Contains(what, "journal") {
			d.lost = append(d.lost, rel) // as it was made, before it was written to
		} else if got != w {
			d.t.Errorf("%s: %s reads wrong: %v, want %v", what, rel, got, w)
		}
		return nil
	})
	if err != nil {
		d.t.Fatal(err)
	}
	for rel := range want {
		if unread == 0 && !seen[rel] {
			d.lost = append(d.lost, rel)
		}
	}
	return unread
}

// file is what a file or directory must show.
type file struct {
	mode os.FileMode
	sum  [sha256.Size]byte
}

func readFile(path string) (file, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return file{}, err
	}
	f := file{mode: info.Mode()}
	if info.IsDir() {
		_, err := os.ReadDir(path)
		return f, err
	}
	data, err := os.ReadFile(path)
	f.sum = sha256.Sum256(data)
	return f, err
}

func readFiles(t *testing.T, dir string) map[string]file {
	t.Helper()
	files := make(map[string]file)
	err := filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err == nil {
			files[rel], err = readFile(p)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}
