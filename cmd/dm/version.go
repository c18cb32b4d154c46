package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"dm/api"
	"dm/internal/errs"
)

type versionCmd struct {
	*app
	listing
}

func newVersion(a *app) *cobra.Command {
	c := &versionCmd{app: a}
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Show the versions of this program and of the server",
		Args:  argCount(0, 0),
		RunE:  c.run,
	}
	c.listing.register(cmd)
	return cmd
}

func (c *versionCmd) run(cmd *cobra.Command, _ []string) error {
	both := struct {
		Client api.VersionResult  `json:"client"`
		Server *api.VersionResult `json:"server"` // null: none is running
	}{Client: api.VersionResult{Version: api.Version, Revision: api.Revision(), Go: runtime.Version()}}
	server, err := c.client()
	if err != nil {
		return err
	}
	v, err := server.Version(cmd.Context())
	switch {
	case err == nil:
		both.Server = &v
	case errs.KindOf(err) != errs.Unreachable:
		return err
	}
	if c.json {
		return writeJSON(c.out, both)
	}
	lines := []struct {
		who string
		v   *api.VersionResult
	}{{"Client", &both.Client}, {"Server", both.Server}}
	for _, l := range lines {
		switch {
		case c.scripting && l.v != nil:
			err = scriptLine(c.out, l.who, l.v.Version, l.v.Revision, l.v.Go)
		case c.scripting:
			err = nil
		case l.v == nil:
			_, err = fmt.Fprintf(c.out, "%s: not running\n", l.who)
		default:
			_, err = fmt.Fprintf(c.out, "%s: %s\n", l.who, versionText(*l.v))
		}
		if err != nil {
			return written(err)
		}
	}
	return nil
}

func versionText(v api.VersionResult) string {
	text := "dm " + v.Version
	if v.Revision != "" {
		text += " (" + v.Revision + ")"
	}
	return text + ", " + v.Go
}
