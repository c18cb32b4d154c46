package hub

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"dm/internal/durable"
	"dm/internal/errs"
	"dm/remote/hubproto"
)

// ServeConfig is the choices of a served hub.
type ServeConfig struct {
	Config
	Listen  string // address; empty: all of them, port hubproto.DefaultPort
	TLSCert string // PEM file; with TLSKey. Both empty: the hub makes a certificate for itself
	TLSKey  string
	NoTLS   bool // plain HTTP, for a proxy before it that speaks TLS
	// Ready is told where the hub listens and the fingerprint of its certificate, empty without TLS. May be nil.
	Ready func(addr net.Addr, fingerprint string)
}

const (
	// drain is how long transfers may go on after the hub was told to stop.
	drain = 20 * time.Second
	// certLife is how long a certificate that the hub makes for itself is valid. Clients pin it, so it has to last.
	certLife = 20 * 365 * 24 * time.Hour
)

// Serve runs a hub until ctx ends. Then it takes no new requests, lets those that run come to their end for a while, and
// closes.
func Serve(ctx context.Context, cfg ServeConfig) (err error) {
	h, err := Open(ctx, cfg.Config)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.Close()) }()
	return h.listen(ctx, cfg)
}

// listen serves users and the administrator until ctx ends.
func (h *Hub) listen(ctx context.Context, cfg ServeConfig) error {
	if cfg.Listen == "" {
		cfg.Listen = ":" + hubproto.DefaultPort
	}
	l, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return errs.New(errs.KindOf(err), "listen on %s: %w", cfg.Listen, err)
	}
	fingerprint := ""
	l = limitListener(l, h.cfg.Limits.Connections)
	if !cfg.NoTLS {
		var c *tls.Config
		if c, fingerprint, err = tlsConfig(cfg); err != nil {
			l.Close()
			return err
		}
		l = tls.NewListener(l, c)
	}
	admin, lock, err := adminListener(cfg.Dir)
	if err != nil {
		l.Close()
		return err
	}
	defer lock.Close()
	return h.run(ctx, l, admin, func() {
		h.log.Info("hub listens", "address", l.Addr().String(), "fingerprint", fingerprint)
		if cfg.Ready != nil {
			cfg.Ready(l.Addr(), fingerprint)
		}
	})
}

// run serves users and the administrator until ctx ends.
func (h *Hub) run(ctx context.Context, users, admin net.Listener, ready func()) error {
	server := func(handler http.Handler) *http.Server {
		return &http.Server{
			Handler: handler, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10,
			ErrorLog: slog.NewLogLogger(h.log.Handler(), slog.LevelDebug),
		}
	}
	servers := []*http.Server{server(h.Handler()), server(h.adminHandler())}
	failed := make(chan error, len(servers))
	for i, l := range []net.Listener{users, admin} {
		go func() { failed <- servers[i].Serve(l) }()
	}
	ready()
	var err error
	running := len(servers)
	select {
	case <-ctx.Done():
	case err = <-failed:
		running--
	}
	stop, cancel := context.WithTimeout(context.Background(), drain)
	defer cancel()
	for _, s := range servers {
		if s.Shutdown(stop) != nil {
			s.Close()
		}
	}
	for range running {
		<-failed
	}
	h.settle()
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	return err
}

// settle waits for requests whose connections were closed under them: they use the store.
func (h *Hub) settle() {
	for range int(drain / (10 * time.Millisecond)) {
		if h.gates.requests() == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// tlsConfig loads the certificate given, or the hub's own, which is made where there is none.
func tlsConfig(cfg ServeConfig) (*tls.Config, string, error) {
	certFile, keyFile := cfg.TLSCert, cfg.TLSKey
	if (certFile == "") != (keyFile == "") {
		return nil, "", errs.New(errs.Usage, "a certificate and its key are given together")
	}
	if certFile == "" {
		certFile = filepath.Join(cfg.Dir, "cert.pem")
		keyFile = certFile
		if _, err := os.Stat(certFile); errors.Is(err, fs.ErrNotExist) {
			if err := makeCertificate(certFile); err != nil {
				return nil, "", err
			}
		}
	}
	k := &keyPair{certFile: certFile, keyFile: keyFile}
	cert, err := k.get(nil)
	if err != nil {
		return nil, "", err
	}
	sum := sha256.Sum256(cert.Certificate[0])
	// Not HTTP/2: with hundreds of requests on one connection, a limit on connections would be none on requests.
	return &tls.Config{
		GetCertificate: k.get, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"},
	}, hex.EncodeToString(sum[:]), nil
}

// keyPair is a certificate and its key, which are read again when they were renewed.
type keyPair struct {
	certFile, keyFile string

	mu   sync.Mutex
	read time.Time // modification time of the certificate that was read
	cert *tls.Certificate
}

// get returns the certificate. Where a renewed one cannot be read, because it is being written for instance, it is the last
// good one.
func (k *keyPair) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	st, err := os.Stat(k.certFile)
	if err == nil && (k.cert == nil || !st.ModTime().Equal(k.read)) {
		var cert tls.Certificate
		if cert, err = tls.LoadX509KeyPair(k.certFile, k.keyFile); err == nil {
			k.cert, k.read = &cert, st.ModTime()
		}
	}
	if k.cert == nil {
		return nil, errs.New(errs.Usage, "load certificate %s: %w", k.certFile, err)
	}
	return k.cert, nil
}

// makeCertificate writes a self-signed certificate and its key into one file.
func makeCertificate(path string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "dm hub"}, DNSNames: []string{"dm-hub"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(certLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	b := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})
	b = append(b, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})...)
	return durable.WriteFile(path, b, 0o600)
}
