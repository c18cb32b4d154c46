package hub

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"dm/internal/errs"
	"dm/object"
	"dm/remote"
	"dm/remote/hubproto"
	"dm/store/pack"
)

// testPack makes packs, wrong ones too.
type testPack struct {
	b     []byte
	n     uint64
	codec *pack.Codec
}

func newPack() *testPack {
	c, err := pack.NewCodec(pack.Fast)
	if err != nil {
		panic(err)
	}
	return &testPack{b: pack.AppendHeader(nil), codec: c}
}

func (p *testPack) whole(kind object.Kind, plain []byte) *testPack {
	p.b, _ = p.codec.Append(p.b, kind, object.Sum(kind, plain), plain)
	p.n++
	return p
}

func (p *testPack) delta(kind object.Kind, plain []byte, baseID object.ID, base []byte) *testPack {
	var ok bool
	if p.b, _, ok = p.codec.AppendDelta(p.b, kind, object.Sum(kind, plain), plain, baseID, base, len(plain)); !ok {
		panic("no delta")
	}
	p.n++
	return p
}

func (p *testPack) record(r pack.Record) *testPack {
	p.b = r.Append(p.b)
	p.n++
	return p
}

func (p *testPack) seal() *remote.Pack {
	data := pack.AppendEnd(p.b, p.n, uint64(len(p.b)))
	return &remote.Pack{Name: remote.PackName(data), Data: data}
}

// members returns the number of a dot's members.
func (s *served) members(t testing.TB, name string) int {
	t.Helper()
	return len(s.allMembers(t, name))
}

// allMembers returns a dot's members.
func (h *Hub) allMembers(t testing.TB, name string) map[object.ID]object.Kind {
	t.Helper()
	ctx := context.Background()
	all := map[object.ID]object.Kind{}
	var d *dotRecord
	must(t, h.engine.look(ctx, func(a accounts) (err error) {
		d, err = a.dot(name)
		return err
	}))
	if d == nil {
		return all
	}
	switch e := h.engine.(type) {
	case *localEngine:
		must(t, e.db.View(func(tx *bbolt.Tx) error {
			return members(tx, d.ID).ForEach(func(k, v []byte) error {
				all[object.ID(k)] = object.Kind(v[0])
				return nil
			})
		}))
	case *sharedEngine:
		sd, err := e.dot(d)
		must(t, err)
		must(t, refresh(ctx, sd))
		for id, kind := range sd.r.All() {
			all[id] = kind
		}
	}
	return all
}

// chunkRecord is a raw record of plain under another's id, or its own.
func chunkRecord(id object.ID, enc pack.Encoding, plainLen int, payload []byte) pack.Record {
	return pack.Record{Head: pack.Head{Kind: object.KindChunk, Encoding: enc, PlainLen: plainLen, ID: id}, Payload: payload}
}

// Every pack here is wrong. Each is refused as damaged, and nothing of it, good records before the bad one included, becomes
// a member.
func TestHostilePacks(t *testing.T) { eachEngine(t, testHostilePacks) }

