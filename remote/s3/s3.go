// Package s3 is a bucket of S3's, or of a server that speaks its protocol.
//
// Swap is a PUT with the header If-Match or If-None-Match. Servers that do not know these ignore them, and two pushes at a
// time would overwrite each other: Probe finds that out, and such a bucket can be fetched from only. Everything is written
// with single PUTs, which are atomic; there are no multipart uploads that a killed machine could leave behind.
package s3

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"dm/internal/errs"
)

// Config says where a bucket is and who asks.
type Config struct {
	Endpoint  string // host or host:port
	Insecure  bool   // plain HTTP
	Region    string // may be empty
	Bucket    string
	Prefix    string // of all keys, without a slash at its end; may be empty
	AccessKey string // both keys empty: as anybody
	SecretKey string
}

// defaultEndpoint is Amazon's.
const defaultEndpoint = "s3.amazonaws.com"

// Parse reads s3://[ACCESSKEY@]BUCKET[/PREFIX][?endpoint=URL&region=REGION]. The secret key is never in a URL.
func Parse(s string) (Config, error) {
	bad := func(why string) (Config, error) {
		return Config{}, errs.WithHint(errs.New(errs.Usage, "bad S3 address '%.200s': %s", s, why),
			"write s3://ACCESSKEY@BUCKET/PREFIX, and ?endpoint=https://HOST:PORT for a server that is not Amazon's")
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "s3" {
		return bad("it is no URL that begins with s3://")
	}
	if u.Host == "" || strings.Contains(u.Host, ":") {
		return bad("the bucket's name comes after s3:// and the access key")
	}
	if _, has := u.User.Password(); has {
		return bad("the secret key does not belong there: it is asked for")
	}
	c := Config{Bucket: u.Host, Prefix: strings.Trim(u.Path, "/"), AccessKey: u.User.Username(), Endpoint: defaultEndpoint}
	for key, values := range u.Query() {
		switch key {
		case "region":
			c.Region = values[0]
		case "endpoint":
			e, err := url.Parse(values[0])
			if err != nil || e.Host == "" || e.Scheme != "http" && e.Scheme != "https" || strings.Trim(e.Path, "/") != "" {
				return bad("the endpoint is http://HOST[:PORT] or https://HOST[:PORT]")
			}
			c.Endpoint, c.Insecure = e.Host, e.Scheme == "http"
		default:
			return bad("unknown parameter " + key)
		}
	}
	return c, nil
}

// maxTries is how often a request is sent before the server counts as unreachable.
const maxTries = 5

// Bucket is a bucket. It is safe for concurrent use.
type Bucket struct {
	c      Config
	core   minio.Core
	prefix string
	idle   func()
}

// Open returns a bucket. It does not speak to the server yet.
func Open(c Config) (*Bucket, error) {
	transport := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: 2 * time.Minute,
		MaxIdleConnsPerHost:   16,
		IdleConnTimeout:       time.Minute,
		DisableCompression:    true,
		TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12},
	}
	core, err := minio.NewCore(c.Endpoint, &minio.Options{
		Creds: credentials.NewStaticV4(c.AccessKey, c.SecretKey, ""), Secure: !c.Insecure, Region: c.Region,
		Transport: transport, MaxRetries: maxTries,
	})
	if err != nil {
		return nil, errs.New(errs.Usage, "open bucket %s: %w", c.Bucket, err)
	}
	b := &Bucket{c: c, core: *core, idle: transport.CloseIdleConnections}
	if c.Prefix != "" {
		b.prefix = c.Prefix + "/"
	}
	return b, nil
}

// Close ends idle connections.
func (b *Bucket) Close() error {
	b.idle()
	return nil
}

// String returns the bucket as a user writes it, without keys.
func (b *Bucket) String() string {
	return "s3://" + strings.TrimSuffix(b.c.Bucket+"/"+b.c.Prefix, "/")
}

