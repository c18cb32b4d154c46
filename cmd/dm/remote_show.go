package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"dm/api"
)

type remoteShowCmd struct {
	*app
	listing
}

func newRemoteShow(a *app) *cobra.Command {
	c := &remoteShowCmd{app: a}
	cmd := &cobra.Command{
		Use:               "show <name>",
		Short:             "List the dots at a remote with their branches",
		Args:              argCount(1, 1),
		RunE:              c.run,
		ValidArgsFunction: a.completeRemotes,
	}
	c.listing.register(cmd)
	return cmd
}

func (c *remoteShowCmd) run(cmd *cobra.Command, args []string) error {
	rem, err := c.remote(args[0])
	if err != nil {
		return err
	}
	return c.listRemote(cmd.Context(), rem, &c.listing)
}

// listRemote lists the dots at a remote.
func (a *app) listRemote(ctx context.Context, rem api.Remote, l *listing) error {
	server, err := a.client()
	if err != nil {
		return err
	}
	r, err := server.RemoteDots(ctx, api.RemoteDotsRequest{Remote: rem})
	if err != nil {
		return err
	}
	return a.printRemote(r, l)
}

func accessWord(readOnly bool) string {
	if readOnly {
		return "read"
	}
	return "write"
}

func (a *app) printRemote(r api.RemoteDotsResult, l *listing) error {
	if l.json {
		return writeJSON(a.out, r)
	}
	rows := [][]string{{"DOT", "BRANCH", "ACCESS", "COMMIT"}}
	for _, d := range r.Dots {
		for _, b := range d.Branches {
			if l.scripting {
				if err := scriptLine(a.out, d.Name, b.Name, accessWord(d.ReadOnly), b.Head); err != nil {
					return err
				}
			}
			rows = append(rows, []string{d.Name, b.Name, accessWord(d.ReadOnly), fmt.Sprintf("%.12s", b.Head)})
		}
	}
	if l.scripting {
		return nil
	}
	return table(a.out, rows)
}