func testHostilePacks(t *testing.T, engine string) {
	h := serveHub(t, engine, Limits{}, "alice")
	d := dotOfUser(t, h.as(t, "alice"), "alice/app")
	good := []byte("a good chunk")
	content := bytes.Repeat([]byte("some content "), 100)
	one, two := object.ID{1}, object.ID{2}
	loop := func(id, base object.ID) pack.Record {
		r := chunkRecord(id, pack.Delta, 4, []byte{0, 0})
		r.Base = base
		return r
	}
	tree := func(names ...string) []byte {
		t := &object.Tree{Level: 1}
		for i, n := range names {
			t.Entries = append(t.Entries, object.Entry{Name: n, Ino: uint64(i + 1), Mode: object.ModeRegular | 0o644})
		}
		return t.Encode()
	}
	list := (&object.List{Level: 1, Spans: []object.Span{{Size: 5, ID: object.ID{7}}}}).Encode()
	packs := map[string]*remote.Pack{
		"wrong id":               newPack().whole(object.KindChunk, good).record(chunkRecord(one, pack.Raw, len(good), good)).seal(),
		"no zstd":                newPack().record(chunkRecord(one, pack.Zstd, 10, []byte("not a frame"))).seal(),
		"bomb":                   newPack().record(chunkRecord(one, pack.Zstd, 100, bomb(t))).seal(),
		"twice the same":         newPack().whole(object.KindChunk, good).whole(object.KindChunk, good).seal(),
		"unpacks without end":    inflating(),
		"delta loop":             newPack().record(loop(one, two)).record(loop(two, one)).seal(),
		"missing base":           newPack().delta(object.KindChunk, append([]byte("y"), content[1:]...), object.Sum(object.KindChunk, content), content).seal(),
		"missing chunk":          newPack().whole(object.KindChunk, good).whole(object.KindList, list).seal(),
		"tree with ..":           newPack().whole(object.KindTree, tree("..")).seal(),
		"tree with /":            newPack().whole(object.KindTree, tree("a/b")).seal(),
		"tree with NUL":          newPack().whole(object.KindTree, tree("a\x00b")).seal(),
		"tree with a name twice": newPack().whole(object.KindTree, tree("a", "a")).seal(),
		"no tree at all":         newPack().whole(object.KindTree, []byte("x")).seal(),
		"no commit at all":       newPack().whole(object.KindCommit, []byte("x")).seal(),
		"empty":                  {},
		"no end":                 {Data: newPack().whole(object.KindChunk, good).b},
		"cut short":              {Data: newPack().whole(object.KindChunk, good).seal().Data[:60]},
		"bytes after the end":    {Data: append(newPack().whole(object.KindChunk, good).seal().Data, 0)},
		"newer version":          {Data: newer(newPack().whole(object.KindChunk, good).seal().Data)},
	}
	for name, p := range packs {
		t.Run(name, func(t *testing.T) {
			mustBe(t, d.Store(context.Background(), p), errs.Damaged)
			if n := h.members(t, "alice/app"); n != 0 {
				t.Errorf("%d objects of a refused pack are members", n)
			}
		})
	}
	rng := rand.New(rand.NewPCG(1, 2))
	whole := newPack().whole(object.KindChunk, content).whole(object.KindTree, tree("a", "b")).seal().Data
	for range 200 {
		b := bytes.Clone(whole)
		b[rng.IntN(len(b))] ^= byte(1 + rng.IntN(255))
		mustBe(t, d.Store(context.Background(), &remote.Pack{Data: b}), errs.Damaged)
	}
	must(t, d.Store(context.Background(), newPack().whole(object.KindChunk, good).seal()))
	if n := h.members(t, "alice/app"); n != 1 {
		t.Errorf("%d members after one good pack", n)
	}
}

// bomb is a small zstd frame of 4 MiB of zeros.
func bomb(t *testing.T) []byte {
	c, err := pack.NewCodec(pack.Fast)
	must(t, err)
	b, _ := c.Append(nil, object.KindChunk, object.ID{}, make([]byte, object.MaxSize))
	return b[pack.HeadLen:]
}

// inflating is a pack of some 150 KB that unpacks to more than is allowed.
func inflating() *remote.Pack {
	p := newPack()
	b := make([]byte, object.MaxSize)
	for i := range hubproto.MaxPlain/object.MaxSize + 1 {
		b[0], b[1] = byte(i), byte(i>>8)
		p.whole(object.KindChunk, b)
	}
	return p.seal()
}

func newer(b []byte) []byte {
	binary.LittleEndian.PutUint16(b[8:], 2)
	return b
}

// Requests that no client of ours sends get a status of 4xx, and bodies without end are cut off.
func TestHostileRequests(t *testing.T) { eachEngine(t, testHostileRequests) }