// Get returns a file; its tag is its ETag.
func (b *Bucket) Get(ctx context.Context, key string, limit int64) ([]byte, string, error) {
	return b.get(ctx, key, limit, minio.GetObjectOptions{})
}

// GetNewer returns a file whose ETag is another, with If-None-Match.
func (b *Bucket) GetNewer(ctx context.Context, key, tag string, limit int64) ([]byte, string, error) {
	var o minio.GetObjectOptions
	if tag != "" {
		if err := o.SetMatchETagExcept(tag); err != nil {
			return nil, "", errs.New(errs.Internal, "read %s: %w", key, err)
		}
	}
	data, now, err := b.get(ctx, key, limit, o)
	var r minio.ErrorResponse
	if errors.As(err, &r) && r.StatusCode == http.StatusNotModified {
		return nil, tag, nil
	}
	return data, now, err
}

func (b *Bucket) get(ctx context.Context, key string, limit int64, o minio.GetObjectOptions) ([]byte, string, error) {
	body, info, _, err := b.core.GetObject(ctx, b.c.Bucket, b.prefix+key, o)
	if err != nil {
		return nil, "", b.wrap("read", key, err)
	}
	defer body.Close()
	data, err := io.ReadAll(io.LimitReader(body, limit+1))
	if err != nil {
		return nil, "", b.wrap("read", key, err)
	}
	if int64(len(data)) > limit {
		return nil, "", errs.New(errs.Damaged, "read %s: more than %d bytes", key, limit)
	}
	return data, info.ETag, nil
}

// GetRange returns a part of a file.
func (b *Bucket) GetRange(ctx context.Context, key string, off, n int64) ([]byte, error) {
	if n == 0 {
		return nil, nil
	}
	var o minio.GetObjectOptions
	if err := o.SetRange(off, off+n-1); err != nil {
		return nil, errs.New(errs.Internal, "read %s: %w", key, err)
	}
	// The connection may break in the middle of a body, which the client does not take up by itself.
	for try := 1; ; try++ {
		data, err := b.getRange(ctx, key, n, o)
		if err == nil || try == maxTries || ctx.Err() != nil || errs.KindOf(err) != errs.Unreachable {
			return data, err
		}
	}
}

func (b *Bucket) getRange(ctx context.Context, key string, n int64, o minio.GetObjectOptions) ([]byte, error) {
	body, info, _, err := b.core.GetObject(ctx, b.c.Bucket, b.prefix+key, o)
	if err != nil {
		return nil, b.wrap("read", key, err)
	}
	defer body.Close()
	if info.Size >= 0 && info.Size < n {
		return nil, errs.New(errs.Damaged, "read %s: it has only %d of %d bytes", key, info.Size, n)
	}
	data := make([]byte, n)
	if _, err := io.ReadFull(body, data); err != nil {
		return nil, b.wrap("read", key, err)
	}
	return data, nil
}

// Put writes a file.
func (b *Bucket) Put(ctx context.Context, key string, data []byte) error {
	return b.put(ctx, "write", key, data, minio.PutObjectOptions{})
}

// Swap writes a file if its ETag still is the tag.
func (b *Bucket) Swap(ctx context.Context, key string, data []byte, tag string) error {
	var o minio.PutObjectOptions
	if tag == "" {
		o.SetMatchETagExcept("*")
	} else {
		o.SetMatchETag(tag)
	}
	return b.put(ctx, "change", key, data, o)
}

func (b *Bucket) put(ctx context.Context, verb, key string, data []byte, o minio.PutObjectOptions) error {
	o.DisableMultipart = true
	o.ContentType = "application/octet-stream"
	_, err := b.core.Client.PutObject(ctx, b.c.Bucket, b.prefix+key, bytes.NewReader(data), int64(len(data)), o)
	if err != nil {
		return b.wrap(verb, key, err)
	}
	return nil
}

// probeRounds and probeWriters are how often how many writers race in a probe.
const (
	probeRounds  = 3
	probeWriters = 8
)

