package hub

import (
	"net"
	"net/http"
	"sync"
	"time"
)

// gates bound what goes on at a time. It is safe for concurrent use.
type gates struct {
	*gateState
}

type gateState struct {
	limits Limits

	mu      sync.Mutex
	running int
	users   map[asker]int
	failed  map[string]failures // by address
}

// failures is the failed logins of an address.
type failures struct {
	count int
	since time.Time
}

func newGates(l Limits) gates {
	return gates{&gateState{limits: l, users: map[asker]int{}, failed: map[string]failures{}}}
}

// enter begins a transfer; ok is false where there are too many. leave ends it.
func (g gates) enter(who asker) (leave func(), ok bool) {
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

func (g gates) transfers() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.running
}

// maxAddresses bounds the addresses that are remembered. Beyond it the oldest are forgotten.
const maxAddresses = 10000

// mayLogin says whether an address may try a key.
func (g gates) mayLogin(addr string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	f, ok := g.failed[addr]
	if ok && time.Since(f.since) > g.limits.LoginWait {
		delete(g.failed, addr)
		return true
	}
	return f.count < g.limits.Logins
}

// loginFailed counts a wrong key.
func (g gates) loginFailed(addr string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.failed) >= maxAddresses {
		for a, f := range g.failed {
			if time.Since(f.since) > g.limits.LoginWait || len(g.failed) >= 2*maxAddresses {
				delete(g.failed, a)
			}
		}
	}
	f := g.failed[addr]
	g.failed[addr] = failures{f.count + 1, time.Now()}
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
