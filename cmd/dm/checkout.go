package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"dm/api"
)

type checkoutCmd struct {
	dotFlag
	create    bool
	noRestart bool
}

func newCheckout(a *app) *cobra.Command {
	c := &checkoutCmd{dotFlag: dotFlag{app: a}}
	cmd := &cobra.Command{
		Use:   "checkout [-b] <branch>",
		Short: "Switch every subdot to a branch; each branch keeps its own uncommitted changes",
		Args:  argCount(1, 1),
		RunE:  c.run,
	}
	c.register(cmd)
	cmd.Flags().BoolVarP(&c.create, "branch", "b", false, "create the branch, from the commit the current one is at")
	registerNoRestart(cmd, &c.noRestart)
	return cmd
}

func (c *checkoutCmd) run(cmd *cobra.Command, args []string) error {
	server, dot, err := c.target(cmd.Context())
	if err != nil {
		return err
	}
	r, err := server.Checkout(cmd.Context(), api.CheckoutRequest{Dot: dot, Branch: args[0], Create: c.create, NoRestart: c.noRestart})
	if err != nil {
		return err
	}
	fmt.Fprintf(c.err, "Switched to branch %s\n", r.Branch)
	sayRestarted(c.err, r.Restarted)
	sayUsers(c.err, "Still on branch "+r.From+", until they are started again", r.Users)
	return nil
}

// sayUsers tells which processes, of none of the containers that were restarted, go on with files or directories from
// before. This one is not worth a line: it is about to end.
func sayUsers(w io.Writer, what string, users []string) {
	users = slices.DeleteFunc(users, func(u string) bool { return strings.Contains(u, fmt.Sprintf(" (pid %d, ", os.Getpid())) })
	if len(users) == 0 {
		return
	}
	fmt.Fprintf(w, "%s:\n", what)
	for _, u := range users {
		fmt.Fprintf(w, "  %s\n", oneLine(u))
	}
}

// registerNoRestart adds the flag of verbs that restart containers.
func registerNoRestart(cmd *cobra.Command, noRestart *bool) {
	cmd.Flags().BoolVar(noRestart, "no-restart", false, "refuse if containers run that would have to be restarted")
}