// Probe finds out whether the server honors conditions, also when they come at the same time: of writers that all replace
// the same version at most one may succeed. (A server that looks first and writes then, without a lock, passes any
// test that does one thing at a time: versitygw does so when it keeps its metadata in a sidecar directory.)
func (b *Bucket) Probe(ctx context.Context, key string) error {
	content := func(i int) []byte { return fmt.Appendf(nil, "dm looks whether conditional PUT works: %d\n", i) }
	err := b.Swap(ctx, key, content(0), "")
	if err != nil && errs.KindOf(err) != errs.Conflict {
		return err
	}
	for range probeRounds {
		_, tag, err := b.Get(ctx, key, 1<<10)
		if err != nil {
			return err
		}
		for _, tag := range []string{"", tag} {
			results := make([]error, probeWriters)
			var wg sync.WaitGroup
			for i := range results {
				wg.Go(func() { results[i] = b.Swap(ctx, key, content(rand.Int()), tag) })
			}
			wg.Wait()
			won := 0
			for _, err := range results {
				switch {
				case err == nil:
					won++
				case errs.KindOf(err) != errs.Conflict:
					return err
				}
			}
			if won > 1 || won > 0 && tag == "" {
				return errs.WithHint(errs.New(errs.NotAllowed, "%s cannot be pushed to: its server at %s does not honor the conditions of "+
					"a PUT (If-Match, If-None-Match), so that two pushes at a time could overwrite each other", b, b.c.Endpoint),
					"fetching works; to push, use a server that honors them (Amazon S3, MinIO, versitygw without sidecar ...) or a hub")
			}
		}
	}
	return nil
}

// Remove removes a file.
func (b *Bucket) Remove(ctx context.Context, key string) error {
	err := b.core.Client.RemoveObject(ctx, b.c.Bucket, b.prefix+key, minio.RemoveObjectOptions{})
	if err = b.wrap("remove", key, err); errs.KindOf(err) == errs.NotFound {
		return nil
	}
	return err
}

// List lists keys, a thousand with each request.
func (b *Bucket) List(ctx context.Context, prefix string, fn func(key string) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	o := minio.ListObjectsOptions{Prefix: b.prefix + prefix, Recursive: true}
	for info := range b.core.Client.ListObjectsIter(ctx, b.c.Bucket, o) {
		if info.Err != nil {
			return b.wrap("list", prefix, info.Err)
		}
		if err := fn(strings.TrimPrefix(info.Key, b.prefix)); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// wrap gives a server's error its kind.
func (b *Bucket) wrap(verb, key string, err error) error {
	if err == nil {
		return nil
	}
	var r minio.ErrorResponse
	if !errors.As(err, &r) {
		kind := errs.KindOf(err)
		var n net.Error
		if errors.As(err, &n) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
			kind = errs.Unreachable
		}
		if errors.Is(err, context.Canceled) {
			kind = errs.Interrupted
		}
		return errs.New(kind, "%s %s of %s: %w", verb, key, b, err)
	}
	kind := errs.Internal
	switch {
	case r.Code == "NoSuchBucket":
		return errs.WithHint(errs.New(errs.NotFound, "there is no bucket %s at %s", b.c.Bucket, b.c.Endpoint), "make it first")
	case r.StatusCode == http.StatusNotFound || r.Code == "NoSuchKey":
		kind = errs.NotFound
	case r.StatusCode == http.StatusPreconditionFailed, r.StatusCode == http.StatusConflict:
		kind = errs.Conflict
	case r.StatusCode == http.StatusForbidden, r.StatusCode == http.StatusUnauthorized:
		return errs.WithHint(errs.New(errs.NotAllowed, "%s %s of %s: %w", verb, key, b, err), "check the access key and the secret key")
	case r.StatusCode >= 500:
		kind = errs.Unreachable
	case r.Code == "InvalidRange":
		kind = errs.Damaged
	}
	return errs.New(kind, "%s %s of %s: %w", verb, key, b, err)
}
