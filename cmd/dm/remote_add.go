package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"dm/api"
	"dm/internal/errs"
)

type remoteAddCmd struct {
	*app
	fingerprint string
}

func newRemoteAdd(a *app) *cobra.Command {
	c := &remoteAddCmd{app: a}
	cmd := &cobra.Command{
		Use:   "add <name> <user@host[:port] | http(s)://user@host[:port] | s3://accesskey@bucket/prefix | /dir>",
		Short: "Add a remote: a hub, an S3 bucket or a directory; its key is asked for and checked",
		Long: "Add a remote: a hub, an S3 bucket or a directory.\n\n" +
			"The key of a hub's user, or the secret key of S3, is asked for without showing it, read from a pipe, or taken from\n" +
			"DM_PASSWORD. It is checked before it is saved, in the client config, which only you can read.\n\n" +
			"A hub whose certificate is not signed by an authority that the system knows is recognized by the certificate's\n" +
			"fingerprint from then on: compare what is shown with what 'dm hub serve' says, or give it with --fingerprint.",
		Args: argCount(2, 2),
		RunE: c.run,
	}
	cmd.Flags().StringVar(&c.fingerprint, "fingerprint", "", "the SHA-256 `HEX` that the hub's certificate must have")
	return cmd
}

var remoteNameRE = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,64}$`)

func (c *remoteAddCmd) run(cmd *cobra.Command, args []string) error {
	ctx, name := cmd.Context(), args[0]
	if !remoteNameRE.MatchString(name) {
		return errs.New(errs.Usage, "invalid remote name '%s': use letters, digits, '_' and '-', at most 64", name)
	}
	cfg, err := c.readConfig()
	if err != nil {
		return err
	}
	if old, ok := cfg.Remotes[name]; ok {
		return errs.WithHint(errs.New(errs.Conflict, "Remote '%s' exists already: %s", name, old.URL),
			"remove it first with 'dm remote rm %s', or choose another name", name)
	}
	server, err := c.client()
	if err != nil {
		return err
	}
	rem, err := c.probe(ctx, server, name, args[1])
	if err != nil {
		return err
	}
	if err := server.CheckRemote(ctx, api.CheckRemoteRequest{Remote: rem}); err != nil {
		return err
	}
	err = c.changeConfig(func(cfg *clientConfig) {
		cfg.Remotes[name] = remoteConfig{URL: rem.URL, Key: rem.Key, Fingerprint: rem.Fingerprint}
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(c.err, "Remote '%s' was added.\n", name)
	return nil
}

// probe finds out what an address is, and gets the key and the fingerprint that it needs.
func (c *remoteAddCmd) probe(ctx context.Context, server *api.Client, name, url string) (rem api.Remote, err error) {
	rem = api.Remote{Name: name, URL: url}
	if strings.HasPrefix(url, "./") || strings.HasPrefix(url, "../") {
		// The server is in another directory.
		if rem.URL, err = filepath.Abs(url); err != nil {
			return rem, errs.New(errs.Usage, "find %s: %w", url, err)
		}
	}
	is, err := server.ProbeRemote(ctx, api.ProbeRequest{URL: rem.URL})
	if err != nil {
		return rem, err
	}
	wanted := strings.ToLower(strings.ReplaceAll(c.fingerprint, ":", ""))
	switch {
	case wanted != "" && is.Kind != "hub":
		return rem, errs.New(errs.Usage, "a remote that is no hub has no certificate: --fingerprint has no meaning")
	case wanted != "" && is.Fingerprint != "" && wanted != is.Fingerprint:
		return rem, errs.WithHint(errs.New(errs.NotAllowed, "the hub's certificate has the fingerprint %s, not the one that was given", is.Fingerprint),
			"somebody may be listening in; ask who runs the hub")
	case wanted != "":
		rem.Fingerprint = wanted
	case is.Fingerprint != "":
		rem.Fingerprint = is.Fingerprint
		fmt.Fprintf(c.err, "The hub's certificate is its own. From now on it is recognized by its fingerprint:\n  %s\n"+
			"Compare it with what the hub said when it started.\n", is.Fingerprint)
	}
	if is.NeedsKey {
		what := "API key"
		if is.Kind == "s3" {
			what = "Secret key"
		}
		rem.Key, err = c.secret(ctx, what)
	}
	return rem, err
}

type remoteRmCmd struct{ *app }

func newRemoteRm(a *app) *cobra.Command {
	c := &remoteRmCmd{a}
	return &cobra.Command{
		Use:               "rm <name>",
		Short:             "Forget a remote and its key; what is there stays there",
		Args:              argCount(1, 1),
		RunE:              c.run,
		ValidArgsFunction: a.completeRemotes,
	}
}

func (c *remoteRmCmd) run(_ *cobra.Command, args []string) error {
	if args[0] == localRemote {
		return errs.New(errs.Usage, "remote '%s' is this machine's own server", localRemote)
	}
	found := false
	err := c.changeConfig(func(cfg *clientConfig) {
		_, found = cfg.Remotes[args[0]]
		delete(cfg.Remotes, args[0])
		if cfg.Current == args[0] {
			cfg.Current = localRemote
		}
	})
	if err == nil && !found {
		err = noRemote(args[0])
	}
	return err
}

func noRemote(name string) error {
	return errs.WithHint(errs.New(errs.NotFound, "Remote '%s' does not exist", name),
		"list them with 'dm remote -v', or add it with 'dm remote add'")
}

// remote returns a remote of the config as the server wants it.
func (a *app) remote(name string) (api.Remote, error) {
	cfg, err := a.readConfig()
	if err != nil {
		return api.Remote{}, err
	}
	r, ok := cfg.Remotes[name]
	switch {
	case name == localRemote:
		return api.Remote{}, errs.WithHint(errs.New(errs.Usage, "remote '%s' is this machine's own server", name),
			"name another remote; list them with 'dm remote -v'")
	case !ok:
		return api.Remote{}, noRemote(name)
	}
	return api.Remote{Name: name, URL: r.URL, Key: r.Key, Fingerprint: r.Fingerprint}, nil
}

// completeRemotes offers the names of remotes to the shell.
func (a *app) completeRemotes(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	cfg, err := a.readConfig()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []string
	for name := range cfg.Remotes {
		if name != localRemote {
			names = append(names, name)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// passwordEnv holds a key for those who can neither type nor pipe one.
const passwordEnv = "DM_PASSWORD"

// secret gets a key: from DM_PASSWORD, from a terminal that does not show it, or as a line of a pipe.
func (a *app) secret(ctx context.Context, what string) (string, error) {
	if key := os.Getenv(passwordEnv); key != "" {
		return key, nil
	}
	restore := func() {}
	if f, ok := a.in.(*os.File); ok {
		hidden, err := hideInput(int(f.Fd()))
		if err != nil {
			return "", err
		}
		if hidden != nil {
			restore = hidden
			fmt.Fprintf(a.err, "%s: ", what)
			defer fmt.Fprintln(a.err)
		}
	}
	defer restore()
	line, err := a.readLine(ctx)
	if err != nil {
		return "", err
	}
	if line == "" {
		return "", errs.WithHint(errs.New(errs.Usage, "no key was given"), "type it, pipe it in, or set %s", passwordEnv)
	}
	return line, nil
}
