package dot

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"dm/internal/errs"
	"dm/object"
)

// exporter writes one state as a tar archive.
type exporter struct {
	ctx   context.Context
	s     state
	out   io.Writer // under tar, for what archive/tar cannot write
	tar   *tar.Writer
	links map[uint64]string // the first name of each hard-linked inode
	res   ExportResult
}

// ExportResult says what a tar archive does not hold.
type ExportResult struct {
	Sockets uint64 // names of sockets
}

// Export writes a commit, or one subdot of it, as a tar archive in PAX format, with everything a tar archive can hold:
// modes, owners, extended attributes, hard links, holes, devices and times to the nanosecond. A tar archive has no sockets,
// so these are left out and counted; their servers make them anew.
func (d *Dots) Export(ctx context.Context, n Name, rev, subdot string, w io.Writer) (ExportResult, error) {
	var none ExportResult
	if strings.Contains(subdot, "/") {
		return none, errs.New(errs.Usage, "'%s' is no subdot", subdot)
	}
	s, e, err := d.committed(ctx, n, rev, subdot)
	if err != nil {
		return none, err
	}
	if !e.IsDir() {
		return none, errs.New(errs.Usage, "'%s' is not a directory, so it is no subdot", subdot)
	}
	x := &exporter{ctx: ctx, s: s, out: w, tar: tar.NewWriter(w), links: map[uint64]string{}}
	if err := x.entry(".", &e); err != nil {
		return none, err
	}
	if err := s.walk(ctx, e.Tree, "", x.entry); err != nil {
		return none, err
	}
	return x.res, x.tar.Close()
}

// entry writes one name.
func (x *exporter) entry(p string, e *object.Entry) error {
	if err := x.ctx.Err(); err != nil {
		return err
	}
	if e.Type() == object.ModeSocket {
		x.res.Sockets++
		return nil
	}
	full, err := x.s.resolve(x.ctx, *e)
	if err != nil {
		return err
	}
	h := header(p, &full)
	if e.Linked {
		if first, ok := x.links[e.Ino]; ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			return x.write(h, nil)
		}
		x.links[e.Ino] = p
	}
	if !full.IsRegular() {
		return x.write(h, nil)
	}
	sparse, stretches, err := x.stretches(full.Content)
	switch {
	case err != nil:
		return err
	case sparse:
		return x.sparse(h, full.Content, stretches)
	}
	return x.write(h, &full.Content)
}

func (x *exporter) write(h *tar.Header, c *object.Content) error {
	if err := x.tar.WriteHeader(h); err != nil {
		return fmt.Errorf("export %q: %w", h.Name, err)
	}
	if c == nil {
		return nil
	}
	return writeContent(x.ctx, x.s.src, *c, x.tar)
}

// header describes an entry for archive/tar.
func header(p string, e *object.Entry) *tar.Header {
	h := &tar.Header{
		Format: tar.FormatPAX, Name: p, Mode: int64(e.Mode &^ object.ModeType), Uid: int(e.UID), Gid: int(e.GID),
		ModTime: time.Unix(e.Sec, int64(e.Nsec)), PAXRecords: map[string]string{},
	}
	switch e.Type() {
	case object.ModeDir:
		h.Typeflag, h.Name = tar.TypeDir, p+"/"
	case object.ModeSymlink:
		h.Typeflag, h.Linkname = tar.TypeSymlink, e.Target
	case object.ModeFifo:
		h.Typeflag = tar.TypeFifo
	case object.ModeChar, object.ModeBlock:
		h.Typeflag = tar.TypeChar
		if e.Type() == object.ModeBlock {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(uint64(e.Rdev))), int64(unix.Minor(uint64(e.Rdev)))
	default:
		h.Typeflag, h.Size = tar.TypeReg, int64(e.Content.Size)
	}
	// GNU tar writes these two characters so, because a = ends the keyword of a record.
	escape := strings.NewReplacer("%", "%25", "=", "%3D")
	for _, a := range e.Xattrs {
		h.PAXRecords["SCHILY.xattr."+escape.Replace(a.Name)] = string(a.Value)
	}
	return h
}

// stretch is a part of a file that holds data.
type stretch struct{ off, size uint64 }

// stretches says whether a file has holes, and where it has data.
func (x *exporter) stretches(c object.Content) (sparse bool, list []stretch, err error) {
	err = object.WalkSpans(x.ctx, x.s.src, c, 0, func(off uint64, s object.Span) error {
		if s.ID.IsZero() {
			sparse = true
			return nil
		}
		if n := len(list); n > 0 && list[n-1].off+list[n-1].size == off {
			list[n-1].size += s.Size
		} else {
			list = append(list, stretch{off, s.Size})
		}
		return nil
	})
	return sparse, list, err
}

