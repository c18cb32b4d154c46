// Package loopback gives tests addresses for servers that are programs of their own, and so cannot be given a listener.
package loopback

import (
	"fmt"
	"math/rand/v2"
	"net"
	"testing"
)

// Address returns a HOST:PORT of this machine where nobody listens. It stays free while the server is not there, before its
// start and between two: the host is a random one of the loopback's, not 127.0.0.1, where each connection of any program takes a port.
func Address(t testing.TB) string {
	t.Helper()
	n := func() int { return 1 + rand.IntN(254) }
	l, err := net.Listen("tcp", fmt.Sprintf("127.%d.%d.%d:0", n(), n(), n()))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
