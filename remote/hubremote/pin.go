package hubremote

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"net/url"
	"strings"
	"time"

	"dm/internal/errs"
)

// pinned returns a TLS configuration that takes exactly the certificate with this fingerprint; an empty one stands for the
// system's rules.
func pinned(fingerprint string) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if fingerprint == "" {
		return c, nil
	}
	want, err := hex.DecodeString(strings.ReplaceAll(fingerprint, ":", ""))
	if err != nil || len(want) != sha256.Size {
		return nil, errs.New(errs.Usage, "bad fingerprint '%.100s': it is the SHA-256 of a certificate, 64 hex digits", fingerprint)
	}
	// The name in a self-signed certificate says nothing; that it is the very one is what counts.
	c.InsecureSkipVerify = true
	c.VerifyConnection = func(s tls.ConnectionState) error {
		if len(s.PeerCertificates) > 0 {
			if got := sha256.Sum256(s.PeerCertificates[0].Raw); subtle.ConstantTimeCompare(got[:], want) == 1 {
				return nil
			}
		}
		return errs.WithHint(errs.New(errs.NotAllowed, "the hub shows another certificate than when the remote was added"),
			"somebody may be listening in; if the hub was given a new certificate, remove the remote and add it again")
	}
	return c, nil
}

// Fingerprint connects to a hub over TLS and returns the fingerprint of its certificate, and whether the system's rules
// accept it, in which case it need not be pinned.
func Fingerprint(ctx context.Context, address string) (fingerprint string, trusted bool, err error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" {
		return "", false, errs.New(errs.Usage, "%s does not use TLS", address)
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	d := tls.Dialer{Config: &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true}}
	conn, err := d.DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return "", false, errs.New(errs.Unreachable, "hub %s cannot be reached: %w", address, err)
	}
	defer conn.Close()
	certs := conn.(*tls.Conn).ConnectionState().PeerCertificates
	sum := sha256.Sum256(certs[0].Raw)
	roots := x509.NewCertPool()
	for _, c := range certs[1:] {
		roots.AddCert(c)
	}
	_, verr := certs[0].Verify(x509.VerifyOptions{DNSName: u.Hostname(), Intermediates: roots})
	return hex.EncodeToString(sum[:]), verr == nil, nil
}
