package main

import (
	"context"
	"os"
	"os/user"
	"path/filepath"

	"github.com/spf13/cobra"

	"dm/api"
	"dm/internal/errs"
)

// homeDir returns the absolute path of the server's state directory: --home, DM_HOME, the default.
func (a *app) homeDir() (string, error) {
	home := a.home
	if home == "" {
		home = os.Getenv("DM_HOME")
	}
	if home == "" {
		var err error
		if home, err = defaultHome(); err != nil {
			return "", err
		}
	}
	abs, err := filepath.Abs(home)
	if err != nil {
		return "", errs.New(errs.Usage, "find the state directory %s: %w", home, err)
	}
	return abs, nil
}

func defaultHome() (string, error) {
	if os.Geteuid() == 0 {
		return "/var/lib/dm", nil
	}
	if data := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(data) {
		return filepath.Join(data, "dm"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", errs.WithHint(errs.New(errs.Usage, "no place is known for the server's state: %w", err),
			"set DM_HOME or use --home")
	}
	return filepath.Join(home, ".local", "share", "dm"), nil
}

// client returns a client of the server.
func (a *app) client() (*api.Client, error) {
	home, err := a.homeDir()
	if err != nil {
		return nil, err
	}
	return api.NewClient(filepath.Join(home, api.SocketName)), nil
}

// dotFlag is the --dot of verbs that act on one dot.
type dotFlag struct {
	*app
	dot string
}

func (d *dotFlag) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&d.dot, "dot", "", "the `DOT` to act on (default $DM_DOT, or the current dot)")
	cmd.RegisterFlagCompletionFunc("dot", d.completeDots) //nolint:errcheck // fails only for a flag that does not exist
}

// named takes the dot from an argument, unless --dot has it.
func (d *dotFlag) named(cmd *cobra.Command, arg string) error {
	if d.dot != "" {
		return usage(cmd, "the dot is named twice, as %q and with --dot %q", arg, d.dot)
	}
	d.dot = arg
	return nil
}

// target returns a client and the dot to act on: --dot, DM_DOT, the current dot, the only dot there is.
func (d *dotFlag) target(ctx context.Context) (*api.Client, string, error) {
	c, err := d.client()
	if err != nil {
		return nil, "", err
	}
	name := d.dot
	if name == "" {
		name = os.Getenv("DM_DOT")
	}
	if name == "" {
		if name, err = d.currentDot(ctx, c); err != nil {
			return nil, "", err
		}
	}
	return c, name, nil
}

func (a *app) currentDot(ctx context.Context, c *api.Client) (string, error) {
	cfg, err := a.readConfig()
	if err != nil {
		return "", err
	}
	home, err := a.homeDir()
	if err != nil {
		return "", err
	}
	if name := cfg.Servers[home].Dot; name != "" {
		return name, nil
	}
	list, err := c.List(ctx)
	if err != nil {
		return "", err
	}
	if len(list.Dots) == 1 {
		return list.Dots[0].Name, nil
	}
	none := errs.New(errs.NotFound,
		"No current dot is selected. List them with 'dm list' and select one with 'dm switch'.")
	if len(list.Dots) == 0 {
		return "", errs.WithHint(none, "there is no dot yet: make one with 'dm init DOT', or 'dm clone' one")
	}
	return "", none
}

// completeDots offers the names of all dots to the shell.
func (a *app) completeDots(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	c, err := a.client()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	list, err := c.List(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	names := make([]string, len(list.Dots))
	for i, d := range list.Dots {
		names[i] = d.Name
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// author returns who commits: the name of the user who runs dm.
func author() string {
	if u, err := user.Current(); err == nil && u.Username != "" {
		return u.Username
	}
	if name := os.Getenv("USER"); name != "" {
		return name
	}
	return "unknown"
}
