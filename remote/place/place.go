// Package place opens remotes of every kind by their address, whose form tells them apart:
//
//	/dir, ./dir, file:///dir            a directory
//	s3://[ACCESSKEY@]BUCKET[/PREFIX]    an S3 bucket
//	USER@HOST[:PORT]                    a hub, over TLS
//	http(s)://[USER@]HOST[:PORT]        a hub
package place

import (
	"net/url"
	"path/filepath"
	"strings"

	"dm/internal/errs"
	"dm/remote"
	"dm/remote/bucket"
	"dm/remote/dir"
	"dm/remote/hubremote"
	"dm/remote/s3"
)

// Address is a remote as a user names it, with what is secret or was found out about it.
type Address struct {
	URL         string
	Key         string // of the hub's user, or the secret key of S3
	Fingerprint string // of a hub's certificate that is not signed by an authority; empty: it is
	CacheDir    string // for what can be read from the remote again, of this remote alone; empty: nothing is kept
}

// Kind is a kind of remote.
type Kind string

// The kinds.
const (
	Directory Kind = "directory"
	S3        Kind = "s3"
	Hub       Kind = "hub"
)

// KindOf tells the kind of remote from its address.
func KindOf(address string) (Kind, error) {
	switch {
	case strings.HasPrefix(address, "/"), strings.HasPrefix(address, "./"), strings.HasPrefix(address, "../"),
		strings.HasPrefix(address, "file:///"):
		return Directory, nil
	case strings.HasPrefix(address, "s3://"):
		return S3, nil
	case strings.HasPrefix(address, "http://"), strings.HasPrefix(address, "https://"),
		strings.Contains(address, "@") && !strings.Contains(address, "://"):
		return Hub, nil
	}
	return "", errs.WithHint(errs.New(errs.Usage, "'%.200s' is no address of a remote", address),
		"write USER@HOST[:PORT] or https://USER@HOST for a hub, s3://ACCESSKEY@BUCKET/PREFIX for S3, /PATH for a directory")
}

// NeedsKey says whether who opens the address has to show a key.
func NeedsKey(address string) bool {
	kind, err := KindOf(address)
	switch {
	case err != nil || kind == Directory:
		return false
	case kind == S3:
		c, err := s3.Parse(address)
		return err == nil && c.AccessKey != ""
	}
	c, err := hubremote.Parse(address)
	return err == nil && c.User != ""
}

// User returns the name in a hub's address, whose namespace the user pushes to; empty elsewhere.
func User(address string) string {
	if kind, err := KindOf(address); err != nil || kind != Hub {
		return ""
	}
	c, _ := hubremote.Parse(address)
	return c.User
}

// Open opens a remote. Relative directories are relative to the process's. It does not look whether the remote is there:
// Remote.Check does.
func Open(a Address) (remote.Remote, error) {
	kind, err := KindOf(a.URL)
	if err != nil {
		return nil, err
	}
	switch kind {
	case Directory:
		path, err := directory(a.URL)
		if err != nil {
			return nil, err
		}
		b, err := dir.Open(path)
		if err != nil {
			return nil, err
		}
		return bucket.Open(b, bucket.Options{CacheDir: a.CacheDir})
	case S3:
		c, err := s3.Parse(a.URL)
		if err != nil {
			return nil, err
		}
		c.SecretKey = a.Key
		b, err := s3.Open(c)
		if err != nil {
			return nil, err
		}
		return bucket.Open(b, bucket.Options{CacheDir: a.CacheDir})
	}
	c, err := hubremote.Parse(a.URL)
	if err != nil {
		return nil, err
	}
	c.Key, c.Fingerprint = a.Key, a.Fingerprint
	return hubremote.Open(c)
}

func directory(address string) (string, error) {
	if !strings.HasPrefix(address, "file://") {
		return filepath.Abs(address)
	}
	u, err := url.Parse(address)
	if err != nil {
		return "", errs.New(errs.Usage, "bad address '%.200s': %w", address, err)
	}
	return u.Path, nil
}
