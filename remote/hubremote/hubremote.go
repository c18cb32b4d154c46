// Package hubremote is a remote that is a hub.
//
// Requests that fail because the hub cannot be reached, or is busy, are repeated for a while: all but Move may be, and Move
// finds out whether the first one came through. There is no limit on a transfer's length, only on how long nothing moves.
package hubremote

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"dm/internal/errs"
	"dm/object"
	"dm/remote"
	"dm/remote/hubproto"
	"dm/store/pack"
)

// Config says where a hub is and who asks.
type Config struct {
	URL         string // http://HOST[:PORT] or https://HOST[:PORT]
	User        string // empty: nobody in particular, who may read what is public
	Key         string
	Fingerprint string // of the hub's certificate; empty: it must be signed by an authority that the system knows
}

// Parse reads USER@HOST[:PORT], which stands for https, or http(s)://[USER@]HOST[:PORT].
func Parse(s string) (Config, error) {
	full := s
	if !strings.Contains(s, "://") {
		full = "https://" + s
	}
	u, err := url.Parse(full)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return Config{}, errs.WithHint(errs.New(errs.Usage, "bad hub address '%.200s'", s), "write USER@HOST[:PORT] or https://USER@HOST[:PORT]")
	}
	if _, has := u.User.Password(); has {
		return Config{}, errs.New(errs.Usage, "bad hub address: the key does not belong there, it is asked for")
	}
	host := u.Host
	if u.Port() == "" {
		host = net.JoinHostPort(u.Hostname(), hubproto.DefaultPort)
	}
	return Config{URL: u.Scheme + "://" + host, User: u.User.Username()}, nil
}

const (
	maxTries  = 6
	firstWait = 200 * time.Millisecond // doubled with each try
)

// patience is how long to wait for a hub.
type patience struct {
	stall  time.Duration // for the next byte
	answer time.Duration // for the first one of the answer: taking in a pack may mean adopting all of another dot
}

// Remote is a hub. It is safe for concurrent use.
type Remote struct {
	c        Config
	client   *http.Client
	patience patience
}