// sparse writes a file with holes in GNU's sparse format 1.0: the archive's file is a map of the data stretches, filled up
// to a whole block, and then their bytes. archive/tar reads this format but does not write it, so its header is made here.
func (x *exporter) sparse(h *tar.Header, c object.Content, list []stretch) error {
	var m bytes.Buffer
	data := uint64(0)
	// Every map ends with an empty stretch at the end of the file, which says how far a last hole reaches.
	list = append(list, stretch{c.Size, 0})
	fmt.Fprintf(&m, "%d\n", len(list))
	for _, s := range list {
		fmt.Fprintf(&m, "%d\n%d\n", s.off, s.size)
		data += s.size
	}
	pad(&m)
	records := map[string]string{
		"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": h.Name,
		"GNU.sparse.realsize": strconv.FormatUint(c.Size, 10),
		"size":                strconv.FormatUint(uint64(m.Len())+data, 10),
		"mtime":               paxTime(h.ModTime),
		"uid":                 strconv.Itoa(h.Uid), "gid": strconv.Itoa(h.Gid),
		"path": path.Join(path.Dir(h.Name), "GNUSparseFile.0", path.Base(h.Name)),
	}
	for k, v := range h.PAXRecords {
		records[k] = v
	}
	if err := x.tar.Flush(); err != nil {
		return err
	}
	if err := x.rawHeaders(h, records, uint64(m.Len())+data); err != nil {
		return err
	}
	if _, err := m.WriteTo(x.out); err != nil {
		return err
	}
	err := object.WalkSpans(x.ctx, x.s.src, c, 0, func(_ uint64, s object.Span) error {
		if s.ID.IsZero() {
			return nil
		}
		return writeSpan(x.ctx, x.s.src, s, x.out)
	})
	if err != nil {
		return err
	}
	_, err = x.out.Write(zeroPage[:-data%tarBlock])
	return err
}

const tarBlock = 512

// rawHeaders writes a PAX header with records, and behind it the plain header of a file, whose fields a reader takes from
// the records where they are there.
func (x *exporter) rawHeaders(h *tar.Header, records map[string]string, size uint64) error {
	var b bytes.Buffer
	for _, k := range sortedKeys(records) {
		b.WriteString(paxRecord(k, records[k]))
	}
	body := b.Len()
	pad(&b)
	for _, block := range [][]byte{
		ustarHeader("PaxHeaders.0/sparse", 'x', 0o644, uint64(body)), b.Bytes(),
		ustarHeader("GNUSparseFile.0/sparse", '0', uint64(h.Mode), size),
	} {
		if _, err := x.out.Write(block); err != nil {
			return err
		}
	}
	return nil
}

// pad fills a buffer up to a whole block.
func pad(b *bytes.Buffer) { b.Write(zeroPage[:(tarBlock-b.Len()%tarBlock)%tarBlock]) }

// ustarHeader is a header block of POSIX.1-1988 with what is not in PAX records. A size too large for it is.
func ustarHeader(name string, kind byte, mode, size uint64) []byte {
	b := make([]byte, tarBlock)
	copy(b[0:100], name)
	octal := func(field []byte, v uint64) {
		s := fmt.Sprintf("%0*o", len(field)-1, v)
		copy(field, s[len(s)-(len(field)-1):])
	}
	octal(b[100:108], mode)
	octal(b[108:116], 0)
	octal(b[116:124], 0)
	octal(b[124:136], size)
	octal(b[136:148], 0)
	b[156] = kind
	copy(b[257:], "ustar\x0000")
	copy(b[148:156], "        ")
	sum := uint64(0)
	for _, c := range b {
		sum += uint64(c)
	}
	octal(b[148:155], sum)
	b[155] = ' '
	return b
}

// paxRecord is "LENGTH KEY=VALUE\n", where the length includes its own digits.
func paxRecord(k, v string) string {
	n := len(k) + len(v) + 3
	n += len(strconv.Itoa(n))
	r := fmt.Sprintf("%d %s=%s\n", n, k, v)
	if len(r) != n {
		r = fmt.Sprintf("%d %s=%s\n", len(r), k, v)
	}
	return r
}

// paxTime is a decimal number of seconds. Before 1970 the seconds and their fraction are counted backwards.
func paxTime(t time.Time) string {
	sec, nsec, sign := t.Unix(), int64(t.Nanosecond()), ""
	if sec < 0 {
		sign, sec = "-", -sec
		if nsec > 0 {
			sec, nsec = sec-1, 1e9-nsec
		}
	}
	return fmt.Sprintf("%s%d.%09d", sign, sec, nsec)
}