func testHostileRequests(t *testing.T, engine string) {
	h := serveHub(t, engine, Limits{}, "alice")
	long := strings.Repeat("a", 65)
	for _, c := range []struct {
		method, path, body string
		status             int
	}{
		{"GET", "/v1/dots/alice/" + long + "/refs", "", 400},
		{"GET", "/v1/dots/alice/a%00b/refs", "", 400},
		{"GET", "/v1/dots/alice/%2e%2e/refs", "", 400},
		{"POST", "/v1/dots/alice/x%2fy/refs", `{"ref":"heads/a"}`, 400},
		{"GET", "/v1/nothing", "", 404},
		{"GET", "/v2/", "", 404},
		{"PUT", "/v1/dots/alice/a/refs", "", 405},
		{"POST", "/v1/dots/alice/a/refs", "", 400},
		{"POST", "/v1/dots/alice/a/refs", `{"ref":"heads/a","more":1}`, 400},
		{"POST", "/v1/dots/alice/a/refs", `{"ref":"heads/a","new":"zz"}`, 400},
		{"POST", "/v1/dots/alice/a/refs", `{"ref":"../../etc","new":""}`, 400},
		{"POST", "/v1/dots/alice/a/missing", "short", 400},
		{"POST", "/v1/dots/alice/a/load", "\xff\xff\xff\xff\xff\xff\xff\xff", 400},
		{"POST", "/v1/dots/alice/a/load", "\x01\x00\x00\x00\x00\x00\x00\x00\x09" + long[:32], 400},
		{"POST", "/v1/dots/alice/a/shares", `{"user":"bob","access":"own"}`, 400},
		{"GET", "/v1/dots/bob/a/shares", "", 403},
	} {
		req, err := http.NewRequest(c.method, h.url+c.path, strings.NewReader(c.body))
		must(t, err)
		req.SetBasicAuth("alice", h.keys["alice"])
		resp, err := http.DefaultClient.Do(req)
		must(t, err)
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode != c.status {
			t.Errorf("%s %s %q: status %d, want %d", c.method, c.path, c.body, resp.StatusCode, c.status)
		}
	}
	for _, path := range []string{"missing", "load", "packs", "refs"} {
		body := io.MultiReader(bytes.NewReader(pack.AppendHeader(nil)), endless{})
		if path == "packs" {
			body = io.MultiReader(bytes.NewReader(pack.AppendHeader(nil)), &records{codec: newPack().codec}) // each of them right
		}
		req, err := http.NewRequest(http.MethodPost, h.url+"/v1/dots/alice/a/"+path, io.LimitReader(body, 2*hubproto.MaxPack))
		must(t, err)
		req.SetBasicAuth("alice", h.keys["alice"])
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			continue // the hub closed the connection: that is fine, too
		}
		resp.Body.Close()
		if resp.StatusCode < 400 || resp.StatusCode >= 500 {
			t.Errorf("endless body to %s: status %d", path, resp.StatusCode)
		}
	}
	if n := h.members(t, "alice/a"); n != 0 {
		t.Errorf("%d objects of endless packs are members", n)
	}
}

// A directory that names another one very often, asked for very often at a time, costs a hub no more than asking once.
func TestLoadOfTheSameAgainAndAgain(t *testing.T) { eachEngine(t, testLoadOfTheSameAgainAndAgain) }

