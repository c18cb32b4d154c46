package main

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"dm/internal/durable"
	"dm/internal/errs"
)

// configVersion is the version of the config file this dm writes; a file with a newer one is refused.
const configVersion = 1

// localRemote is the name of the remote that stands for the local server.
const localRemote = "local"

// clientConfig is what dm remembers for its user, a JSON file that only the user can read: it holds keys.
type clientConfig struct {
	Version int                     `json:"version"`
	Current string                  `json:"current_remote,omitempty"`
	Remotes map[string]remoteConfig `json:"remotes,omitempty"`
	// Servers is by state directory, so that one user can work with several local servers.
	Servers map[string]serverConfig `json:"servers,omitempty"`
}

// remoteConfig is one remote.
type remoteConfig struct {
	URL         string `json:"url"`
	Key         string `json:"key,omitempty"`
	Fingerprint string `json:"fingerprint,omitempty"` // of a hub's certificate that is not signed by an authority
}

// serverConfig is what dm remembers for one local server.
type serverConfig struct {
	Dot string `json:"dot,omitempty"` // the current dot
}

// configPath returns --config, DM_CONFIG, the default.
func (a *app) configPath() (string, error) {
	if a.config != "" {
		return a.config, nil
	}
	if path := os.Getenv("DM_CONFIG"); path != "" {
		return path, nil
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", errs.WithHint(errs.New(errs.Usage, "no place is known for the client config: %w", err),
			"set DM_CONFIG or use --config")
	}
	return filepath.Join(dir, "dm", "config.json"), nil
}

// readConfig reads the client config; a file that is not there is an empty config.
func (a *app) readConfig() (*clientConfig, error) {
	path, err := a.configPath()
	if err != nil {
		return nil, err
	}
	return loadConfig(path)
}

func loadConfig(path string) (*clientConfig, error) {
	cfg := &clientConfig{
		Version: configVersion, Remotes: map[string]remoteConfig{}, Servers: map[string]serverConfig{},
	}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return cfg, nil
	}
	if err != nil {
		return nil, errs.New(errs.KindOf(err), "read the client config: %w", err)
	}
	if err := json.Unmarshal(text, cfg); err != nil {
		return nil, errs.WithHint(errs.New(errs.Damaged, "read the client config %s: %w", path, err),
			"mend the file, or move it away: dm makes a new one")
	}
	if cfg.Version > configVersion {
		return nil, errs.WithHint(errs.New(errs.Conflict, "the client config %s has format %d, this dm knows up to %d",
			path, cfg.Version, configVersion), "use the newer dm that wrote it, or another file with --config")
	}
	return cfg, nil
}

// changeConfig applies change to the client config. Several dm at the same time wait for each other.
func (a *app) changeConfig(change func(*clientConfig)) error {
	path, err := a.configPath()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return errs.New(errs.KindOf(err), "make the directory of the client config: %w", err)
	}
	// The lock is on the directory, not on the file: the file is replaced by every change.
	lock, err := os.Open(filepath.Dir(path))
	if err != nil {
		return errs.New(errs.KindOf(err), "lock the client config: %w", err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return errs.New(errs.Internal, "lock the client config: %w", err)
	}
	cfg, err := loadConfig(path)
	if err != nil {
		return err
	}
	change(cfg)
	text, err := json.MarshalIndent(cfg, "", "  ")
	if err != nil {
		return errs.New(errs.Internal, "encode the client config: %w", err)
	}
	if err := durable.WriteFile(path, append(text, '\n'), 0o600); err != nil {
		return errs.New(errs.KindOf(err), "write the client config: %w", err)
	}
	return nil
}

// setCurrentDot makes name the current dot of the server in use; "" is none.
func (a *app) setCurrentDot(name string) error {
	home, err := a.homeDir()
	if err != nil {
		return err
	}
	return a.changeConfig(func(cfg *clientConfig) {
		if name == "" {
			delete(cfg.Servers, home)
			return
		}
		s := cfg.Servers[home]
		s.Dot = name
		cfg.Servers[home] = s
	})
}
