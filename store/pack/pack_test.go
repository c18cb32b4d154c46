package pack

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"dm/internal/errs"
	"dm/object"
)

func random(seed byte, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// page returns n bytes that compress to about a third.
func page(seed byte, n int) []byte {
	b := random(seed, n)
	for i := range b {
		if i%64 > 16 {
			b[i] = byte(i / 64)
		}
	}
	return b
}

func testCodec(t testing.TB) *Codec {
	c, err := NewCodec(Fast)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// example returns the pack of the example in docs/format/pack.md.
func example(t testing.TB) []byte {
	doc, err := os.ReadFile("../../docs/format/pack.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, ok := strings.Cut(string(doc), "## Example")
	if !ok {
		t.Fatal("docs/format/pack.md has no example")
	}
	_, text, _ = strings.Cut(text, "```\n")
	text, _, _ = strings.Cut(text, "```")
	var out []byte
	for sc := bufio.NewScanner(strings.NewReader(text)); sc.Scan(); {
		if strings.HasPrefix(sc.Text(), "#") {
			continue
		}
		b, err := hex.DecodeString(strings.ReplaceAll(sc.Text(), " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b...)
	}
	return out
}

func TestExampleOfTheDocument(t *testing.T) {
	c := testCodec(t)
	one, two := []byte("hello, hello, hello, hello\n"), []byte("Jello, hello, hello, hello\n")
	idOne, idTwo := object.Sum(object.KindChunk, one), object.Sum(object.KindChunk, two)

	want := example(t)
	r := NewReader(bytes.NewReader(want))
	for i, plain := range [][]byte{one, two} {
		rec, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		got, err := c.Decode(rec, one)
		if err != nil || !bytes.Equal(got, plain) || rec.ID != object.Sum(rec.Kind, plain) {
			t.Errorf("record %d is %q, %v", i, got, err)
		}
	}
	if _, err := r.Next(); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}

	// Written by hand, because an encoder would compress the first and refuse a delta of so little.
	var out bytes.Buffer
	w := NewWriter(&out)
	for _, rec := range []*Record{
		{Head{Kind: object.KindChunk, PlainLen: len(one), ID: idOne}, one},
		{Head{Kind: object.KindChunk, Encoding: Delta, PlainLen: len(two), ID: idTwo, Base: idOne}, []byte{0, 1, 0, 1, 'J'}},
	} {
		if err := w.Write(rec); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out.Bytes(), want) {
		t.Errorf("written:\n%s\nwant:\n%s", hex.Dump(out.Bytes()), hex.Dump(want))
	}
	// A store makes the same delta of it.
	if d, h, ok := c.AppendDelta(nil, object.KindChunk, idTwo, two, idOne, one, 100); !ok ||
		!bytes.Equal(d[h.Len():], []byte{0, 1, 0, 1, 'J'}) {
		t.Errorf("delta is % x, %v", d, ok)
	}
}

// edit changes, inserts or removes a stretch.
func edit(t *rapid.T, b []byte) []byte {
	at := rapid.IntRange(0, len(b)).Draw(t, "at")
	put := random(rapid.Byte().Draw(t, "seed"), rapid.IntRange(0, 300).Draw(t, "put"))
	gone := min(rapid.IntRange(0, 300).Draw(t, "gone"), len(b)-at)
	if rapid.Bool().Draw(t, "in place") {
		gone = min(len(put), len(b)-at)
	}
	return append(append(append([]byte(nil), b[:at]...), put...), b[at+gone:]...)
}

func TestCodecRoundTrip(t *testing.T) {
	c := testCodec(t)
	rapid.Check(t, func(t *rapid.T) {
		base := page(rapid.Byte().Draw(t, "seed"), rapid.SampledFrom([]int{0, 1, 500, 8192, 64 << 10}).Draw(t, "n"))
		plain := base
		for range rapid.IntRange(0, 12).Draw(t, "edits") {
			plain = edit(t, plain)
		}
		baseID, id := object.ID{1}, object.Sum(object.KindChunk, plain)
		check := func(b []byte, h Head) {
			rec, err := ParseRecord(b)
			if err != nil || rec.Head != h || rec.RecordLen() != len(b) {
				t.Fatalf("parsed %+v, %v; want %+v", rec.Head, err, h)
			}
			got, err := c.Decode(&rec, base)
			if err != nil || !bytes.Equal(got, plain) {
				t.Fatalf("%v: other bytes come back: %v", h.Encoding, err)
			}
			if got, err = c.DecodeOver(&rec, bytes.Clone(base)); err != nil || !bytes.Equal(got, plain) {
				t.Fatalf("%v: other bytes come back in the base's memory: %v", h.Encoding, err)
			}
		}
		check(c.Append(nil, object.KindChunk, id, plain))
		for _, limit := range []int{1, len(plain) / 8, len(plain), 1 << 30} {
			check(c.AppendOver(nil, object.KindChunk, id, plain, baseID, base, limit))
			if b, h, ok := c.AppendDelta(nil, object.KindChunk, id, plain, baseID, base, limit); ok {
				check(b, h)
				if h.PayloadLen > limit {
					t.Fatalf("delta of %d bytes, limit %d", h.PayloadLen, limit)
				}
			}
			if b, h, ok := c.AppendDict(nil, object.KindChunk, id, plain, baseID, base, limit); ok {
				check(b, h)
			}
		}
	})
}

// Each form of a delta is chosen where it is the smallest, comes back as it was, and is refused when its base is not the same.
func TestDeltaForms(t *testing.T) {
	c := testCodec(t)
	base := random(1, 64<<10)
	for name, f := range map[string]struct {
		flags byte
		most  int
		edit  func(p []byte)
	}{
		"a few bytes":                 {0, 40, func(p []byte) { copy(p[1000:], "a few bytes") }},
		"text":                        {flagBody, 200, func(p []byte) { copy(p[1000:], bytes.Repeat([]byte("text "), 1000)) }},
		"the same bit in all rows":    {flagBody | flagXOR, 100, func(p []byte) { flip(p, 100) }},
		"that, and it becomes longer": {flagBody | flagXOR, 100, func(p []byte) { flip(p[:60<<10], 100); p[len(p)-1] ^= 1 }},
	} {
		plain := bytes.Clone(base)
		f.edit(plain)
		if name == "that, and it becomes longer" {
			plain = append(plain, make([]byte, 500)...)
		}
		b, h, ok := c.AppendDelta(nil, object.KindChunk, object.ID{2}, plain, object.ID{1}, base, 32<<10)
		if !ok || b[h.Len()] != f.flags || h.PayloadLen > f.most {
			t.Errorf("%s: flags %d, %d bytes, %v", name, b[h.Len()], h.PayloadLen, ok)
			continue
		}
		rec, err := ParseRecord(b)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := c.Decode(&rec, base); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%s: comes back as something else: %v", name, err)
		}
	}
}

// flip changes one bit in every row of so many bytes.
func flip(p []byte, row int) {
	for i := 0; i < len(p); i += row {
		p[i] ^= 4
	}
}

// Equal content, all in place, makes a delta of next to nothing.
func TestDeltaIsSmall(t *testing.T) {
	c := testCodec(t)
	base := page(1, 64<<10)
	for _, edits := range []int{0, 1, 8, 30} {
		plain := append([]byte(nil), base...)
		for i := range edits {
			copy(plain[i*2000:], random(byte(i), 16))
		}
		_, h, ok := c.AppendDelta(nil, object.KindChunk, object.ID{2}, plain, object.ID{1}, base, 1<<20)
		if !ok || h.PayloadLen > 8+edits*24 {
			t.Errorf("%d edits of 16 bytes: %d bytes, %v", edits, h.PayloadLen, ok)
		}
	}
	if _, _, ok := c.AppendDelta(nil, object.KindChunk, object.ID{2}, random(3, 64<<10), object.ID{1}, base, 40<<10); ok {
		t.Error("a delta against unrelated content")
	}
}

func TestIncompressibleIsRaw(t *testing.T) {
	c := testCodec(t)
	_, h := c.Append(nil, object.KindChunk, object.ID{1}, random(1, 64<<10))
	if h.Encoding != Raw {
		t.Errorf("random bytes are stored as %v", h.Encoding)
	}
	_, h = c.Append(nil, object.KindChunk, object.ID{1}, make([]byte, 64<<10))
	if h.Encoding != Zstd || h.PayloadLen > 50 {
		t.Errorf("zeros are stored as %v in %d bytes", h.Encoding, h.PayloadLen)
	}
}

// testPack returns a pack of n records, and where each begins.
func testPack(t testing.TB, n int) (b []byte, offs []int, recs []Record) {
	c := testCodec(t)
	var out bytes.Buffer
	w := NewWriter(&out)
	for i := range n {
		plain := page(byte(i), 100+i*317%5000)
		if i%5 == 4 {
			plain = random(byte(i), 3000)
		}
		rb, _ := c.Append(nil, object.KindTree, object.Sum(object.KindTree, plain), plain)
		rec, err := ParseRecord(rb)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Write(&rec); err != nil {
			t.Fatal(err)
		}
		offs = append(offs, out.Len()-len(rb))
		recs = append(recs, rec)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if w.Size() != uint64(out.Len()) {
		t.Errorf("writer says %d bytes, wrote %d", w.Size(), out.Len())
	}
	return out.Bytes(), offs, recs
}

func readAll(b []byte) (n int, err error) {
	r := NewReader(bytes.NewReader(b))
	for {
		if _, err := r.Next(); err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return n, err
		}
		n++
	}
}

// Every cut, and every flipped bit, is noticed by a reader of the stream.
func TestStreamDamage(t *testing.T) {
	b, _, _ := testPack(t, 6)
	if n, err := readAll(b); n != 6 || err != nil {
		t.Fatalf("%d records, %v", n, err)
	}
	for i := range b {
		if _, err := readAll(b[:i]); errs.KindOf(err) != errs.Damaged {
			t.Fatalf("cut at %d: %v", i, err)
		}
		flipped := bytes.Clone(b)
		flipped[i] ^= 1 << (i % 8)
		if _, err := readAll(flipped); errs.KindOf(err) != errs.Damaged {
			t.Fatalf("flipped at %d: %v", i, err)
		}
	}
	if _, err := readAll(append(bytes.Clone(b), 0)); errs.KindOf(err) != errs.Damaged {
		t.Errorf("a byte behind the end: %v", err)
	}
}

func TestNewerIsRefused(t *testing.T) {
	fix := func(b []byte, n int) []byte {
		crc := castagnoli(b[:n])
		b[n], b[n+1], b[n+2], b[n+3] = byte(crc), byte(crc>>8), byte(crc>>16), byte(crc>>24)
		return b
	}
	for _, i := range []int{8, 10} {
		b := AppendHeader(nil)
		b[i]++
		err := CheckHeader(fix(b, 12))
		if errs.KindOf(err) != errs.Damaged || errs.HintOf(err) == "" {
			t.Errorf("header with byte %d changed: %v, hint %q", i, err, errs.HintOf(err))
		}
	}
	rec := Record{Head{Kind: object.KindChunk, PlainLen: 3, ID: object.ID{1}}, []byte("abc")}
	for i, v := range map[int]byte{4: 9, 5: 4, 6: 1, 7: 1, 11: 1, 15: 1} {
		b := rec.Append(nil)
		b[i] = v
		if _, err := ParseHead(fix(b, HeadLen-4)); errs.KindOf(err) != errs.Damaged {
			t.Errorf("record with byte %d set to %d: %v", i, v, err)
		}
	}
}

// Damage costs the records it touches and no others.
func TestScanFindsItsFooting(t *testing.T) {
	b, offs, recs := testPack(t, 40)
	rapid.Check(t, func(t *rapid.T) {
		d := bytes.Clone(b)
		from := rapid.IntRange(0, len(d)-1).Draw(t, "from")
		n := min(rapid.IntRange(1, 9000).Draw(t, "n"), len(d)-from)
		for i, v := range random(rapid.Byte().Draw(t, "seed"), n) {
			d[from+i] ^= v | 1 // every byte is another one
		}
		seen := map[object.ID]bool{}
		damaged := 0
		last := int64(0)
		_, err := Scan(bytes.NewReader(d), int64(len(d)), func(f Found) error {
			if f.Off < last || f.Len <= 0 {
				t.Fatalf("found %d bytes at %d behind %d", f.Len, f.Off, last)
			}
			last = f.Off + f.Len
			if f.Err != nil {
				damaged++
			} else {
				seen[f.Record.ID] = true
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for i, rec := range recs {
			touched := from < offs[i]+rec.RecordLen() && from+n > offs[i]
			if !touched && !seen[rec.ID] {
				t.Fatalf("record %d at %d is not found, damage is %d bytes at %d", i, offs[i], n, from)
			}
		}
		if damaged == 0 {
			t.Fatalf("%d bytes of damage at %d are not noticed", n, from)
		}
	})
	end, err := Scan(bytes.NewReader(b), int64(len(b)), func(Found) error { return nil })
	if err != nil || !end.Sealed || end.Size != int64(len(b)) || end.Records != 40 {
		t.Errorf("end of a whole pack is %+v, %v", end, err)
	}
	end, _ = Scan(bytes.NewReader(b), int64(offs[39]+20), func(Found) error { return nil })
	if end.Sealed || end.Size != int64(offs[39]) || end.Records != 39 {
		t.Errorf("end of a pack cut in record 40 is %+v, want size %d", end, offs[39])
	}
}

// A frame of few bytes that unpacks to much is refused without unpacking it.
func TestBombs(t *testing.T) {
	c := testCodec(t)
	b, _ := c.Append(nil, object.KindChunk, object.ID{1}, make([]byte, object.MaxSize))
	frame := b[HeadLen:]
	rec := Record{Head{Kind: object.KindChunk, Encoding: Zstd, PlainLen: 100, ID: object.ID{1}}, frame}
	allocs := testing.AllocsPerRun(5, func() {
		if _, err := c.Decode(&rec, nil); errs.KindOf(err) != errs.Damaged {
			t.Errorf("a frame of %d bytes for 100: %v", object.MaxSize, err)
		}
	})
	if allocs > 50 {
		t.Errorf("%v allocations", allocs)
	}
	for _, payload := range []string{
		"", "\x00", "\x08\x01\x00\x01x", "\x05\x01\x00\x01x", "\x04\xff\xff\xff\xff\x0f", "\x04\x04\x01\x00\x01x", "\x00\x01\x00\x02x", "\x00\x01\xff\xff\xff\xff\x7f\x01x",
		"\x00\xff\xff\xff\xff\x0f", "\x00\x01\x05\x01xy", "\x00\x80\x00", "\x01\x01\x00\x01x",
	} {
		rec := Record{Head{Kind: object.KindChunk, Encoding: Delta, PlainLen: 10, ID: object.ID{1}}, []byte(payload)}
		if _, err := c.Decode(&rec, []byte("0123456789")); errs.KindOf(err) != errs.Damaged {
			t.Errorf("delta %q: %v", payload, err)
		}
	}
	rec = Record{Head{Kind: object.KindChunk, Encoding: Delta, PlainLen: 10, ID: object.ID{1}}, []byte("\x00\x00")}
	if _, err := c.Decode(&rec, []byte("short")); errs.KindOf(err) != errs.Damaged {
		t.Errorf("delta over a short base: %v", err)
	}
}

func FuzzReader(f *testing.F) {
	b, _, _ := testPack(f, 3)
	f.Add(b)
	f.Add(example(f))
	c := testCodec(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		r := NewReader(bytes.NewReader(b))
		for {
			rec, err := r.Next()
			if err != nil {
				break
			}
			c.Decode(rec, b)
		}
		last := int64(0)
		Scan(bytes.NewReader(b), int64(len(b)), func(f Found) error {
			if f.Off < last || f.Len <= 0 && len(b) > 0 {
				t.Fatalf("no progress at %d", f.Off)
			}
			last = f.Off + f.Len
			return nil
		})
	})
}

func FuzzDecode(f *testing.F) {
	c := testCodec(f)
	base := page(1, 4096)
	plain := append(bytes.Clone(base[:4000]), "something else"...)
	d, h, _ := c.AppendDelta(nil, object.KindChunk, object.ID{1}, plain, object.ID{2}, base, 1<<20)
	f.Add(uint8(Delta), d[h.Len():], 4014)
	d, h, _ = c.AppendDict(nil, object.KindChunk, object.ID{1}, plain, object.ID{2}, base, 1<<20)
	f.Add(uint8(Dict), d[h.Len():], 4014)
	f.Fuzz(func(t *testing.T, enc uint8, payload []byte, n int) {
		if n < 0 || n > object.MaxSize {
			return
		}
		rec := Record{Head{Kind: object.KindChunk, Encoding: Encoding(enc%3) + 1, PlainLen: n}, payload}
		got, err := c.Decode(&rec, base)
		if err == nil && len(got) != n || cap(got) > max(n, len(base))+64 {
			t.Fatalf("%d bytes decoded to %d, capacity %d", n, len(got), cap(got))
		}
	})
}

func BenchmarkCodec(b *testing.B) {
	c := testCodec(b)
	const n = 64 << 10
	base := page(1, n)
	small := bytes.Clone(base)
	for i := range 8 {
		copy(small[i*8000:], random(byte(i), 40))
	}
	var buf []byte
	for name, plain := range map[string][]byte{"compressible": base, "incompressible": random(2, n), "zero": make([]byte, n)} {
		b.Run("encode/"+name, func(b *testing.B) {
			b.SetBytes(n)
			for b.Loop() {
				buf, _ = c.Append(buf[:0], object.KindChunk, object.ID{}, plain)
			}
		})
		rb, _ := c.Append(nil, object.KindChunk, object.ID{}, plain)
		rec, _ := ParseRecord(rb)
		b.Run("decode/"+name, func(b *testing.B) {
			b.SetBytes(n)
			for b.Loop() {
				c.Decode(&rec, nil)
			}
		})
	}
	for name, fn := range map[string]func([]byte, object.Kind, object.ID, []byte, object.ID, []byte, int) ([]byte, Head, bool){
		"delta": c.AppendDelta, "dict": c.AppendDict,
	} {
		db, _, ok := fn(nil, object.KindChunk, object.ID{1}, small, object.ID{2}, base, n)
		if !ok {
			b.Fatal("no delta")
		}
		rec, _ := ParseRecord(db)
		b.Run(fmt.Sprintf("encode/%s-%d", name, rec.PayloadLen), func(b *testing.B) {
			b.SetBytes(n)
			for b.Loop() {
				buf, _, _ = fn(buf[:0], object.KindChunk, object.ID{1}, small, object.ID{2}, base, n)
			}
		})
		b.Run("decode/"+name, func(b *testing.B) {
			b.SetBytes(n)
			for b.Loop() {
				if _, err := c.Decode(&rec, base); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	unrelated := page(9, n)
	b.Run("encode/delta-refused", func(b *testing.B) {
		b.SetBytes(n)
		for b.Loop() {
			c.AppendDelta(buf[:0], object.KindChunk, object.ID{1}, unrelated, object.ID{2}, base, 8<<10)
		}
	})
}
