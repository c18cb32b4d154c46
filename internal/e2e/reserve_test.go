package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Below its reserve the server stores nothing more and says why; volumes stay writable, and gc gives space back.
func TestReserve(t *testing.T) {
	base, disk := smallDisk(t, 400)
	s := newServerAt(t, through, base, filepath.Join(disk, "home"), "--reserve", "100MiB")
	v := newVolume(s, "d", "sub")
	sub := filepath.Join(v.path(), "sub")
	if err := writeRandom(filepath.Join(sub, "file"), 60<<20); err != nil {
		t.Fatal(err)
	}
	first := v.commit("first")
	if err := writeRandom(filepath.Join(sub, "file"), 60<<20); err != nil {
		t.Fatal(err)
	}
	second := v.commit("second")
	if err := writeRandom(filepath.Join(sub, "file"), 40<<20); err != nil {
		t.Fatal(err)
	}
	want := take(t, sub)
	ballast := filepath.Join(disk, "ballast")
	// There is room to begin a commit, but not for all of it; and then not even to begin.
	for _, leave := range []int64{120 << 20, 90 << 20} {
		if err := fillLeaving(disk, ballast, leave); err != nil {
			t.Fatal(err)
		}
		refused(t, v, second)
		_, stderr, _ := v.try("commit", "-m", "no room")
		if !strings.Contains(stderr, "less than the reserve of 100 MiB") || !strings.Contains(stderr, "dm: hint: make room") {
			t.Errorf("a commit below the reserve says %q", stderr)
		}
		if err := writeRandom(filepath.Join(sub, "more"), 4<<20); err != nil {
			t.Errorf("writing below the reserve: %v", err)
		}
		if err := os.Remove(filepath.Join(sub, "more")); err != nil {
			t.Error(err)
		}
		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
	}
	if err := fillLeaving(disk, ballast, 90<<20); err != nil {
		t.Fatal(err)
	}
	// What prunes and gc free makes room for the commit.
	out := v.dm("prune", "--keep-last", "1")
	if !strings.Contains(out, "pruned 1 commits and kept 1, freed 60.") {
		t.Errorf("a prune below the reserve says %q", out)
	}
	if _, _, code := v.try("show", first); code != 3 {
		t.Errorf("the pruned commit: exit code %d", code)
	}
	now := take(t, sub)
	delete(want, ".") // the directory's times
	delete(now, ".")
	same(t, "after all this", want, now)
	v.commit("room again")
	v.fsck()
}
