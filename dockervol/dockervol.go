// Package dockervol speaks Docker's volume plugin protocol, version 1: it translates the requests of a Docker engine into
// calls of a Driver, and knows neither dots nor mounts.
//
// An engine finds a plugin as a unix socket in its plugin directory and sends it JSON over HTTP:
//
//	/Plugin.Activate             what the plugin is
//	/VolumeDriver.Capabilities   that its volumes are this machine's
//	/VolumeDriver.Create         docker volume create, or the first use of a name
//	/VolumeDriver.Get, .List     docker volume inspect, ls
//	/VolumeDriver.Path           where a volume is mounted
//	/VolumeDriver.Mount          a container starts: where its volume is
//	/VolumeDriver.Unmount        a container has ended
//	/VolumeDriver.Remove         docker volume rm
//
// Two more are dm's own, and are how two dm servers, and a stand-in, agree on who has a name (Claim):
//
//	/Dm.Owner                    who answers on this socket
//	/Dm.Retire                   a stand-in is to end
//
// An engine tries for about fifteen seconds to reach a plugin whose socket does not answer, and its error then says nothing
// that helps. So somebody answers while the server is away: a process that holds the same listening socket, with the
// Driver Down. Files: socket.go has the socket and who owns it, down.go the Driver that only says what is wrong.
package dockervol

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"dm/internal/errs"
)

// PluginDir is where Docker looks for the sockets of plugins.
const PluginDir = "/run/docker/plugins"

// Driver is what serves volumes. Its methods are called concurrently. The text of an error, with its hint, is what the user
// of Docker reads.
type Driver interface {
	// Create makes a volume that Get does not know. Options are those of `docker volume create -o` or compose's driver_opts.
	Create(ctx context.Context, name string, options map[string]string) error
	// Remove forgets a volume.
	Remove(ctx context.Context, name string) error
	// Mount returns the directory that a container is to bind. The id is the mount's, and comes again with its Unmount.
	Mount(ctx context.Context, name, id string) (dir string, err error)
	// Unmount takes back a Mount. An id that is not known is no error.
	Unmount(ctx context.Context, name, id string) error
	// Path returns where a volume is to be seen, "" if nowhere at the moment.
	Path(ctx context.Context, name string) (string, error)
	// Get describes a volume that was created. Not there: an error of kind NotFound.
	Get(ctx context.Context, name string) (Volume, error)
	// List returns all volumes that were created, in any order.
	List(ctx context.Context) ([]Volume, error)
}

// Volume is what an engine can know about a volume.
type Volume struct {
	Name       string
	Mountpoint string         `json:",omitempty"`
	CreatedAt  string         `json:",omitempty"` // RFC 3339
	Status     map[string]any `json:",omitempty"` // shown by docker volume inspect
}

// maxRequest bounds the body of a request, in bytes.
const maxRequest = 1 << 20

// contentType is the protocol's name for its version.
const contentType = "application/vnd.docker.plugins.v1.2+json"

// request holds the fields of all requests.
type request struct {
	Name string
	ID   string
	Opts map[string]string
}

// reply holds the fields of all replies; an engine looks at those of its request.
type reply struct {
	Err          string        `json:",omitempty"`
	Implements   []string      `json:",omitempty"`
	Mountpoint   string        `json:",omitempty"`
	Volume       *Volume       `json:",omitempty"`
	Volumes      *[]Volume     `json:",omitempty"`
	Capabilities *capabilities `json:",omitempty"`
	Owner        *Owner        `json:",omitempty"`
}

type capabilities struct{ Scope string }

// server answers requests.
type server struct {
	driver Driver
	owner  Owner
	log    *slog.Logger
	retire func() // of a stand-in: end; nil: refuse

	activated func() // an engine has met the plugin; nil: does not matter
}

func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	for path, answer := range map[string]func(context.Context, request) (reply, error){
		"/Plugin.Activate":           s.activate,
		"/VolumeDriver.Capabilities": s.capabilities,
		"/VolumeDriver.Create":       s.create,
		"/VolumeDriver.Remove":       s.remove,
		"/VolumeDriver.Mount":        s.mount,
		"/VolumeDriver.Unmount":      s.unmount,
		"/VolumeDriver.Path":         s.path,
		"/VolumeDriver.Get":          s.get,
		"/VolumeDriver.List":         s.list,
		pathOwner:                    s.sayOwner,
		pathRetire:                   s.end,
	} {
		mux.Handle("POST "+path, s.answering(path, answer))
	}
	return mux
}

