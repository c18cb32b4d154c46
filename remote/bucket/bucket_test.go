package bucket

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"dm/internal/errs"
	"dm/object"
	"dm/remote"
	"dm/remote/dir"
	"dm/remote/remotetest"
)

func openAt(t testing.TB, path, cache string) *Remote {
	t.Helper()
	b, err := dir.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Open(b, Options{CacheDir: cache})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func push(t testing.TB, r *Remote, local remote.Local, tip object.ID) {
	t.Helper()
	d, err := r.Dot("alice/app")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := remote.PushRef(context.Background(), local, d, remote.Push{Ref: "heads/master", Tip: tip}); err != nil {
		t.Fatal(err)
	}
}

func indexFiles(t testing.TB, path string) int {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(path, "index", "*.idx"))
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

// Many small pushes, merged now and then while a machine with an old view of the indexes goes on reading.
func TestTidy(t *testing.T) {
	ctx := context.Background()
	path := t.TempDir()
	local := remotetest.OpenStore(t)
	w := remotetest.NewWorld(t, local, 1)
	w.Write("db/one", 5)
	r := openAt(t, path, t.TempDir())
	early := openAt(t, path, "")
	for i := range mergeFrom + 5 {
		w.Touch("db/one", i%5)
		push(t, r, local, w.Commit(fmt.Sprint(i)))
		if i == 10 {
			d, err := early.Dot("alice/app")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := d.Missing(ctx, []object.ID{w.Tip}); err != nil { // reads the indexes
				t.Fatal(err)
			}
		}
	}
	if n := indexFiles(t, path); n < mergeFrom {
		t.Fatalf("%d index files after %d pushes", n, mergeFrom+5)
	}
	for range 2 {
		if err := r.Tidy(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if n := indexFiles(t, path); n != 1 {
		t.Errorf("%d index files after a merge", n)
	}
	for _, reader := range []*Remote{early, r, openAt(t, path, t.TempDir())} {
		d, err := reader.Dot("alice/app")
		if err != nil {
			t.Fatal(err)
		}
		other := remotetest.OpenStore(t)
		_, release, err := remotetest.PullRef(ctx, other, d, remotetest.Pull{Ref: "heads/master"})
		if err != nil {
			t.Fatal(err)
		}
		release()
		remotetest.Verify(t, other, w.Tip)
	}
}

// Damage of any file of the bucket is found, and said.
func TestDamage(t *testing.T) {
	ctx := context.Background()
	path := t.TempDir()
	local := remotetest.OpenStore(t)
	w := remotetest.NewWorld(t, local, 1)
	w.Write("db/one", 5)
	push(t, openAt(t, path, ""), local, w.Commit("first"))
	var files []string
	err := filepath.WalkDir(path, func(p string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			files = append(files, p)
		}
		return err
	})
	if err != nil || len(files) != 4 {
		t.Fatalf("files %v, %v", files, err)
	}
	for _, f := range files {
		good, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		bad := bytes.Clone(good)
		bad[len(bad)/3] ^= 0x40
		for what, content := range map[string][]byte{"flipped": bad, "cut": good[:len(good)/2]} {
			if err := os.WriteFile(f, content, 0o600); err != nil {
				t.Fatal(err)
			}
			d, err := openAt(t, path, "").Dot("alice/app")
			if err != nil {
				t.Fatal(err)
			}
			_, _, err = remotetest.PullRef(ctx, remotetest.OpenStore(t), d, remotetest.Pull{Ref: "heads/master"})
			if errs.KindOf(err) != errs.Damaged {
				t.Errorf("%s %s: %v", filepath.Base(f), what, err)
			}
		}
		if err := os.WriteFile(f, good, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestNotARemote(t *testing.T) {
	ctx := context.Background()
	path := t.TempDir()
	if err := os.WriteFile(filepath.Join(path, "thesis.txt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := openAt(t, path, "").Check(ctx); errs.KindOf(err) != errs.Conflict {
		t.Errorf("a directory with something else in it: %v", err)
	}
	for content, kind := range map[string]errs.Kind{"dm remote 2\n": errs.Usage, "dm remote 0\n": errs.Damaged, "x": errs.Damaged, "": errs.Damaged} {
		if err := os.WriteFile(filepath.Join(path, markerKey), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := openAt(t, path, "").Check(ctx); errs.KindOf(err) != kind {
			t.Errorf("marker %q: %v", content, err)
		}
	}
}

func FuzzIndex(f *testing.F) {
	file := &file{
		packs: []object.ID{{1}}, locs: []loc{{id: object.ID{2}, kind: 4}, {id: object.ID{3}, kind: 1, enc: 2, base: 1}},
		bases: []object.ID{{4}}, parents: map[object.ID][]object.ID{{2}: {{5}, {6}}},
	}
	good := file.encode()
	f.Add(good)
	padded := bytes.Clone(good)
	padded[indexHead+object.IDSize+locLen-1] = 1
	f.Add(padded)
	parents := good[len(good)-8-2*object.IDSize:]
	twice := append(bytes.Clone(good), parents...)
	twice[indexHead-4]++
	f.Add(twice)
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := decodeIndex(b)
		if err != nil {
			return
		}
		newTable().add(read{object.ID{1}, got})
		if !bytes.Equal(got.encode(), b) {
			t.Errorf("%x is read and not what would be written", b)
		}
	})
}

func FuzzRefs(f *testing.F) {
	f.Add(encodeRefs(map[string]object.ID{"heads/master": {1}, "tags/v1": {2}}))
	f.Add(encodeRefs(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		refs, err := decodeRefs(b)
		if err == nil && !bytes.Equal(encodeRefs(refs), b) {
			t.Errorf("%q is read and not what would be written", b)
		}
	})
}
