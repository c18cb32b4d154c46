package dbs

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Redis is Redis with an append-only file that is synced at each write, and rewritten often.
type Redis struct {
	srv *server
	dir string
}

// Name is "redis".
func (r *Redis) Name() string { return "redis" }

// Init needs to do nothing but hand the directory over.
func (r *Redis) Init(dir string) error { return own(dir, "redis") }

// Start starts the server.
func (r *Redis) Start(dir string) error {
	srv, err := newServer("redis")
	if err != nil {
		return err
	}
	r.srv, r.dir = srv, dir
	ready := func() error {
		c, err := r.dial()
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.do("PING") // an error while it loads its data
		return err
	}
	return srv.start(ready, "redis-server", "--dir", dir, "--port", "0", "--unixsocket", srv.runDir+"/s", "--appendonly", "yes",
		"--appendfsync", "always", "--save", "", "--auto-aof-rewrite-min-size", "200kb", "--auto-aof-rewrite-percentage", "30",
		"--daemonize", "no")
}

// Stop shuts down.
func (r *Redis) Stop() error {
	defer func() { r.srv = nil }()
	return r.srv.stop(syscall.SIGTERM)
}

// Check runs redis-check-aof on the append-only files.
func (r *Redis) Check() error {
	_, err := run("redis", "redis-check-aof", filepath.Join(r.dir, "appendonlydir", "appendonly.aof.manifest"))
	return err
}

// Read returns the state.
func (r *Redis) Read(n int) ([]int64, error) {
	c, err := r.dial()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	state := make([]int64, n)
	for i := range n {
		var values []string
		for _, cmd := range [][]string{
			{"GET", key("counter", i)}, {"LLEN", key("list", i)}, {"LINDEX", key("list", i), "-1"}, {"HLEN", key("hash", i)},
		} {
			v, err := c.do(cmd...)
			if err != nil {
				return nil, err
			}
			if v == "" {
				v = "0"
			}
			values = append(values, v)
		}
		one, err := counts(fmt.Sprintf("%d %s\n", i, strings.Join(values, " ")), n)
		if err != nil {
			return nil, err
		}
		state[i] = one[i]
	}
	return state, nil
}

func key(what string, client int) string { return fmt.Sprintf("%s:%d", what, client) }

// Connect opens a connection.
func (r *Redis) Connect(client int) (Conn, error) {
	c, err := r.dial()
	if err == nil {
		c.client = client
	}
	return c, err
}

// redisConn speaks Redis's protocol, RESP2: commands are arrays of bulk strings.
type redisConn struct {
	client int
	conn   net.Conn
	in     *bufio.Reader
}

func (r *Redis) dial() (*redisConn, error) {
	conn, err := net.DialTimeout("unix", r.srv.runDir+"/s", time.Second)
	if err != nil {
		return nil, err
	}
	return &redisConn{conn: conn, in: bufio.NewReader(conn)}, nil
}

// Commit does a transaction of three writes.
func (c *redisConn) Commit(n int64) error {
	number := fmt.Sprint(n)
	for _, cmd := range [][]string{
		{"MULTI"},
		{"RPUSH", key("list", c.client), number},
		{"HSET", key("hash", c.client), number, strings.Repeat(number, int(n%40))},
		{"SET", key("counter", c.client), number},
		{"EXEC"},
	} {
		if _, err := c.do(cmd...); err != nil {
			return fmt.Errorf("transaction %d: %w", n, err)
		}
	}
	return nil
}

// Close closes the connection.
func (c *redisConn) Close() { c.conn.Close() }

func (c *redisConn) do(args ...string) (string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(args))
	for _, a := range args {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(a), a)
	}
	c.conn.SetDeadline(time.Now().Add(startTimeout))
	if _, err := io.WriteString(c.conn, b.String()); err != nil {
		return "", err
	}
	return c.reply()
}

func (c *redisConn) reply() (string, error) {
	line, err := c.in.ReadString('\n')
	if err != nil {
		return "", err
	}
	line = strings.TrimSuffix(line, "\r\n")
	if line == "" {
		return "", fmt.Errorf("an empty answer")
	}
	switch rest := line[1:]; line[0] {
	case '+', ':':
		return rest, nil
	case '-':
		return "", fmt.Errorf("the server says: %s", rest)
	case '$':
		n, err := strconv.Atoi(rest)
		if err != nil || n < 0 {
			return "", err
		}
		data := make([]byte, n+2)
		_, err = io.ReadFull(c.in, data)
		return string(data[:n]), err
	case '*':
		n, err := strconv.Atoi(rest)
		if err != nil || n < 0 {
			return "", fmt.Errorf("the transaction was not done")
		}
		for range n {
			if _, err := c.reply(); err != nil {
				return "", err
			}
		}
		return "", nil
	}
	return "", fmt.Errorf("answer %q", line)
}
