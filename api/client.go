package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"dm/internal/errs"
	"dm/internal/unixsock"
)

// dialTimeout bounds how long a client waits for a server that accepts nothing.
const dialTimeout = 5 * time.Second

// Client talks to one server. It is safe for concurrent use.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient returns a client of the server whose socket is at the given path. It does not connect yet.
func NewClient(socket string) *Client {
	dialer := net.Dialer{Timeout: dialTimeout}
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			short, release, err := unixsock.Short(socket)
			if err != nil {
				return nil, &net.OpError{Op: "dial", Net: "unix", Err: err}
			}
			defer release()
			return dialer.DialContext(ctx, "unix", short)
		},
		DisableCompression: true,
	}}}
}

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Handlers receive what comes before the result of a streamed reply; nil fields ignore it.
type Handlers struct {
	Progress func(Progress)
	Item     func(json.RawMessage) error // an error ends the call with it
}

// Call runs one operation: it sends request and decodes the result into result. Errors are those of the server, with
// their kind and hint; kind Unreachable if it does not answer.
func (c *Client) Call(ctx context.Context, op Op, request, result any, h Handlers) error {
	resp, err := c.post(ctx, op, request)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(resp.Body)
	for {
		var m Message
		if err := dec.Decode(&m); err != nil {
			return c.broken(ctx, err)
		}
		switch {
		case m.Error != nil:
			return m.Error.Err()
		case m.Result != nil:
			if err := json.Unmarshal(m.Result, result); err != nil {
				return fmt.Errorf("decode the server's reply to %s: %w", op, err)
			}
			return nil
		case m.Progress != nil && h.Progress != nil:
			h.Progress(*m.Progress)
		case m.Item != nil && h.Item != nil:
			if err := h.Item(m.Item); err != nil {
				return err
			}
		}
	}
}

// Copy runs an operation whose reply is plain bytes and writes them to w. What the server says of them at the end is decoded
// into result, unless that is nil.
func (c *Client) Copy(ctx context.Context, op Op, request any, w io.Writer, result any) error {
	resp, err := c.post(ctx, op, request)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(w, bodyReader{c, ctx, resp.Body}); err != nil {
		return err
	}
	if text := resp.Trailer.Get(ErrorTrailer); text != "" {
		var e Error
		if err := json.Unmarshal([]byte(text), &e); err != nil {
			return fmt.Errorf("decode the server's error %q: %w", text, err)
		}
		return e.Err()
	}
	if text := resp.Trailer.Get(ResultTrailer); text != "" && result != nil {
		if err := json.Unmarshal([]byte(text), result); err != nil {
			return fmt.Errorf("decode the server's reply to %s: %w", op, err)
		}
	}
	return nil
}

// bodyReader tells errors of the connection from errors of where the bytes go.
type bodyReader struct {
	c   *Client
	ctx context.Context
	r   io.Reader
}

func (b bodyReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = b.c.broken(b.ctx, err)
	}
	return n, err
}

func (c *Client) post(ctx context.Context, op Op, request any) (*http.Response, error) {
	body, err := json.Marshal(request)
	if err != nil {
		return nil, fmt.Errorf("encode request %s: %w", op, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://dm"+PathPrefix+string(op), bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("make request %s: %w", op, err)
	}
	req.Header.Set("Content-Type", typeJSON)
	req.Header.Set(VersionHeader, Version)
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	var e Error
	text, err := io.ReadAll(io.LimitReader(resp.Body, MaxRequest))
	if err != nil {
		return nil, c.broken(ctx, err)
	}
	if !strings.HasPrefix(resp.Header.Get("Content-Type"), typeJSON) || json.Unmarshal(text, &e) != nil {
		return nil, errs.New(errs.Internal, "the server on %s answers %s with %s: %.200q", c.socket, op, resp.Status, text)
	}
	return nil, e.Err()
}

// unreachable explains why no reply came.
func (c *Client) unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errs.New(errs.Interrupted, "interrupted: %w", context.Cause(ctx))
	}
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "dial" {
		return c.broken(ctx, err)
	}
	if errs.KindOf(op.Err) == errs.NotAllowed {
		return errs.WithHint(errs.New(errs.NotAllowed, "you may not use the dm server on %s", c.socket),
			"only the user who runs the server may: run dm as that user")
	}
	return errs.WithHint(errs.New(errs.Unreachable, "no dm server is running on %s", c.socket),
		"start it with 'dm cluster init'")
}

// broken explains a reply that ended in the middle.
func (c *Client) broken(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errs.New(errs.Interrupted, "interrupted: %w", context.Cause(ctx))
	}
	return errs.WithHint(errs.New(errs.Unreachable, "the dm server on %s went away before it had answered: %w", c.socket, err),
		"what was asked may or may not have happened: look with 'dm status', and see the server's log")
}
