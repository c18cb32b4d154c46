package dbs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
)

// Load is clients at work on several databases. Client 0 of each database belongs to one traveller, which does its
// transaction n in every database, in order, before it begins n+1 in the first; so what the databases hold of it
// differs by one at most, and never grows along the order. The other clients know nothing of each other.
type Load struct {
	dbs     []Database
	clients int
	log     [][]entry // by database, client
	conns   []Conn
	stop    atomic.Bool
	wait    sync.WaitGroup
	mu      sync.Mutex
	err     error
}

// entry is what a client has done: every transaction up to acked, and none after sent.
type entry struct{ sent, acked atomic.Int64 }

// Moment is the clients' log at one time.
type Moment struct {
	Sent, Acked [][]int64
}

// NewLoad returns a load of that many clients a database, at least 1.
func NewLoad(dbs []Database, clients int) *Load {
	l := &Load{dbs: dbs, clients: clients, log: make([][]entry, len(dbs))}
	for i := range l.log {
		l.log[i] = make([]entry, clients)
	}
	return l
}

// Start connects the clients to the running databases and lets them go on from where the log is.
func (l *Load) Start() error {
	l.stop.Store(false)
	conns := make([][]Conn, len(l.dbs))
	for i, db := range l.dbs {
		for c := range l.clients {
			conn, err := db.Connect(c)
			if err != nil {
				l.Stop()
				return fmt.Errorf("connect client %d to %s: %w", c, db.Name(), err)
			}
			conns[i] = append(conns[i], conn)
			l.conns = append(l.conns, conn)
		}
	}
	l.wait.Go(func() {
		for !l.stop.Load() {
			for i := range l.dbs {
				// A state that was restored may have the traveller in the middle of its round.
				if l.log[i][0].sent.Load() > l.log[len(l.dbs)-1][0].sent.Load() {
					continue
				}
				if !l.one(i, 0, conns[i][0]) {
					return
				}
			}
		}
	})
	for i := range l.dbs {
		for c := 1; c < l.clients; c++ {
			l.wait.Go(func() {
				for !l.stop.Load() && l.one(i, c, conns[i][c]) {
				}
			})
		}
	}
	return nil
}

func (l *Load) one(db, client int, conn Conn) bool {
	e := &l.log[db][client]
	n := e.sent.Add(1)
	if err := conn.Commit(n); err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.err = errors.Join(l.err, fmt.Errorf("%s client %d: %w", l.dbs[db].Name(), client, err))
		l.stop.Store(true)
		return false
	}
	e.acked.Store(n)
	return true
}

// Stop lets every client finish its transaction and disconnects; it returns the first errors of the clients, if any.
func (l *Load) Stop() error {
	l.stop.Store(true)
	l.wait.Wait()
	for _, c := range l.conns {
		c.Close()
	}
	l.conns = nil
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.err
	l.err = nil
	return err
}

// Restore sets the log back to the state that Verify found, to go on from there after the databases were set back.
func (l *Load) Restore(state [][]int64) {
	for i := range l.log {
		for c := range l.log[i] {
			l.log[i][c].sent.Store(state[i][c])
			l.log[i][c].acked.Store(state[i][c])
		}
	}
}

// Now returns the log. What is acked in it was so before the call, and what was sent before the call is in it.
func (l *Load) Now() Moment {
	var m Moment
	for i := range l.log {
		sent, acked := make([]int64, l.clients), make([]int64, l.clients)
		for c := range l.log[i] {
			acked[c] = l.log[i][c].acked.Load()
		}
		for c := range l.log[i] {
			sent[c] = l.log[i][c].sent.Load()
		}
		m.Sent, m.Acked = append(m.Sent, sent), append(m.Acked, acked)
	}
	return m
}

// Verify starts each database on its directory below root (named as the database), and returns the state it finds. It is
// an error if a database does not start, its checker finds anything, or the state is not one that existed between the
// two moments. The databases are left stopped.
func Verify(dbs []Database, root string, clients int, before, after Moment) ([][]int64, error) {
	state := make([][]int64, len(dbs))
	for i, db := range dbs {
		var err error
		if state[i], err = inspect(db, filepath.Join(root, db.Name()), clients); err != nil {
			return nil, fmt.Errorf("%s: %w", db.Name(), err)
		}
		for c, n := range state[i] {
			if n < before.Acked[i][c] || n > after.Sent[i][c] {
				return nil, fmt.Errorf("%s holds %d transactions of client %d; %d were acknowledged before the commit, and %d sent until it was done",
					db.Name(), n, c, before.Acked[i][c], after.Sent[i][c])
			}
		}
	}
	for i := range dbs {
		a, b := state[i][0], state[(i+1)%len(dbs)][0]
		if i < len(dbs)-1 && a < b || i == len(dbs)-1 && a < b-1 {
			return nil, fmt.Errorf("no one instant: the traveller's transactions are %d in %s and %d in %s, which it visits in this order",
				a, dbs[i].Name(), b, dbs[(i+1)%len(dbs)].Name())
		}
	}
	return state, nil
}

func inspect(db Database, dir string, clients int) (_ []int64, err error) {
	if _, err := os.Stat(dir); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Stop()) }()
	if err := db.Start(dir); err != nil {
		return nil, fmt.Errorf("start: %w", err)
	}
	state, err := db.Read(clients)
	if err != nil {
		return nil, err
	}
	return state, db.Check()
}
