package hub

import (
	"context"
	"net"
	"net/http"
	"sync"
	"time"
)

// gates bound what goes on at a time. It is safe for concurrent use.
type gates struct {
	limits Limits

	mu      sync.Mutex
	open    int // requests
	running int // transfers
	users   map[asker]int
	failed  map[attempt]failures
}

// attempt is who tries to log in, and from where. Both count: behind a proxy all users have one address, and whoever guesses
// somebody's key from elsewhere must not lock that user out.
type attempt struct{ address, user string }

// failures is wrong keys in a row.
type failures struct {
	count int
	last  time.Time
}

func newGates(l Limits) *gates {
	return &gates{limits: l, users: map[asker]int{}, failed: map[attempt]failures{}}
}

// enterEvery is how often somebody who waits for a transfer looks whether it can begin.
const enterEvery = 20 * time.Millisecond

// enter begins a transfer, and waits a while where there are too many; ok is false where that did not help. leave ends it.
func (g *gates) enter(ctx context.Context, who asker) (leave func(), ok bool) {
	for deadline := time.Now().Add(g.limits.TransferWait); ; {
		if leave, ok = g.tryEnter(who); ok || !time.Now().Before(deadline) {
			return leave, ok
		}
		select {
		case <-time.After(enterEvery):
		case <-ctx.Done():
			return nil, false
		}
	}
}

func (g *gates) tryEnter(who asker) (leave func(), ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.running >= g.limits.Transfers || g.users[who] >= g.limits.UserTransfers {
		return nil, false
	}
	g.running++
	g.users[who]++
	return sync.OnceFunc(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.running--
		if g.users[who]--; g.users[who] == 0 {
			delete(g.users, who)
		}
	}), true
}

// began and ended count requests.
func (g *gates) began() { g.count(1) }
func (g *gates) ended() { g.count(-1) }

func (g *gates) count(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open += n
}

// requests is how many requests are being answered.
func (g *gates) requests() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.open
}

func (g *gates) transfers() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.running
}

const (
	// maxAttempts bounds the failures that are remembered. Where it is reached a tenth of them are forgotten, any.
	maxAttempts = 10000
	// maxDoublings bounds how often the time to wait is doubled.
	maxDoublings = 6
)

// mayLogin says how long somebody has to wait before another key is looked at. Each wrong key beyond the limit doubles it.
func (g *gates) mayLogin(a attempt) (wait time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f, ok := g.failed[a]
	if !ok || f.count < g.limits.Logins {
		return 0
	}
	return max(0, time.Until(f.last.Add(g.limits.LoginWait<<min(f.count-g.limits.Logins, maxDoublings))))
}

// loggedIn forgets wrong keys.
func (g *gates) loggedIn(a attempt) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.failed, a)
}

// loginFailed counts a wrong key.
func (g *gates) loginFailed(a attempt) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f := g.failed[a]
	// What is long ago does not count any more.
	if time.Since(f.last) > 2*g.limits.LoginWait<<maxDoublings {
		f.count = 0
	}
	if len(g.failed) >= maxAttempts {
		for old := range g.failed {
			if delete(g.failed, old); len(g.failed) < maxAttempts/10*9 {
				break
			}
		}
	}
	g.failed[a] = failures{f.count + 1, time.Now()}
}

// limited accepts so many connections at a time. Others wait in the kernel's queue.
type limited struct {
	net.Listener
	room chan struct{}
}

func limitListener(l net.Listener, n int) *limited { return &limited{l, make(chan struct{}, n)} }

func (l *limited) Accept() (net.Conn, error) {
	l.room <- struct{}{}
	conn, err := l.Listener.Accept()
	if err != nil {
		<-l.room
		return nil, err
	}
	return &limitedConn{conn, sync.OnceFunc(func() { <-l.room })}, nil
}

type limitedConn struct {
	net.Conn
	leave func()
}

func (c *limitedConn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}

// address is where a request comes from, for counting: IPv6 clients own whole /64 networks.
func address(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	if ip := net.ParseIP(host); ip != nil && ip.To4() == nil {
		return ip.Mask(net.CIDRMask(64, 128)).String()
	}
	return host
}