// answering reads a request and writes the reply. An engine takes the error from the body, whatever the status is.
func (s *server) answering(path string, answer func(context.Context, request) (reply, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begin := time.Now()
		var req request
		err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest)).Decode(&req)
		if errors.Is(err, io.EOF) {
			err = nil // Activate and List have no body
		}
		var rep reply
		if err != nil {
			err = errs.New(errs.Usage, "read Docker's request: %w", err)
		} else {
			rep, err = answer(r.Context(), req)
		}
		// That a volume is not known is how an engine asks whether it has to be created.
		if err != nil && errs.KindOf(err) != errs.NotFound {
			s.log.Warn("Docker's request cannot be met", "op", path, "volume", req.Name, "err", err, "took", time.Since(begin))
		} else {
			s.log.Debug("Docker's request", "op", path, "volume", req.Name, "took", time.Since(begin))
		}
		if err != nil {
			rep = reply{Err: errorText(err)}
		}
		w.Header().Set("Content-Type", contentType)
		json.NewEncoder(w).Encode(rep) //nolint:errcheck // the engine is gone then
	})
}

// errorText puts an error and its hint into the one line that Docker shows.
func errorText(err error) string {
	if hint := errs.HintOf(err); hint != "" {
		return fmt.Sprintf("dm: %v (%s)", err, hint)
	}
	return fmt.Sprintf("dm: %v", err)
}

func (s *server) activate(context.Context, request) (reply, error) {
	if s.activated != nil {
		s.activated()
	}
	return reply{Implements: []string{"VolumeDriver"}}, nil
}

func (s *server) capabilities(context.Context, request) (reply, error) {
	return reply{Capabilities: &capabilities{Scope: "local"}}, nil
}

func (s *server) create(ctx context.Context, req request) (reply, error) {
	return reply{}, s.driver.Create(ctx, req.Name, req.Opts)
}

func (s *server) remove(ctx context.Context, req request) (reply, error) {
	return reply{}, s.driver.Remove(ctx, req.Name)
}

func (s *server) mount(ctx context.Context, req request) (reply, error) {
	dir, err := s.driver.Mount(ctx, req.Name, req.ID)
	return reply{Mountpoint: dir}, err
}

func (s *server) unmount(ctx context.Context, req request) (reply, error) {
	return reply{}, s.driver.Unmount(ctx, req.Name, req.ID)
}

func (s *server) path(ctx context.Context, req request) (reply, error) {
	dir, err := s.driver.Path(ctx, req.Name)
	return reply{Mountpoint: dir}, err
}

func (s *server) get(ctx context.Context, req request) (reply, error) {
	v, err := s.driver.Get(ctx, req.Name)
	return reply{Volume: &v}, err
}

func (s *server) list(ctx context.Context, _ request) (reply, error) {
	all, err := s.driver.List(ctx)
	if all == nil {
		all = []Volume{}
	}
	return reply{Volumes: &all}, err
}

func (s *server) sayOwner(context.Context, request) (reply, error) {
	return reply{Owner: &s.owner}, nil
}

func (s *server) end(context.Context, request) (reply, error) {
	if s.retire == nil {
		return reply{}, errs.New(errs.NotAllowed, "a dm server answers here, which does not end because another asks")
	}
	s.retire()
	return reply{}, nil
}

// serve answers on l until ctx is done, and then lets requests that run end for at most a grace.
func (s *server) serve(ctx context.Context, l net.Listener) error {
	// A request outlives ctx by the grace.
	base := context.WithoutCancel(ctx)
	srv := &http.Server{
		Handler:           s.handler(),
		ReadHeaderTimeout: 10 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return base },
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve Docker: %w", err)
	case <-ctx.Done():
	}
	last, cancel := context.WithTimeout(base, endGrace)
	defer cancel()
	if srv.Shutdown(last) != nil {
		srv.Close() //nolint:errcheck // nothing is left to be done about it
	}
	<-served
	return nil
}

// endGrace is how long requests may go on when their server ends.
const endGrace = 10 * time.Second
