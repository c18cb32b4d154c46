package daemon

import (
	"log/slog"
	"net"
	"os"
	"strings"
)

// The states that a service manager is told, see sd_notify(3).
const (
	stateReady    = "READY=1"
	stateStopping = "STOPPING=1"
)

// notify tells the service manager that started this server, if one did, in what state it is: what needs the volumes
// must not start before they are mounted.
func notify(log *slog.Logger, state string) {
	socket := os.Getenv("NOTIFY_SOCKET")
	if socket == "" {
		return
	}
	// A name that begins with '@' is in the abstract namespace, which Go writes the same way.
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err == nil {
		_, err = c.Write([]byte(state))
		c.Close()
	}
	if err != nil {
		log.Warn("tell the service manager", "state", strings.TrimSuffix(state, "=1"), "err", err)
	}
}
