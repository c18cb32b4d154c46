package main

import (
	"fmt"
	"maps"
	"slices"

	"github.com/spf13/cobra"
)

type remoteCmd struct {
	*app
	listing
	verbose bool
}

func newRemote(a *app) *cobra.Command {
	c := &remoteCmd{app: a}
	cmd := &cobra.Command{
		Use:   "remote [-v]",
		Short: "List remotes; the current one is marked",
		Args:  argCount(0, 0),
		RunE:  c.run,
	}
	c.listing.register(cmd)
	cmd.Flags().BoolVarP(&c.verbose, "verbose", "v", false, "with the address of each")
	cmd.AddCommand(newRemoteAdd(a), newRemoteRm(a), newRemoteShow(a), newRemoteSwitch(a))
	return cmd
}

func (c *remoteCmd) run(_ *cobra.Command, _ []string) error {
	cfg, err := c.readConfig()
	if err != nil {
		return err
	}
	if c.json {
		return writeJSON(c.out, shownRemotes(cfg))
	}
	for _, name := range slices.Sorted(maps.Keys(cfg.Remotes)) {
		url := cfg.Remotes[name].URL
		if c.scripting {
			err = scriptLine(c.out, name, url, name == currentRemote(cfg))
		} else {
			mark := "  "
			if name == currentRemote(cfg) {
				mark = "* "
			}
			line := mark + name
			if c.verbose {
				line += "\t" + url
			}
			_, err = fmt.Fprintln(c.out, line)
		}
		if err != nil {
			return written(err)
		}
	}
	return nil
}

// shownRemote is a remote as it is listed: without its key.
type shownRemote struct {
	URL         string `json:"url"`
	Fingerprint string `json:"fingerprint,omitempty"`
	Current     bool   `json:"current"`
}

func shownRemotes(cfg *clientConfig) map[string]shownRemote {
	shown := make(map[string]shownRemote, len(cfg.Remotes))
	for name, r := range cfg.Remotes {
		shown[name] = shownRemote{URL: r.URL, Fingerprint: r.Fingerprint, Current: name == currentRemote(cfg)}
	}
	return shown
}

func currentRemote(cfg *clientConfig) string {
	if cfg.Current == "" {
		return localRemote
	}
	return cfg.Current
}

type remoteSwitchCmd struct{ *app }

func newRemoteSwitch(a *app) *cobra.Command {
	c := &remoteSwitchCmd{a}
	return &cobra.Command{
		Use:   "switch <remote>",
		Short: "Make a remote the current one",
		Long: "Make a remote the current one: 'dm list' shows its dots until you switch back to 'local', this machine's own server.\n" +
			"All other commands act as before.",
		Args: argCount(1, 1),
		RunE: c.run,
	}
}

func (c *remoteSwitchCmd) run(_ *cobra.Command, args []string) error {
	cfg, err := c.readConfig()
	if err != nil {
		return err
	}
	if _, ok := cfg.Remotes[args[0]]; !ok {
		return noRemote(args[0])
	}
	return c.changeConfig(func(cfg *clientConfig) { cfg.Current = args[0] })
}
