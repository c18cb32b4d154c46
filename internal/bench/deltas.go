package main

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"dm/chunker"
	"dm/object"
	"dm/store/pack"
)

// deltas compares the ways to store the changed blocks of database files, on two versions of them: what each gives in bytes and
// what it costs one core. It is what the encodings of package pack were chosen by.
func deltas(ctx context.Context, l *lab, r *record) error {
	r.title("Ways to store what changed in database files")
	first, second, ok := strings.Cut(l.versions, ",")
	if !ok {
		var err error
		if first, second, err = live(ctx, l, r); err != nil {
			return err
		}
	}
	pairs, err := changedFiles(ctx, first, second)
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ways, closeWays, err := deltaWays()
	if err != nil {
		return err
	}
	defer closeWays()
	cuts := []cutting{
		{"fixed 16 KiB", fixedCuts(16 << 10)},
		{"fixed 32 KiB", fixedCuts(32 << 10)},
		{"fixed 64 KiB", fixedCuts(64 << 10)},
		{"fixed 128 KiB", fixedCuts(128 << 10)},
		{"fixed 256 KiB", fixedCuts(256 << 10)},
		{"content-defined", chunker.Gear},
	}
	var rows [][]string
	for _, c := range cuts {
		blocks := c.blocks(pairs)
		var plain int
		for _, b := range blocks {
			plain += len(b.plain)
		}
		for _, w := range ways {
			if err := ctx.Err(); err != nil {
				return err
			}
			l.say("deltas: %s: %s", c.name, w.name)
			got, err := w.measure(blocks)
			if err != nil {
				return fmt.Errorf("%s of %s blocks: %w", w.name, c.name, err)
			}
			key := c.name + "/" + w.name
			r.add(key+"/bytes", float64(got.bytes))
			r.add(key+"/encode", got.encode.Seconds())
			r.add(key+"/decode", got.decode.Seconds())
			rows = append(rows, []string{
				c.name, count(float64(len(blocks))), megabytes(float64(plain)), w.name, megabytes(float64(got.bytes)),
				seconds(got.encode.Seconds()), micros(got.decode, len(blocks)),
			})
		}
	}
	r.table("All blocks that the second version has and the first has not, each against the block that stood there before. CPU time of one "+
		"core, without hashing and writing; bytes without heads of records and without index. Encoding: all blocks; decoding: one block, its base being in memory.",
		[]string{"cuts", "changed blocks", "plain", "way", "stored", "encoding", "decoding"}, rows)
	return perFile(r, pairs, ways)
}

// perFile shows where the bytes come from: the files of which most is stored.
func perFile(r *record, pairs []filePair, ways []way) error {
	var rows [][]string
	for _, p := range pairs {
		blocks := cutting{cut: fixedCuts(64 << 10)}.of(p)
		row := []string{p.name, count(float64(len(blocks)))}
		biggest := 0
		for _, w := range ways {
			got, err := w.measure(blocks)
			if err != nil {
				return fmt.Errorf("%s of %s: %w", w.name, p.name, err)
			}
			biggest = max(biggest, got.bytes)
			row = append(row, megabytes(float64(got.bytes)))
		}
		if biggest >= 100_000 {
			rows = append(rows, row)
		}
	}
	head := []string{"file", "changed blocks"}
	for _, w := range ways {
		head = append(head, w.name)
	}
	r.table("The same by file, for blocks of 64 KiB and files with at least 0.1 MB.", head, rows)
	return nil
}

func micros(d time.Duration, n int) string {
	if n == 0 {
		return "-"
	}
	return fmt.Sprintf("%.0f µs", float64(d.Microseconds())/float64(n))
}

// filePair is a file in two versions; before is empty where it is new.
type filePair struct {
	name          string
	before, after []byte
}

// changedFiles reads the files that differ.
func changedFiles(ctx context.Context, first, second string) (list []filePair, err error) {
	err = filepath.WalkDir(second, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		name, err := filepath.Rel(second, path)
		if err != nil {
			return err
		}
		after, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		before, err := os.ReadFile(filepath.Join(first, name))
		if err != nil && !os.IsNotExist(err) {
			return err
		}
		if !bytes.Equal(before, after) {
			list = append(list, filePair{name, before, after})
		}
		return ctx.Err()
	})
	return list, err
}

// cutting is a way to cut files into blocks.
type cutting struct {
	name string
	cut  func(rest []byte) int
}

