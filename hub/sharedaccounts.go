package hub

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"dm/internal/errs"
	"dm/remote/bucket"
)

// accountsFile is the users and dots of a shared hub: one file, which is read before everything that is done and changed by
// compare-and-swap. So a key or a share that was taken back at one hub is void at all of them at once. It is read again only
// if it has changed, and one reading serves all who waited for one to begin.
type accountsFile struct {
	b bucket.Bucket

	turn chan struct{} // held while reading
	swap sync.Mutex    // held while changing: the writers of one hub need not race

	mu      sync.Mutex
	last    *snapshot
	waiting *reading // the reading that has not begun
}

const (
	accountsKey = "accounts"
	// maxAccounts bounds the file, in bytes: some 300,000 dots.
	maxAccounts = 64 << 20
	// readWait is how long reading it may take.
	readWait = time.Minute
	// maxSwaps is how often a change is tried again because another hub was first.
	maxSwaps = 100
)

// snapshot is the accounts at one moment. It is not changed any more.
type snapshot struct {
	data []byte
	tag  string // of the file; "": there is none
	*memAccounts
}

// reading is a reading of the file that some wait for.
type reading struct {
	done chan struct{}
	snap *snapshot
	err  error
}

func newAccountsFile(b bucket.Bucket) *accountsFile {
	return &accountsFile{b: b, turn: make(chan struct{}, 1), last: &snapshot{memAccounts: newMemAccounts()}}
}

func (f *accountsFile) look(ctx context.Context, fn func(a accounts) error) error {
	s, err := f.read(ctx)
	if err != nil {
		return err
	}
	return fn(s)
}

