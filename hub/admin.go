package hub

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"

	"dm/internal/errs"
	"dm/remote/hubproto"
)

// Admin is what the administrator of a hub may do.
type Admin interface {
	AddUser(ctx context.Context, name string) (key string, err error)
	RemoveUser(ctx context.Context, name string) error
	Users(ctx context.Context) ([]User, error)
	NewKey(ctx context.Context, name string) (key string, err error)
	// ShareDot gives a user, or hubproto.Everyone, access to a dot.
	ShareDot(ctx context.Context, name string, s hubproto.Share) error
	Close() error
}

// ShareDot gives a user access to a dot.
func (h *Hub) ShareDot(ctx context.Context, name string, s hubproto.Share) error {
	return h.share(ctx, administrator, name, s)
}

const socketName = "hub.sock"

// OpenAdmin returns the administration of the hub with this configuration, whether it runs or not. For a hub in a directory
// only who may write there can do so; for one in a bucket only who has the bucket's keys.
func OpenAdmin(ctx context.Context, cfg Config) (Admin, error) {
	if cfg.S3 != "" {
		return Open(ctx, cfg)
	}
	path := filepath.Join(cfg.Dir, socketName)
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err == nil {
		conn.Close()
		return newAdminClient(path), nil
	}
	if errs.KindOf(err) == errs.NotAllowed {
		return nil, errs.New(errs.NotAllowed, "administer hub %s: %w", cfg.Dir, err)
	}
	return Open(ctx, cfg)
}

// adminListener listens for the administrator's commands. It fails with Conflict if another hub serves in this directory.
// lock is to be closed when that ends.
func adminListener(dir string) (l net.Listener, lock *os.File, err error) {
	lock, err = os.OpenFile(filepath.Join(dir, "hub.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, nil, errs.New(errs.KindOf(err), "lock hub %s: %w", dir, err)
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, nil, errs.New(errs.Conflict, "state directory %s is in use by another hub", dir)
	}
	path := filepath.Join(dir, socketName)
	if err := os.Remove(path); err != nil && !errors.Is(err, syscall.ENOENT) {
		return nil, nil, err
	}
	l, err = net.Listen("unix", path)
	if err != nil {
		return nil, nil, errs.New(errs.KindOf(err), "listen on %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, nil, err
	}
	return l, lock, nil
}

// adminCall is a request to a running hub, adminAnswer what it says.
type adminCall struct {
	Verb  string         `json:"verb"`
	Name  string         `json:"name,omitempty"`
	Share hubproto.Share `json:"share"`
}

type adminAnswer struct {
	Key   string `json:"key,omitempty"`
	Users []User `json:"users,omitempty"`
}

func (h *Hub) adminHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var c adminCall
		err := question(w, r, &c)
		var a adminAnswer
		if err == nil {
			a, err = h.administer(r.Context(), c)
		}
		if err == nil {
			err = answer(w, a)
		}
		if err != nil {
			answerError(w, err)
		}
	})
}

func (h *Hub) administer(ctx context.Context, c adminCall) (a adminAnswer, err error) {
	switch c.Verb {
	case "add":
		a.Key, err = h.AddUser(ctx, c.Name)
	case "key":
		a.Key, err = h.NewKey(ctx, c.Name)
	case "remove":
		err = h.RemoveUser(ctx, c.Name)
	case "users":
		a.Users, err = h.Users(ctx)
	case "share":
		err = h.ShareDot(ctx, c.Name, c.Share)
	default:
		err = errs.WithHint(errs.New(errs.Usage, "unknown request %.40q", c.Verb), "is the hub of another version?")
	}
	return a, err
}

// adminClient speaks to a running hub.
type adminClient struct{ http.Client }

func newAdminClient(path string) *adminClient {
	return &adminClient{http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
	}}}
}

func (c *adminClient) call(ctx context.Context, call adminCall) (a adminAnswer, err error) {
	b, err := json.Marshal(call)
	if err != nil {
		return a, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://hub/", bytes.NewReader(b))
	if err != nil {
		return a, err
	}
	resp, err := c.Do(req)
	if err != nil {
		return a, errs.New(errs.Unreachable, "ask the hub: %w", err)
	}
	defer resp.Body.Close()
	b, err = io.ReadAll(resp.Body)
	if err != nil {
		return a, errs.New(errs.Unreachable, "ask the hub: %w", err)
	}
	if resp.StatusCode == http.StatusOK {
		return a, json.Unmarshal(b, &a)
	}
	var e hubproto.Error
	if err := json.Unmarshal(b, &e); err != nil {
		return a, errs.New(errs.Internal, "the hub answers with status %d", resp.StatusCode)
	}
	return a, errs.WithHint(errs.New(errs.ParseKind(e.Kind), "%s", e.Message), "%s", e.Hint)
}

func (c *adminClient) AddUser(ctx context.Context, name string) (string, error) {
	a, err := c.call(ctx, adminCall{Verb: "add", Name: name})
	return a.Key, err
}

func (c *adminClient) NewKey(ctx context.Context, name string) (string, error) {
	a, err := c.call(ctx, adminCall{Verb: "key", Name: name})
	return a.Key, err
}

func (c *adminClient) RemoveUser(ctx context.Context, name string) error {
	_, err := c.call(ctx, adminCall{Verb: "remove", Name: name})
	return err
}

func (c *adminClient) Users(ctx context.Context) ([]User, error) {
	a, err := c.call(ctx, adminCall{Verb: "users"})
	return a.Users, err
}

func (c *adminClient) ShareDot(ctx context.Context, name string, s hubproto.Share) error {
	_, err := c.call(ctx, adminCall{Verb: "share", Name: name, Share: s})
	return err
}

func (c *adminClient) Close() error {
	c.CloseIdleConnections()
	return nil
}