func fixedCuts(n int) func([]byte) int { return func(rest []byte) int { return min(n, len(rest)) } }

// block is a changed block and what stood at its beginning before; nil for none.
type block struct{ plain, base []byte }

func (c cutting) blocks(pairs []filePair) (list []block) {
	for _, p := range pairs {
		list = append(list, c.of(p)...)
	}
	return list
}

func (c cutting) of(p filePair) (list []block) {
	var olds []int // where old blocks begin
	known := map[object.ID]bool{}
	for at := 0; at < len(p.before); {
		n := c.cut(p.before[at:])
		known[object.Sum(object.KindChunk, p.before[at:at+n])] = true
		olds = append(olds, at)
		at += n
	}
	k := 0
	for at := 0; at < len(p.after); {
		n := c.cut(p.after[at:])
		b := block{plain: p.after[at : at+n]}
		for k+1 < len(olds) && olds[k+1] <= at {
			k++
		}
		if k < len(olds) && at < len(p.before) {
			end := len(p.before)
			if k+1 < len(olds) {
				end = olds[k+1]
			}
			b.base = p.before[olds[k]:end]
		}
		if !chunker.Zero(b.plain) && !known[object.Sum(object.KindChunk, b.plain)] {
			list = append(list, b)
		}
		at += n
	}
	return list
}

// way stores a block, alone or against its base, and reads it again.
type way struct {
	name   string
	encode func(dst []byte, b block) ([]byte, error)
	decode func(stored []byte, b block) ([]byte, error)
}

type measured struct {
	bytes          int
	encode, decode time.Duration // of the thread
}

func (w way) measure(blocks []block) (m measured, err error) {
	var all [][]byte
	begin := threadTime()
	for _, b := range blocks {
		out, err := w.encode(nil, b)
		if err != nil {
			return m, err
		}
		m.bytes += len(out)
		all = append(all, out)
	}
	m.encode = threadTime() - begin
	begin = threadTime()
	for i, b := range blocks {
		plain, err := w.decode(all[i], b)
		if err != nil {
			return m, err
		}
		if !bytes.Equal(plain, b.plain) {
			return m, fmt.Errorf("a block of %d bytes came back as another", len(b.plain))
		}
	}
	m.decode = threadTime() - begin
	return m, nil
}

// threadTime is the processor time of the calling thread.
func threadTime() time.Duration {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t) != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

// deltaWays returns the ways. All work in the calling thread.
func deltaWays() (ways []way, done func(), err error) {
	z := &zstdWays{}
	if err := z.open(); err != nil {
		return nil, nil, err
	}
	codec, err := pack.NewCodec(pack.Fast)
	if err != nil {
		return nil, nil, err
	}
	ways = []way{
		{"zstd alone, fastest", z.alone, z.decodeAlone},
		{"zstd alone, default", z.aloneDefault, z.decodeAlone},
		{"XOR, zstd", z.xor, z.decodeXOR},
		{"pages of 4 KiB that differ, zstd", z.pages, z.decodePages},
		{"zstd with the old block as dictionary, fastest", z.dict(z.fast), z.decodeDict},
		{"zstd with the old block as dictionary, default", z.dict(z.normal), z.decodeDict},
		{"dm", encodeAsStored(codec), decodeStored(codec)},
	}
	return ways, func() { codec.Close(); z.close() }, nil
}

// zstdWays is what can be had of zstd, with encoders that are used again and again.
type zstdWays struct {
	plain, small, fast, normal *zstd.Encoder // the first two without dictionaries
	dec, dictDec               *zstd.Decoder
}

func (z *zstdWays) open() (err error) {
	enc := func(level zstd.EncoderLevel) (e *zstd.Encoder) {
		if err == nil {
			e, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false))
		}
		return e
	}
	dec := func() (d *zstd.Decoder) {
		if err == nil {
			d, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecodeAllCapLimit(true))
		}
		return d
	}
	z.plain, z.small = enc(zstd.SpeedFastest), enc(zstd.SpeedDefault)
	z.fast, z.normal = enc(zstd.SpeedFastest), enc(zstd.SpeedDefault)
	z.dec, z.dictDec = dec(), dec()
	return err
}

func (z *zstdWays) close() {
	z.plain.Close()
	z.small.Close()
	z.fast.Close()
	z.normal.Close()
	z.dec.Close()
	z.dictDec.Close()
}

