package daemon

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dm/dockervol"
)

// What a server leaves behind when it ends: somebody who answers Docker if Docker has met it, and nothing otherwise.
func TestPluginEnd(t *testing.T) {
	for name, c := range map[string]struct {
		met, killed bool // by Docker; the stand-in, before the end
		answers     bool
	}{
		"never met":            {},
		"met":                  {met: true, answers: true},
		"met, nobody stays on": {met: true, killed: true},
	} {
		t.Run(name, func(t *testing.T) {
			home, dir := t.TempDir(), t.TempDir()
			log := slog.New(slog.DiscardHandler)
			socket, err := dockervol.Claim(t.Context(), dir, "dm", dockervol.Owner{Home: home, PID: os.Getpid()})
			if err != nil {
				t.Fatal(err)
			}
			p := plugin{log: log, socket: socket}
			if p.standIn, err = startStandIn(socket, home, log); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			p.stop, p.ended = cancel, make(chan struct{})
			go func() {
				defer close(p.ended)
				if err := socket.Serve(ctx, dockervol.Down{}, log); err != nil {
					t.Error(err)
				}
			}()
			if c.met {
				activate(t, socket.Path())
			}
			if c.killed {
				if err := p.standIn.process.Kill(); err != nil {
					t.Fatal(err)
				}
				<-p.standIn.ended
			}
			p.close()
			if c.answers {
				activate(t, socket.Path())
				if err := dockervol.Retire(t.Context(), dir, "dm", home); err != nil {
					t.Error(err)
				}
			}
			select {
			case <-p.standIn.ended:
			case <-time.After(20 * time.Second):
				t.Error("the stand-in is left")
			}
			if _, err := os.Lstat(filepath.Join(dir, "dm.sock")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the socket is left: %v", err)
			}
		})
	}
}

// activate meets a plugin as Docker does.
func activate(t *testing.T, socket string) {
	t.Helper()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport, Timeout: 10 * time.Second}).Post("http://plugin/Plugin.Activate", "", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
}
