package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"go.etcd.io/bbolt"
)

// kinds names the services, by what kind of database they keep their data in.
func kinds() []string { return []string{"orders", "events", "sessions"} }

// database is what a service writes to. put is durable when it returns.
type database interface {
	put(key, value string) error
	each(fn func(key, value string)) error
	check() error
	Close() error
}

// openDatabase opens a service's database in dir.
func openDatabase(kind, dir string) (database, error) {
	switch kind {
	case "orders":
		return openOrders(filepath.Join(dir, "orders.db"))
	case "events":
		return openEvents(filepath.Join(dir, "events.log"))
	case "sessions":
		return openSessions(filepath.Join(dir, "sessions.json"))
	}
	return nil, fmt.Errorf("there is no service %q", kind)
}

// counterFile holds how many records the service has written, for the demo to watch.
const counterFile = "written"

func counted(dir string) int {
	text, err := os.ReadFile(filepath.Join(dir, counterFile))
	if err != nil {
		return 0
	}
	n, err := strconv.Atoi(string(text))
	if err != nil {
		return -1 // never written so
	}
	return n
}

// count notes n by rename, so that neither the demo nor a commit sees a number half written.
func count(dir string, n int) error {
	path := filepath.Join(dir, counterFile)
	if err := os.WriteFile(path+".new", []byte(strconv.Itoa(n)), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// serve is a service's process: it writes until it is told to stop.
func serve(ctx context.Context, kind, dir string) int {
	db, err := openDatabase(kind, dir)
	if err == nil {
		err = errors.Join(write(ctx, db, dir), db.Close())
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "service %s: %v\n", kind, err)
		return 1
	}
	return 0
}

func write(ctx context.Context, db database, dir string) error {
	for n := counted(dir) + 1; ctx.Err() == nil; n++ {
		value := fmt.Sprintf("%x", sha256.Sum256([]byte(strconv.Itoa(n))))
		if err := db.put(fmt.Sprintf("%06d", n), value); err != nil {
			return err
		}
		if err := count(dir, n); err != nil {
			return fmt.Errorf("count: %w", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(2 * time.Millisecond):
		}
	}
	return nil
}

// summary is what a database holds, in a form to compare and to print.
type summary struct {
	records int
	hash    string
}

func (s summary) String() string { return fmt.Sprintf("%4d records, sha256 %s", s.records, s.hash) }

// summarize opens a database as its service would after a restart, checks it and reads all of it.
func summarize(kind, dir string) (s summary, err error) {
	db, err := openDatabase(kind, dir)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := db.check(); err != nil {
		return s, fmt.Errorf("check %s: %w", kind, err)
	}
	h := sha256.New()
	err = db.each(func(key, value string) {
		s.records++
		fmt.Fprintf(h, "%d:%s=%d:%s;", len(key), key, len(value), value)
	})
	s.hash = fmt.Sprintf("%x", h.Sum(nil)[:8])
	return s, err
}

// orders keeps its data in bbolt, a B+tree whose pages are written in place and read through mmap.
type orders struct{ *bbolt.DB }

var bucket = []byte("orders")

func openOrders(path string) (database, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second})
	if err != nil {
		return nil, fmt.Errorf("open orders: %w", err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		_, err := tx.CreateBucketIfNotExists(bucket)
		return err
	})
	return orders{db}, err
}

func (o orders) put(key, value string) error {
	return o.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucket).Put([]byte(key), []byte(value)) })
}

func (o orders) each(fn func(key, value string)) error {
	return o.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucket).ForEach(func(k, v []byte) error {
			fn(string(k), string(v))
			return nil
		})
	})
}

func (o orders) check() error {
	return o.View(func(tx *bbolt.Tx) error {
		for err := range tx.Check() {
			return err
		}
		return nil
	})
}

// events is an append-only log, as Redis's AOF: length, CRC-32, key and value of each record.
type events struct{ f *os.File }

// openEvents opens the log and cuts off a record that was cut short.
func openEvents(path string) (database, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open events: %w", err)
	}
	e := events{f}
	good, _ := e.scan(func(string, string) {})
	return e, f.Truncate(good)
}

func (e events) put(key, value string) error {
	body := append(append([]byte(key), '='), value...)
	rec := binary.LittleEndian.AppendUint32(nil, uint32(len(body)))
	rec = binary.LittleEndian.AppendUint32(rec, crc32.ChecksumIEEE(body))
	if _, err := e.f.Write(append(rec, body...)); err != nil {
		return fmt.Errorf("append event: %w", err)
	}
	return e.f.Sync()
}

// scan reads all whole records and returns where they end, with an error if something follows.
func (e events) scan(fn func(key, value string)) (good int64, err error) {
	r := bufio.NewReader(io.NewSectionReader(e.f, 0, 1<<40))
	for {
		var head [8]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			if errors.Is(err, io.EOF) {
				return good, nil
			}
			return good, fmt.Errorf("read event: %w", err)
		}
		body := make([]byte, min(binary.LittleEndian.Uint32(head[:]), 1<<20))
		if _, err := io.ReadFull(r, body); err != nil {
			return good, fmt.Errorf("read event: %w", err)
		}
		if crc32.ChecksumIEEE(body) != binary.LittleEndian.Uint32(head[4:]) {
			return good, errors.New("read event: wrong checksum")
		}
		key, value, _ := bytes.Cut(body, []byte("="))
		fn(string(key), string(value))
		good += int64(len(head) + len(body))
	}
}

func (e events) each(fn func(key, value string)) error {
	_, err := e.scan(fn)
	return err
}

func (e events) check() error { return e.each(func(string, string) {}) }

func (e events) Close() error { return e.f.Close() }

// sessions is one file that is replaced by rename on every change, as Redis's RDB or a configuration store.
type sessions struct {
	path string
	data map[string]string
}

func openSessions(path string) (database, error) {
	s := sessions{path: path, data: map[string]string{}}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &s.data)
	}
	if err != nil {
		return nil, fmt.Errorf("open sessions: %w", err)
	}
	return s, nil
}

func (s sessions) put(key, value string) error {
	s.data[key] = value
	text, err := json.Marshal(s.data)
	if err != nil {
		return fmt.Errorf("encode sessions: %w", err)
	}
	f, err := os.Create(s.path + ".new")
	if err != nil {
		return fmt.Errorf("write sessions: %w", err)
	}
	_, werr := f.Write(text)
	if err := errors.Join(werr, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write sessions: %w", err)
	}
	return os.Rename(s.path+".new", s.path)
}

func (s sessions) each(fn func(key, value string)) error {
	for _, k := range slices.Sorted(maps.Keys(s.data)) {
		fn(k, s.data[k])
	}
	return nil
}

// check has nothing to do: what opened is one whole JSON text.
func (s sessions) check() error { return nil }

func (s sessions) Close() error { return nil }