func (z *zstdWays) alone(dst []byte, b block) ([]byte, error) {
	return z.plain.EncodeAll(b.plain, dst), nil
}

func (z *zstdWays) aloneDefault(dst []byte, b block) ([]byte, error) {
	return z.small.EncodeAll(b.plain, dst), nil
}

func (z *zstdWays) decodeAlone(stored []byte, b block) ([]byte, error) {
	return z.dec.DecodeAll(stored, make([]byte, 0, len(b.plain)))
}

func xored(plain, base []byte) []byte {
	out := bytes.Clone(plain)
	for i := range min(len(plain), len(base)) {
		out[i] ^= base[i]
	}
	return out
}

func (z *zstdWays) xor(dst []byte, b block) ([]byte, error) {
	return z.plain.EncodeAll(xored(b.plain, b.base), dst), nil
}

func (z *zstdWays) decodeXOR(stored []byte, b block) ([]byte, error) {
	out, err := z.decodeAlone(stored, b)
	return xored(out, b.base), err
}

// pages is a bit for each page, set where it differs from the old one, and those pages.
func (z *zstdWays) pages(dst []byte, b block) ([]byte, error) {
	bits := make([]byte, (len(b.plain)/page+8)/8)
	var differ []byte
	for at := 0; at < len(b.plain); at += page {
		end := min(at+page, len(b.plain))
		if end <= len(b.base) && bytes.Equal(b.plain[at:end], b.base[at:end]) {
			continue
		}
		bits[at/page/8] |= 1 << (at / page % 8)
		differ = append(differ, b.plain[at:end]...)
	}
	return z.plain.EncodeAll(differ, append(dst, bits...)), nil
}

func (z *zstdWays) decodePages(stored []byte, b block) ([]byte, error) {
	n := (len(b.plain)/page + 8) / 8
	differ, err := z.dec.DecodeAll(stored[n:], make([]byte, 0, len(b.plain)))
	if err != nil {
		return nil, err
	}
	out := make([]byte, len(b.plain))
	for at := 0; at < len(out); at += page {
		end := min(at+page, len(out))
		if stored[at/page/8]&(1<<(at/page%8)) == 0 {
			copy(out[at:end], b.base[at:end])
			continue
		}
		differ = differ[copy(out[at:end], differ):]
	}
	return out, nil
}

const dictID = 1

func (z *zstdWays) dict(e *zstd.Encoder) func([]byte, block) ([]byte, error) {
	return func(dst []byte, b block) ([]byte, error) {
		if len(b.base) < 8 {
			return z.alone(dst, b)
		}
		if err := e.ResetWithOptions(nil, zstd.WithEncoderDictRaw(dictID, b.base)); err != nil {
			return nil, err
		}
		return e.EncodeAll(b.plain, dst), nil
	}
}

func (z *zstdWays) decodeDict(stored []byte, b block) ([]byte, error) {
	if len(b.base) < 8 {
		return z.decodeAlone(stored, b)
	}
	if err := z.dictDec.ResetWithOptions(nil, zstd.WithDecoderDictRaw(dictID, b.base)); err != nil {
		return nil, err
	}
	return z.dictDec.DecodeAll(stored, make([]byte, 0, len(b.plain)))
}

// encodeAsStored does what a batch of the store does with a chunk that has a predecessor. The head of the record does not count.
func encodeAsStored(c *pack.Codec) func([]byte, block) ([]byte, error) {
	return func(dst []byte, b block) ([]byte, error) {
		var id, base object.ID
		rec, h := c.Append(nil, object.KindChunk, id, b.plain)
		if len(b.base) > 0 {
			rec, h = c.AppendOver(rec[:0], object.KindChunk, id, b.plain, base, b.base, h.PayloadLen*3/4)
		}
		return append(append(dst, byte(h.Encoding)), rec[h.Len():]...), nil
	}
}

func decodeStored(c *pack.Codec) func([]byte, block) ([]byte, error) {
	return func(stored []byte, b block) ([]byte, error) {
		rec := pack.Record{Head: pack.Head{
			Kind: object.KindChunk, Encoding: pack.Encoding(stored[0]), PlainLen: len(b.plain), PayloadLen: len(stored) - 1,
		}, Payload: stored[1:]}
		return c.Decode(&rec, b.base)
	}
}
