package dockervol

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"dm/internal/errs"
	"dm/internal/unixsock"
)

// The paths of what servers say to each other.
const (
	pathOwner  = "/Dm.Owner"
	pathRetire = "/Dm.Retire"
)

// Owner is who answers on a plugin's socket.
type Owner struct {
	Home    string // state directory of the server
	PID     int
	StandIn bool // it answers for a server that is away
}

// askWait bounds how long a socket's owner is waited for.
const askWait = 2 * time.Second

var nameRE = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_-]{0,62}$`)

// CheckName says whether name can be a plugin's.
func CheckName(name string) error {
	if nameRE.MatchString(name) {
		return nil
	}
	return errs.New(errs.Usage, "invalid name of a Docker plugin '%s': use letters, digits, '_' and '-', at most 63", name)
}

// Socket is a plugin's name, held by this process.
type Socket struct {
	path  string
	owner Owner
	l     unixsock.Listener
	file  FileID
	known atomic.Bool
}

// FileID says which file a socket is: after another server has taken the name, it is another.
type FileID struct{ Dev, Ino uint64 }

// Claim takes the plugin name in dir for a server. What a server left that was killed is replaced, and a stand-in retires.
// Another server, or another product, that answers on the name is an error of kind Conflict.
//
// The old socket stays in its place until the new one does: there is no moment in which an engine finds none.
func Claim(ctx context.Context, dir, name string, owner Owner) (*Socket, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, errs.New(errs.KindOf(err), "make Docker's plugin directory: %w", err)
	}
	unlock, err := lockDir(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	path := filepath.Join(dir, name+".sock")
	old, err := ask(ctx, path)
	if err != nil {
		return nil, err
	}
	if old != nil && !old.owner.StandIn {
		old.close()
		return nil, errs.WithHint(errs.New(errs.Conflict, "the Docker plugin %s is served by the dm server on %s (pid %d)",
			name, old.owner.Home, old.owner.PID), "choose another name with --docker-plugin")
	}
	s := &Socket{path: path, owner: owner}
	_, err = os.Lstat(path)
	s.known.Store(err == nil)
	if s.l, err = unixsock.Listen(path); err == nil {
		if s.file, err = identify(path); err != nil {
			s.l.Close()
		}
	}
	if err != nil {
		return nil, errs.New(errs.KindOf(err), "make the socket of the Docker plugin %s: %w", name, err)
	}
	if old != nil {
		old.retire(ctx) //nolint:errcheck // it also sees that its socket was replaced
		old.close()
	}
	return s, nil
}

// lockDir keeps two servers from claiming at the same time. The lock ends with the process.
func lockDir(ctx context.Context, dir string) (unlock func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, errs.New(errs.KindOf(err), "lock Docker's plugin directory: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { d.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			d.Close()
			return nil, errs.New(errs.KindOf(err), "lock Docker's plugin directory %s: %w", dir, err)
		}
		select {
		case <-ctx.Done():
			d.Close()
			return nil, errs.New(errs.Conflict, "lock Docker's plugin directory %s, which another process holds: %w", dir, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func identify(path string) (FileID, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return FileID{}, err
	}
	return FileID{Dev: st.Dev, Ino: st.Ino}, nil
}

// Path returns where the socket is.
func (s *Socket) Path() string { return s.path }

// FileID returns which file the socket is.
func (s *Socket) FileID() FileID { return s.file }

// Known says whether an engine may know the name: one has asked, or could have found the socket that was in this one's place.
// An engine remembers the drivers that it has met, and waits for one that is gone whenever it looks for a volume by its name.
func (s *Socket) Known() bool { return s.known.Load() }

// File returns the listening socket for another process, which can go on with it (Resume). The caller closes it.
func (s *Socket) File() (*os.File, error) { return s.l.File() }

// Resume takes over the listening socket of a process that has ended, to stand in for it.
func Resume(f *os.File, path string, file FileID, owner Owner) (*Socket, error) {
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	unixListener, ok := l.(*net.UnixListener)
	if !ok {
		l.Close()
		return nil, fmt.Errorf("%s is no unix socket", path)
	}
	unixListener.SetUnlinkOnClose(false)
	return &Socket{path: path, owner: owner, l: unixsock.Listener{UnixListener: unixListener}, file: file}, nil
}

// Serve answers an engine until ctx is done; then it closes this process's end of the socket. The file stays.
func (s *Socket) Serve(ctx context.Context, d Driver, log *slog.Logger) error {
	// To hand a File to another process makes the socket blocking, for both: an accept would not end when it is closed.
	raw, err := s.l.SyscallConn()
	if err == nil {
		var nerr error
		err = raw.Control(func(fd uintptr) { nerr = unix.SetNonblock(int(fd), true) })
		err = errors.Join(err, nerr)
	}
	if err != nil {
		return errs.New(errs.Internal, "serve Docker: %w", err)
	}
	srv := &server{driver: d, owner: s.owner, log: log, activated: func() { s.known.Store(true) }}
	return srv.serve(ctx, s.l)
}

// ServeDown answers for a server that is away, which has the volumes, until ctx is done, the socket's name is another's or is
// gone, or a server that claims the name asks it to retire.
func (s *Socket) ServeDown(ctx context.Context, volumes func() []Volume, log *slog.Logger) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	srv := &server{driver: Down{Home: s.owner.Home, Volumes: volumes}, owner: s.owner, log: log, retire: func() {
		time.AfterFunc(10*time.Millisecond, cancel) // after the reply
	}}
	go func() {
		tick := time.NewTicker(5 * time.Second)
		defer tick.Stop()
		for s.inPlace() {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
		cancel()
	}()
	return srv.serve(ctx, s.l)
}

func (s *Socket) inPlace() bool {
	now, err := identify(s.path)
	return err == nil && now == s.file
}

// Remove takes the name away from Docker, if it is still this socket's. While this process answers on it, nobody else takes it.
func (s *Socket) Remove() error {
	if !s.inPlace() {
		return nil
	}
	if err := os.Remove(s.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errs.New(errs.KindOf(err), "remove the socket of the Docker plugin: %w", err)
	}
	return nil
}

// Close closes this process's end of a socket that is not being served.
func (s *Socket) Close() { s.l.Close() }

// Retire ends the stand-in of the server on home, if there is one, and takes away the socket of that name if it is that
// server's, or nobody's.
func Retire(ctx context.Context, dir, name, home string) error {
	return takeAway(ctx, dir, name, func(p *peer) (bool, error) {
		if !p.owner.StandIn || p.owner.Home != home {
			return false, nil
		}
		return true, p.retire(ctx)
	})
}

// RemoveDead takes away the socket of that name if nobody answers on it: every look-up of an engine would wait for it.
func RemoveDead(ctx context.Context, dir, name string) error {
	return takeAway(ctx, dir, name, func(*peer) (bool, error) { return false, nil })
}

// takeAway removes the socket of that name if nobody answers on it, or if who answers lets it go.
func takeAway(ctx context.Context, dir, name string, letGo func(*peer) (bool, error)) error {
	if err := CheckName(name); err != nil {
		return err
	}
	path := filepath.Join(dir, name+".sock")
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	unlock, err := lockDir(ctx, dir)
	if err != nil {
		return err
	}
	defer unlock()
	old, err := ask(ctx, path)
	if err != nil {
		return nil //nolint:nilerr // it is another product's by now
	}
	if old != nil {
		defer old.close()
		if gone, err := letGo(old); err != nil || !gone {
			return err
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errs.New(errs.KindOf(err), "remove the socket of the Docker plugin %s: %w", name, err)
	}
	return nil
}

// peer is who answers on a socket, over one connection: it stays the same when the socket's name goes to another.
type peer struct {
	client *http.Client
	owner  Owner
}

// ask returns who answers at path; nil if nobody does. Something that is no dm server is a Conflict.
func ask(ctx context.Context, path string) (*peer, error) {
	conn, err := (&net.Dialer{Timeout: askWait}).DialContext(ctx, "unix", path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, nil
	}
	if err != nil {
		return nil, errs.New(errs.KindOf(err), "ask who serves the Docker plugin at %s: %w", path, err)
	}
	used := false
	p := &peer{client: &http.Client{Timeout: askWait, Transport: &http.Transport{
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			if used {
				return nil, net.ErrClosed
			}
			used = true
			return conn, nil
		},
	}}}
	rep, err := p.post(ctx, pathOwner)
	if err != nil || rep.Owner == nil {
		p.close()
		conn.Close()
		return nil, errs.WithHint(errs.New(errs.Conflict, "something that is not a dm server answers as a Docker plugin at %s", path),
			"choose another name with --docker-plugin")
	}
	p.owner = *rep.Owner
	return p, nil
}

func (p *peer) post(ctx context.Context, path string) (rep reply, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://plugin"+path, bytes.NewReader([]byte("{}")))
	if err != nil {
		return rep, err
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return rep, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return rep, fmt.Errorf("%s: %s", path, resp.Status)
	}
	return rep, json.NewDecoder(http.MaxBytesReader(nil, resp.Body, maxRequest)).Decode(&rep)
}

// retire asks a stand-in to end.
func (p *peer) retire(ctx context.Context) error {
	rep, err := p.post(ctx, pathRetire)
	if err == nil && rep.Err != "" {
		err = errors.New(rep.Err)
	}
	if err != nil {
		return errs.New(errs.KindOf(err), "end the stand-in of the Docker plugin (pid %d): %w", p.owner.PID, err)
	}
	return nil
}

func (p *peer) close() { p.client.CloseIdleConnections() }
