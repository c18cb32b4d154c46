package dot

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dm/internal/errs"
	"dm/object"
)

// plant makes a directory with one of everything that a filesystem has.
func plant(t *testing.T, dir string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	p := func(name string) string { return filepath.Join(dir, name) }
	must(os.MkdirAll(p("d/sub"), 0o755))
	must(os.WriteFile(p("d/sub/plain"), bytes.Repeat([]byte("plain "), 30_000), 0o640))
	must(os.WriteFile(p("empty"), nil, 0o600))
	must(os.WriteFile(p("odd \n\xff name"), []byte("odd"), 0o604))
	must(os.WriteFile(p("suid"), []byte("#!"), 0o755))
	must(os.Lchown(p("suid"), 12, 34))
	must(unix.Chmod(p("suid"), 0o6755))
	must(os.Link(p("d/sub/plain"), p("linked")))
	must(os.Link(p("d/sub/plain"), p("d/linked too")))
	must(os.Symlink("some/where\xfe", p("symlink")))
	must(os.Lchown(p("symlink"), 5, 6))
	must(unix.Mkfifo(p("fifo"), 0o620))
	must(unix.Mknod(p("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(unix.Mknod(p("block"), unix.S_IFBLK|0o660, int(unix.Mkdev(300, 70_000))))
	must(unix.Mknod(p("socket"), unix.S_IFSOCK|0o755, 0))
	f, err := os.Create(p("sparse"))
	must(err)
	_, err = f.WriteAt([]byte("at 200 MB"), 200<<20)
	must(err)
	must(f.Truncate(10 << 30))
	must(f.Close())
	must(os.WriteFile(p("holes only"), nil, 0o644))
	must(os.Truncate(p("holes only"), 5<<30))
	must(unix.Setxattr(p("empty"), "user.k=1%", []byte("v\x00\n=v"), 0))
	must(unix.Setxattr(p("d"), "trusted.t", []byte("dir"), 0))
	must(os.WriteFile(p("capable"), []byte("#!"), 0o755))
	must(os.Lchown(p("capable"), 3, 4))
	netRaw := append(binary.LittleEndian.AppendUint32(nil, 0x02000001), 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	must(unix.Setxattr(p("capable"), "security.capability", netRaw, 0)) // as setcap cap_net_raw=ep does
	must(unix.Chmod(p("d"), 0o2775))
	must(os.Lchown(p("d"), 7, 8))
	stamp := func(name string, sec, nsec int64) {
		ts := []unix.Timespec{{Sec: sec, Nsec: nsec}, {Sec: sec, Nsec: nsec}}
		must(unix.UtimesNanoAt(unix.AT_FDCWD, p(name), ts, unix.AT_SYMLINK_NOFOLLOW))
	}
	for i, name := range []string{"d/sub/plain", "empty", "suid", "symlink", "fifo", "null", "sparse", "d/sub", "d"} {
		stamp(name, 1e9+int64(i), 123456789)
	}
	stamp("odd \n\xff name", -5, 250_000_000)
	stamp("holes only", -5, 250_000_000)
	stamp(".", 77, 88)
}

// describeEntry says everything about an entry but its name and inode number.
func describeEntry(e *object.Entry) string {
	return fmt.Sprintf("mode %o uid %d gid %d time %d.%09d size %d target %q rdev %x nlink %d xattrs %q",
		e.Mode, e.UID, e.GID, e.Sec, e.Nsec, e.Content.Size, e.Target, e.Rdev, e.Nlink, e.Xattrs)
}

// describeHost says the same of what is on the host.
func describeHost(t *testing.T, p string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil {
		t.Fatal(err)
	}
	e := object.Entry{Mode: st.Mode, UID: st.Uid, GID: st.Gid, Sec: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec)}
	switch e.Type() {
	case object.ModeRegular:
		e.Content.Size = uint64(st.Size)
		if st.Nlink > 1 {
			e.Nlink = uint32(st.Nlink)
		}
	case object.ModeSymlink:
		target, err := os.Readlink(p)
		if err != nil {
			t.Fatal(err)
		}
		e.Target = target
	case object.ModeBlock, object.ModeChar:
		e.Rdev = uint32(st.Rdev)
	}
	list, err := readXattrs(p)
	if err != nil {
		t.Fatal(err)
	}
	e.Xattrs = list
	object.SortXattrs(e.Xattrs)
	return describeEntry(&e)
}

// What is imported and committed is what was on the host, to the last attribute, and holes cost nothing.
func TestImportIsExact(t *testing.T) {
	ctx := t.Context()
	src := t.TempDir()
	plant(t, src)
	h := newHome(t)
	n := h.create("d")
	n.Subdot = "in"
	began := time.Now()
	res, err := h.Import(ctx, n, src, nil)
	if err != nil {
		t.Fatal(err)
	}
	if res.Bytes > 1<<20 || res.Files != 14 || res.Dirs != 2 {
		t.Errorf("imported %+v", res)
	}
	r := h.commit(n, "1")
	if took := time.Since(began); r.ReadBytes > 2<<20 || took > 10*time.Second {
		t.Errorf("15 GiB of holes: %d bytes read, %v", r.ReadBytes, took)
	}
	_, c, err := h.Resolve(ctx, n, "")
	if err != nil {
		t.Fatal(err)
	}
	s := stateOf(h.store, c)
	found := 0
	top, err := s.lookup(ctx, "in")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := describeEntry(&top), describeHost(t, src); got != want {
		t.Errorf("top: %s\nwant %s", got, want)
	}
	if err := s.walk(ctx, top.Tree, "", func(p string, e *object.Entry) error {
		found++
		full, err := s.resolve(ctx, *e)
		if err != nil {
			return err
		}
		if got, want := describeEntry(&full), describeHost(t, filepath.Join(src, p)); got != want {
			t.Errorf("%q: %s\nwant %s", p, got, want)
		}
		if full.IsRegular() && full.Content.Size < 1<<20 {
			var got bytes.Buffer
			want, err := os.ReadFile(filepath.Join(src, p))
			if err := errors.Join(err, h.Cat(ctx, n, "", "in/"+p, &got)); err != nil || !bytes.Equal(got.Bytes(), want) {
				t.Errorf("%q has other bytes: %v", p, err)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if found != int(res.Files+res.Dirs) {
		t.Errorf("committed %d of %d", found, res.Files+res.Dirs)
	}
	e, err := s.lookup(ctx, "in/sparse")
	if err != nil {
		t.Fatal(err)
	}
	data := uint64(0)
	if err := object.WalkSpans(ctx, h.store, e.Content, 0, func(off uint64, sp object.Span) error {
		if !sp.ID.IsZero() {
			data += sp.Size
		}
		return nil
	}); err != nil || data == 0 || data > 256<<10 {
		t.Errorf("the sparse file has %d bytes of data, %v", data, err)
	}
	testImportAgain(t, h, n, src)
	testExport(t, h, n, src)
}

func testImportAgain(t *testing.T, h *home, n Name, src string) {
	before := h.commit(n, "2")
	if _, err := h.Import(t.Context(), n, src, nil); errs.KindOf(err) != errs.Conflict || errs.HintOf(err) == "" {
		t.Errorf("imported over what is there: %v", err)
	}
	if _, err := h.Import(t.Context(), n, filepath.Join(src, "none"), nil); errs.KindOf(err) != errs.NotFound {
		t.Errorf("imported from nowhere: %v", err)
	}
	if changes, err := h.Diff(t.Context(), n, before.Commit, ""); err != nil || len(changes) != 0 {
		t.Errorf("refused imports left %q, %v", lines(changes), err)
	}
}

// The archive is read back by GNU tar into a directory like the one it came from, and by Go's reader.
func testExport(t *testing.T, h *home, n Name, src string) {
	var b bytes.Buffer
	if r, err := h.Export(t.Context(), n, "HEAD", "in", &b); err != nil || r.Sockets != 1 {
		t.Fatalf("%d sockets left out, %v; want 1", r.Sockets, err)
	}
	if b.Len() > 2<<20 {
		t.Errorf("15 GiB of holes became %d bytes", b.Len())
	}
	names := map[string]*tar.Header{}
	for r := tar.NewReader(bytes.NewReader(b.Bytes())); ; {
		hd, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names[hd.Name] = hd
		if hd.Name == "sparse" {
			buf := make([]byte, 64<<10)
			if _, err := io.CopyN(io.Discard, r, 200<<20); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(r, buf); err != nil || !bytes.HasPrefix(buf, []byte("at 200 MB\x00")) || hd.Size != 10<<30 {
				t.Errorf("sparse: %q, size %d, %v", buf[:16], hd.Size, err)
			}
		}
	}
	if len(names) != 16 { // with "./", without the socket
		t.Errorf("%d entries in the archive", len(names))
	}
	if hd := names["empty"]; hd == nil || hd.PAXRecords["SCHILY.xattr.user.k%3D1%25"] != "v\x00\n=v" {
		t.Errorf("empty: %+v", hd)
	}
	out := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "tar", "-xpf", "-", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-C", out)
	cmd.Stdin = bytes.NewReader(b.Bytes())
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, msg)
	}
	want, got := hostTree(t, src), hostTree(t, out)
	delete(want, "socket")
	for _, p := range sortedKeys(want) {
		if got[p] != want[p] {
			t.Errorf("%q: %s\nwant %s", p, got[p], want[p])
		}
	}
	if len(got) != len(want) {
		t.Errorf("tar made %d files of %d", len(got), len(want))
	}
}

func hostTree(t *testing.T, dir string) map[string]string {
	m := map[string]string{}
	if err := filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		m[rel] = describeHost(t, p)
		if info, err := os.Lstat(p); err == nil && info.Mode().IsRegular() && info.Size() < 1<<20 {
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			m[rel] += " " + object.Sum(object.KindChunk, data).String()
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return m
}

// An import that fails in the middle takes away what it has brought.
func TestImportFailsClean(t *testing.T) {
	src := t.TempDir()
	for i := range 300 {
		if err := os.WriteFile(filepath.Join(src, fmt.Sprint(i)), make([]byte, 10_000), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	h := newHome(t)
	n := h.create("d", "s")
	h.fs(n).write("s/mine", []byte("kept"))
	n.Subdot = "s"
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err := h.Import(ctx, n, src, func(p Progress) { cancel() })
	if errs.KindOf(err) != errs.Interrupted {
		t.Fatal(err)
	}
	if got := h.fs(n).all(); len(got) != 2 || string(got["s/mine"]) != "kept" {
		t.Errorf("left behind: %q", describe(got))
	}
}

func TestExportRefuses(t *testing.T) {
	h := newHome(t)
	n := h.create("d", "s")
	h.fs(n).write("top", []byte("x"))
	h.commit(n, "1")
	for subdot, kind := range map[string]errs.Kind{"none": errs.NotFound, "top": errs.Usage, "s/x": errs.Usage, "..": errs.Usage} {
		if _, err := h.Export(t.Context(), n, "", subdot, io.Discard); errs.KindOf(err) != kind {
			t.Errorf("%s: %v", subdot, err)
		}
	}
	for p, kind := range map[string]errs.Kind{"s": errs.Usage, "s/none": errs.NotFound, "top/x": errs.NotFound, "": errs.Usage} {
		if err := h.Cat(t.Context(), n, "", p, io.Discard); errs.KindOf(err) != kind {
			t.Errorf("cat %q: %v", p, err)
		}
	}
}

// Times before 1970 and large numbers are written as POSIX has them.
func TestPAXRecords(t *testing.T) {
	for s, want := range map[time.Time]string{
		time.Unix(1, 5): "1.000000005", time.Unix(-5, 250_000_000): "-4.750000000", time.Unix(-5, 0): "-5.000000000", time.Unix(0, 0): "0.000000000",
	} {
		if got := paxTime(s); got != want {
			t.Errorf("%v is written %s, want %s", s, got, want)
		}
	}
	for n := range 1200 {
		v := strings.Repeat("v", n)
		r := paxRecord("k", v)
		var size int
		if _, err := fmt.Sscan(r, &size); err != nil || size != len(r) {
			t.Fatalf("a record of %d bytes says %d, %v", len(r), size, err)
		}
	}
}
