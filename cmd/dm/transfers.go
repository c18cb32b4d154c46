package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

type transfersCmd struct {
	*app
	listing
}

func newTransfers(a *app) *cobra.Command {
	c := &transfersCmd{app: a}
	cmd := &cobra.Command{
		Use:   "transfers",
		Short: "List the pushes, pulls and clones that are running on the server",
		Args:  argCount(0, 0),
		RunE:  c.run,
	}
	c.listing.register(cmd)
	return cmd
}

func (c *transfersCmd) run(cmd *cobra.Command, _ []string) error {
	server, err := c.client()
	if err != nil {
		return err
	}
	r, err := server.Transfers(cmd.Context())
	if err != nil {
		return err
	}
	if c.json {
		return writeJSON(c.out, r)
	}
	rows := [][]string{{"ID", "VERB", "DOT", "REMOTE", "REF", "DONE", "SENT", "SINCE"}}
	for _, t := range r.Transfers {
		if c.scripting {
			err := scriptLine(c.out, t.ID, t.Verb, t.Dot, t.Remote, t.Ref, t.Done, t.Total, t.Wire, t.Started.UTC().Format(time.RFC3339))
			if err != nil {
				return err
			}
			continue
		}
		rows = append(rows, []string{
			t.ID, t.Verb, t.Dot, t.Remote, t.Ref, fmt.Sprintf("%s / %s", decimal(t.Done), decimal(t.Total)), decimal(t.Wire),
			time.Since(t.Started).Round(time.Second).String(),
		})
	}
	if c.scripting {
		return nil
	}
	return table(c.out, rows)
}