// read returns the accounts as they are at one moment after the call began.
func (f *accountsFile) read(ctx context.Context) (*snapshot, error) {
	f.mu.Lock()
	r := f.waiting
	if r == nil {
		r = &reading{done: make(chan struct{})}
		f.waiting = r
		go f.run(context.WithoutCancel(ctx), r)
	}
	f.mu.Unlock()
	select {
	case <-r.done:
		return r.snap, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (f *accountsFile) run(ctx context.Context, r *reading) {
	f.turn <- struct{}{}
	f.mu.Lock()
	f.waiting = nil
	last := f.last
	f.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, readWait)
	defer cancel()
	if r.snap, r.err = f.newer(ctx, last); r.err == nil {
		f.mu.Lock()
		f.last = r.snap
		f.mu.Unlock()
	}
	close(r.done)
	<-f.turn
}

// newer reads the file, if it is another than the last one.
func (f *accountsFile) newer(ctx context.Context, last *snapshot) (*snapshot, error) {
	var data []byte
	var tag string
	var err error
	if n, ok := f.b.(bucket.Newer); ok {
		data, tag, err = n.GetNewer(ctx, accountsKey, last.tag, maxAccounts)
	} else {
		data, tag, err = f.b.Get(ctx, accountsKey, maxAccounts)
	}
	if errs.KindOf(err) == errs.NotFound && err != nil {
		return &snapshot{memAccounts: newMemAccounts()}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the accounts: %w", err)
	}
	if tag == last.tag && data == nil {
		return last, nil
	}
	if len(data) == 0 {
		return nil, errs.New(errs.Damaged, "read the accounts: the file is empty")
	}
	m, err := decodeAccounts(data)
	if err != nil {
		return nil, fmt.Errorf("read the accounts: %w", err)
	}
	return &snapshot{data, tag, m}, nil
}

func (f *accountsFile) change(ctx context.Context, fn func(a accounts) error) error {
	f.swap.Lock()
	defer f.swap.Unlock()
	var tried []byte
	for try := range maxSwaps {
		s, err := f.read(ctx)
		if err != nil {
			return err
		}
		if tried != nil && bytes.Equal(s.data, tried) {
			return nil // it did change them; the answer was lost
		}
		own, err := decodeAccounts(s.data) // fn changes what it is given
		if err != nil {
			return err
		}
		if err := fn(own); err != nil {
			return err
		}
		data, err := own.encode()
		if err != nil || bytes.Equal(data, s.data) {
			return err
		}
		if len(data) > maxAccounts {
			return errs.New(errs.NoSpace, "the accounts have reached %d bytes, more are not allowed", maxAccounts)
		}
		err = f.b.Swap(ctx, accountsKey, data, s.tag)
		if err == nil || errs.KindOf(err) != errs.Conflict {
			return err
		}
		tried = data
		select {
		case <-time.After(time.Duration(rand.Int64N(int64(min(try+1, 10)) * int64(10*time.Millisecond)))):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return errs.WithHint(errs.New(errs.Conflict, "the accounts are being changed by others all the time"), "try again")
}

// memAccounts is accounts in memory.
type memAccounts struct {
	Users map[string]*userRecord `json:"users"`
	Dots  map[string]*dotRecord  `json:"dots"`

	names []string // of dots, in order
}

func newMemAccounts() *memAccounts {
	return &memAccounts{Users: map[string]*userRecord{}, Dots: map[string]*dotRecord{}}
}

const accountsHead = "dm hub accounts 1\n"

// encode writes a head line, JSON, and a line with the CRC-32C of both.
func (m *memAccounts) encode() ([]byte, error) {
	js, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	b := append([]byte(accountsHead), js...)
	b = append(b, '\n')
	return fmt.Appendf(b, "end %08x\n", castagnoli(b)), nil
}

func castagnoli(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// decodeAccounts reads what encode wrote. No bytes stand for no accounts.
func decodeAccounts(b []byte) (*memAccounts, error) {
	m := newMemAccounts()
	if len(b) == 0 {
		return m, nil
	}
	head, _, _ := bytes.Cut(b, []byte("\n"))
	var v int
	if n, _ := fmt.Sscanf(string(head), "dm hub accounts %d", &v); n == 1 && v > 1 {
		return nil, errs.WithHint(errs.New(errs.Usage, "accounts have format %d; this dm knows 1", v), "install a newer dm")
	}
	const endLen = len("end 00000000\n")
	if !bytes.HasPrefix(b, []byte(accountsHead)) || len(b) < len(accountsHead)+endLen ||
		string(b[len(b)-endLen:]) != fmt.Sprintf("end %08x\n", castagnoli(b[:len(b)-endLen])) {
		return nil, errs.New(errs.Damaged, "accounts are damaged")
	}
	d := json.NewDecoder(bytes.NewReader(b[len(accountsHead) : len(b)-endLen]))
	d.DisallowUnknownFields()
	if err := d.Decode(m); err != nil {
		return nil, errs.New(errs.Damaged, "accounts are damaged: %w", err)
	}
	return m, m.check()
}

// check refuses what cannot have been written.
func (m *memAccounts) check() error {
	if m.Users == nil || m.Dots == nil {
		return errs.New(errs.Damaged, "accounts are damaged: something is null")
	}
	for name, u := range m.Users {
		if u == nil || checkUser(name) != nil {
			return errs.New(errs.Damaged, "accounts are damaged: user %.100q", name)
		}
	}
	for name, d := range m.Dots {
		if _, err := splitDot(name); err != nil || d == nil || !nameRE.MatchString(d.ID) {
			return errs.New(errs.Damaged, "accounts are damaged: dot %.140q", name)
		}
	}
	m.names = slices.Sorted(maps.Keys(m.Dots))
	return nil
}

func (m *memAccounts) user(name string) (*userRecord, error) { return m.Users[name], nil }

func (m *memAccounts) putUser(name string, u *userRecord) error {
	m.Users[name] = u
	return nil
}

func (m *memAccounts) removeUser(name string) error {
	delete(m.Users, name)
	return nil
}

func (m *memAccounts) eachUser(fn func(name string, u *userRecord) error) error {
	for _, name := range slices.Sorted(maps.Keys(m.Users)) {
		if err := fn(name, m.Users[name]); err != nil {
			return err
		}
	}
	return nil
}

func (m *memAccounts) dot(name string) (*dotRecord, error) { return m.Dots[name], nil }

func (m *memAccounts) putDot(name string, d *dotRecord) error {
	if i, ok := slices.BinarySearch(m.names, name); !ok {
		m.names = slices.Insert(m.names, i, name)
	}
	m.Dots[name] = d
	return nil
}

func (m *memAccounts) removeDot(name string, _ *dotRecord) error {
	if i, ok := slices.BinarySearch(m.names, name); ok {
		m.names = slices.Delete(m.names, i, i+1)
	}
	delete(m.Dots, name)
	return nil
}

func (m *memAccounts) eachDot(namespace string, fn func(name string, d *dotRecord) error) error {
	i := 0
	if namespace != "" {
		namespace += "/"
		i, _ = slices.BinarySearch(m.names, namespace)
	}
	for ; i < len(m.names) && len(m.names[i]) >= len(namespace) && m.names[i][:len(namespace)] == namespace; i++ {
		if err := fn(m.names[i], m.Dots[m.names[i]]); err != nil {
			return err
		}
	}
	return nil
}