// Open returns a hub. It does not speak to it yet.
func Open(c Config) (*Remote, error) {
	tlsConfig, err := pinned(c.Fingerprint)
	if err != nil {
		return nil, err
	}
	return &Remote{c: c, patience: patience{2 * time.Minute, 10 * time.Minute}, client: &http.Client{
		Transport: &http.Transport{
			Proxy:               http.ProxyFromEnvironment,
			DialContext:         (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
			TLSHandshakeTimeout: 10 * time.Second,
			MaxIdleConnsPerHost: 8,
			IdleConnTimeout:     time.Minute,
			DisableCompression:  true,
			TLSClientConfig:     tlsConfig,
		},
		// A key is never sent to anybody else.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// Close ends idle connections.
func (r *Remote) Close() error {
	r.client.CloseIdleConnections()
	return nil
}

// call is a request.
type call struct {
	method, path, content string
	body                  []byte
	// answer reads what a successful one answers. An error of kind Unreachable makes it tried again.
	answer func(body io.Reader) error
}

// do sends a request, again if need be.
func (r *Remote) do(ctx context.Context, c call) error {
	wait := firstWait
	for try := 1; ; try++ {
		err := r.once(ctx, c)
		if err == nil || errs.KindOf(err) != errs.Unreachable || try == maxTries || ctx.Err() != nil {
			return err
		}
		select {
		case <-time.After(wait/2 + time.Duration(rand.Int64N(int64(wait)))):
			wait *= 2
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (r *Remote) once(ctx context.Context, c call) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watch := time.AfterFunc(r.patience.stall, func() { cancel(errStalled) })
	defer watch.Stop()
	body := &moving{bytes.NewReader(c.body), func(end bool) {
		wait := r.patience.stall
		if end {
			wait = r.patience.answer
		}
		watch.Reset(wait)
	}}
	req, err := http.NewRequestWithContext(ctx, c.method, r.c.URL+hubproto.Root+c.path, body)
	if err != nil {
		return errs.New(errs.Usage, "ask hub %s: %w", r.c.URL, err)
	}
	req.ContentLength = int64(len(c.body))
	if c.content != "" {
		req.Header.Set("Content-Type", c.content)
	}
	if r.c.User != "" {
		req.SetBasicAuth(r.c.User, r.c.Key)
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return r.unreachable(ctx, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusNoContent {
		return r.refused(resp)
	}
	if c.answer == nil {
		return nil
	}
	return c.answer(&moving{resp.Body, func(bool) { watch.Reset(r.patience.stall) }})
}

var errStalled = errors.New("nothing moves any more")

// moving tells of each read, and whether it was the last.
type moving struct {
	io.Reader
	moves func(end bool)
}

func (m *moving) Read(p []byte) (int, error) {
	n, err := m.Reader.Read(p)
	m.moves(err != nil)
	return n, err
}

// unreachable gives an error of the connection its kind.
func (r *Remote) unreachable(ctx context.Context, err error) error {
	if c := context.Cause(ctx); errors.Is(c, errStalled) {
		err = c
	} else if ctx.Err() != nil {
		return ctx.Err()
	}
	if k := errs.KindOf(err); k == errs.NotAllowed {
		return err // the pinned certificate is another
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	return errs.WithHint(errs.New(errs.Unreachable, "hub %s cannot be reached: %w", r.c.URL, err),
		"check its address and the network, then do the same again: what has arrived is kept")
}

// refused makes an error of an answer.
func (r *Remote) refused(resp *http.Response) error {
	b, _ := io.ReadAll(io.LimitReader(resp.Body, hubproto.MaxJSON))
	var e hubproto.Error
	switch {
	case resp.StatusCode == http.StatusUnauthorized:
		return errs.New(errs.NotAllowed, "Permission denied. Please check that your API key is still valid.")
	case resp.StatusCode == http.StatusTooManyRequests, resp.StatusCode == http.StatusServiceUnavailable:
		return errs.WithHint(errs.New(errs.Unreachable, "hub %s is busy", r.c.URL), "try again in a minute")
	case json.Unmarshal(b, &e) != nil || e.Message == "":
		kind := errs.Internal
		if resp.StatusCode >= 500 {
			kind = errs.Unreachable
		}
		return errs.WithHint(errs.New(kind, "%s answers with status %d", r.c.URL, resp.StatusCode), "is it a hub?")
	}
	err := errs.New(errs.ParseKind(e.Kind), "%.2000s", printable(e.Message))
	if e.Hint != "" {
		return errs.WithHint(err, "%.2000s", printable(e.Hint))
	}
	return err
}

// printable keeps a hub from writing to the user's terminal what is not text.
func printable(s string) string {
	return strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f || c >= 0x80 && c < 0xa0 {
			return '?'
		}
		return c
	}, s)
}

// json sends in and reads out; both may be nil.
func (r *Remote) json(ctx context.Context, method, path string, in, out any) error {
	c := call{method: method, path: path}
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		c.body, c.content = b, "application/json"
	}
	if out != nil {
		c.answer = func(body io.Reader) error {
			b, err := io.ReadAll(io.LimitReader(body, maxAnswer))
			if err != nil {
				return errs.New(errs.Unreachable, "read the answer of hub %s: %w", r.c.URL, err)
			}
			if err := json.Unmarshal(b, out); err != nil {
				return errs.WithHint(errs.New(errs.Damaged, "hub %s answers with what cannot be read: %w", r.c.URL, err), "is it a hub?")
			}
			return nil
		}
	}
	return r.do(ctx, c)
}

// maxAnswer bounds listings, in bytes.
const maxAnswer = 16 << 20

// WhoAmI asks who the hub takes the user for.
func (r *Remote) WhoAmI(ctx context.Context) (hubproto.WhoAmI, error) {
	var w hubproto.WhoAmI
	return w, r.json(ctx, http.MethodGet, "", nil, &w)
}

// Check asks whether the hub takes the key.
func (r *Remote) Check(ctx context.Context) error {
	w, err := r.WhoAmI(ctx)
	if err == nil && w.User != r.c.User {
		err = errs.New(errs.NotAllowed, "hub %s takes user %q for %q", r.c.URL, r.c.User, printable(w.User))
	}
	return err
}

// Dots lists the dots that the user may read.
func (r *Remote) Dots(ctx context.Context) ([]remote.DotInfo, error) {
	var d hubproto.Dots
	if err := r.json(ctx, http.MethodGet, "dots", nil, &d); err != nil {
		return nil, err
	}
	list := make([]remote.DotInfo, 0, len(d.Dots))
	for _, dot := range d.Dots {
		if err := remote.CheckDot(dot.Name); err != nil {
			return nil, errs.New(errs.Damaged, "hub %s: %w", r.c.URL, err)
		}
		list = append(list, remote.DotInfo{Name: dot.Name, ReadOnly: dot.ReadOnly})
	}
	slices.SortFunc(list, func(a, b remote.DotInfo) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// Delete removes a dot.
func (r *Remote) Delete(ctx context.Context, name string) error {
	if err := remote.CheckDot(name); err != nil {
		return err
	}
	return r.json(ctx, http.MethodDelete, "dots/"+name, nil, nil)
}

// Shares returns who has access to a dot beside its owner.
func (r *Remote) Shares(ctx context.Context, name string) ([]hubproto.Share, error) {
	if err := remote.CheckDot(name); err != nil {
		return nil, err
	}
	var s hubproto.Shares
	return s.Shares, r.json(ctx, http.MethodGet, "dots/"+name+"/shares", nil, &s)
}

// Share changes what a user may do with a dot.
func (r *Remote) Share(ctx context.Context, name string, s hubproto.Share) error {
	if err := remote.CheckDot(name); err != nil {
		return err
	}
	return r.json(ctx, http.MethodPost, "dots/"+name+"/shares", s, nil)
}

// Dot returns a dot.
func (r *Remote) Dot(name string) (remote.Dot, error) {
	if err := remote.CheckDot(name); err != nil {
		return nil, err
	}
	return &dot{r, "dots/" + name + "/"}, nil
}

type dot struct {
	r    *Remote
	path string
}

func (d *dot) Refs(ctx context.Context) (map[string]object.ID, error) {
	var m hubproto.Refs
	if err := d.r.json(ctx, http.MethodGet, d.path+"refs", nil, &m); err != nil {
		return nil, err
	}
	refs := make(map[string]object.ID, len(m.Refs))
	for name, hex := range m.Refs {
		id, err := object.ParseID(hex)
		if err == nil && id.IsZero() {
			err = errs.New(errs.Damaged, "ref points to nothing")
		}
		if err = errors.Join(err, remote.CheckRef(name)); err != nil {
			return nil, errs.New(errs.Damaged, "hub %s: ref %.140q: %w", d.r.c.URL, name, err)
		}
		refs[name] = id
	}
	return refs, nil
}

// Move moves a ref. Where the answer was lost, it looks what came of it.
func (d *dot) Move(ctx context.Context, ref string, old, new object.ID) error {
	if err := remote.CheckRef(ref); err != nil {
		return err
	}
	b, err := json.Marshal(hubproto.Move{Ref: ref, Old: hubproto.EncodeID(old), New: hubproto.EncodeID(new)})
	if err != nil {
		return err
	}
	c := call{method: http.MethodPost, path: d.path + "refs", content: "application/json", body: b}
	err = d.r.once(ctx, c)
	if errs.KindOf(err) != errs.Unreachable {
		return err
	}
	err = d.r.do(ctx, c)
	if errs.KindOf(err) == errs.Conflict {
		if refs, rerr := d.Refs(ctx); rerr == nil && refs[ref] == new {
			return nil
		}
	}
	return err
}

func (d *dot) Missing(ctx context.Context, ids []object.ID) ([]object.ID, error) {
	var missing []object.ID
	for part := range slices.Chunk(ids, hubproto.MaxIDs) {
		var got []object.ID
		err := d.r.do(ctx, call{
			http.MethodPost, d.path + "missing", hubproto.ContentIDs, hubproto.EncodeIDs(part),
			func(body io.Reader) error {
				b, err := io.ReadAll(io.LimitReader(body, hubproto.MaxIDs*object.IDSize+1))
				if err != nil {
					return errs.New(errs.Unreachable, "read the answer of hub %s: %w", d.r.c.URL, err)
				}
				if got, err = hubproto.DecodeIDs(b); err != nil {
					return errs.New(errs.Damaged, "read the answer of hub %s: %w", d.r.c.URL, err)
				}
				return nil
			},
		})
		if err != nil {
			return nil, err
		}
		missing = append(missing, got...)
	}
	return missing, nil
}

func (d *dot) Store(ctx context.Context, p *remote.Pack) error {
	return d.r.do(ctx, call{method: http.MethodPost, path: d.path + "packs", content: hubproto.ContentPack, body: p.Data})
}

// Load reads a pack of what is wanted. It is sent again only as long as nothing came.
func (d *dot) Load(ctx context.Context, req remote.Request, fn func(r *pack.Record) error) error {
	m := hubproto.LoadRequest{Haves: req.Haves[:min(len(req.Haves), hubproto.MaxIDs)]}
	for _, w := range req.Wants {
		m.Wants = append(m.Wants, hubproto.Want{Kind: w.Kind, ID: w.ID})
	}
	began := false
	var last error // that ends it
	err := d.r.do(ctx, call{http.MethodPost, d.path + "load", hubproto.ContentIDs, m.Encode(), func(body io.Reader) error {
		stream := &watched{Reader: body}
		in := pack.NewReader(stream)
		for {
			rec, err := in.Next()
			switch {
			case errors.Is(err, io.EOF):
				return nil
			case err != nil && stream.err != nil:
				err = errs.New(errs.Unreachable, "read from hub %s: %w", d.r.c.URL, stream.err)
				if began {
					last = err
					return nil
				}
				return err
			case err != nil:
				return fmt.Errorf("read from hub %s: %w", d.r.c.URL, err)
			}
			began = true
			if last = fn(rec); last != nil {
				return nil
			}
		}
	}})
	if last != nil {
		return last
	}
	return err
}

// watched remembers why a stream ended before its end.
type watched struct {
	io.Reader
	err error
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.Reader.Read(p)
	if err != nil && err != io.EOF {
		w.err = err
	}
	return n, err
}