func testLoadOfTheSameAgainAndAgain(t *testing.T, engine string) {
	h := serveHub(t, engine, Limits{}, "alice")
	d := dotOfUser(t, h.as(t, "alice"), "alice/app")
	small := (&object.Tree{Level: 1, Entries: []object.Entry{{Name: "a", Ino: 2, Mode: object.ModeRegular | 0o644}}}).Encode()
	big := &object.Tree{Level: 1}
	for i := range 500 {
		big.Entries = append(big.Entries, object.Entry{
			Name: fmt.Sprintf("%06d", i), Ino: uint64(i + 3), Mode: object.ModeDir | 0o755, Tree: object.Sum(object.KindTree, small),
		})
	}
	ctx := context.Background()
	must(t, d.Store(ctx, newPack().whole(object.KindTree, small).whole(object.KindTree, big.Encode()).seal()))
	want := remote.Want{Kind: object.KindTree, ID: object.Sum(object.KindTree, big.Encode())}
	cost := func(times int) (bytes uint64) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		got := map[object.ID]int{}
		must(t, d.Load(ctx, remote.Request{Wants: slices.Repeat([]remote.Want{want}, times)}, func(r *pack.Record) error {
			got[r.ID]++
			return nil
		}))
		runtime.ReadMemStats(&after)
		if len(got) != 2 || got[want.ID] != 1 {
			t.Errorf("asked for one of two objects, and got %v", got)
		}
		return after.TotalAlloc - before.TotalAlloc
	}
	once := cost(1)
	if often := cost(hubproto.MaxIDs); often > once+16<<20 {
		t.Errorf("asked again and again for the same a hub allocates %d MB, asked once %d MB", often>>20, once>>20)
	}
}

// A small pack of long chains whose ends come by turns would have a hub on a bucket unpack hundreds of gigabytes.
func TestWorkOfChains(t *testing.T) {
	h := serveHub(t, "bucket", Limits{}, "alice")
	p := newPack()
	base := make([]byte, object.MaxSize)
	p.whole(object.KindChunk, base)
	for i := range hubproto.MaxPlain/object.MaxSize - 1 {
		next := bytes.Clone(base)
		next[i]++
		p.delta(object.KindChunk, next, object.Sum(object.KindChunk, base), base)
		if i < hubproto.MaxChain-1 {
			base = next
		}
	}
	mustBe(t, dotOfUser(t, h.as(t, "alice"), "alice/app").Store(context.Background(), p.seal()), errs.Damaged)
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// records is chunks without end.
type records struct {
	codec *pack.Codec
	n     uint64
	rest  []byte
}

func (r *records) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		r.n++
		b := binary.LittleEndian.AppendUint64(make([]byte, 64<<10), r.n)
		rec := chunkRecord(object.Sum(object.KindChunk, b), pack.Raw, len(b), b)
		r.rest = rec.Append(nil)
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// Too many transfers of one user: the others are told to come back, and others' are served.
func TestTransferLimit(t *testing.T) { eachEngine(t, testTransferLimit) }

func testTransferLimit(t *testing.T, engine string) {
	h := serveHub(t, engine, Limits{UserTransfers: 1, TransferWait: 100 * time.Millisecond}, "alice", "bob")
	post := func(user string, body io.Reader) (*http.Response, error) {
		req, err := http.NewRequest(http.MethodPost, fmt.Sprintf("%s/v1/dots/%s/a/packs", h.url, user), body)
		must(t, err)
		req.SetBasicAuth(user, h.keys[user])
		return http.DefaultClient.Do(req)
	}
	r, w := io.Pipe()
	first := make(chan error, 1)
	go func() {
		resp, err := post("alice", r)
		if err == nil {
			resp.Body.Close()
		}
		first <- err
	}()
	w.Write(pack.AppendHeader(nil)) // the transfer has begun when this is read
	for deadline := time.Now().Add(10 * time.Second); h.gates.transfers() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the transfer does not begin")
		}
	}
	good := newPack().whole(object.KindChunk, []byte("x")).seal().Data
	for user, status := range map[string]int{"alice": 503, "bob": 204} {
		resp, err := post(user, bytes.NewReader(good))
		must(t, err)
		resp.Body.Close()
		if resp.StatusCode != status {
			t.Errorf("%s: status %d, want %d", user, resp.StatusCode, status)
		}
	}
	w.Close()
	must(t, <-first)
}
