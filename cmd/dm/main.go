// Command dm is git for the state of a whole application: client, local server and hub in one binary.
//
// This package is verbs, formats and exit codes only. A verb is a struct of its flags with a run method, in a file of its
// own; what it does is done by the server, which it reaches through package api. Output goes to stdout, progress and talk
// to stderr, and an error becomes one line "dm: ..." and, where there is something to do about it, a second line
// "dm: hint: ...".
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"dm/daemon"
	"dm/internal/errs"
)

func main() { os.Exit(Main()) }

// Main runs dm with the process's arguments and returns the exit code. Tests call it as a program of its own.
func Main() int {
	if code, ran := daemon.RunChild(); ran {
		return code
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	context.AfterFunc(ctx, stop) // who asks twice does not want to wait for a clean end
	return report(os.Stderr, run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run executes one command line.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	root := newRoot(&app{in: stdin, out: stdout, err: stderr})
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err != nil && ctx.Err() != nil && errs.KindOf(err) != errs.Interrupted {
		return errs.New(errs.Interrupted, "interrupted: %w", err)
	}
	return err
}

// report tells the user of err and returns the exit code.
func report(stderr io.Writer, err error) int {
	if err == nil {
		return 0
	}
	if errors.Is(err, syscall.EPIPE) {
		return 1 // whoever read our output has enough; there is nobody to tell
	}
	fmt.Fprintf(stderr, "dm: %s\n", oneLine(err.Error()))
	if hint := errs.HintOf(err); hint != "" {
		fmt.Fprintf(stderr, "dm: hint: %s\n", oneLine(hint))
	}
	return errs.KindOf(err).ExitCode()
}

// oneLine makes text that may hold line breaks (a file name, a server's words) one line.
func oneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }), " ")
}

// app is what all verbs share: the streams, and where the server and the client's config are.
type app struct {
	in       io.Reader
	out, err io.Writer
	home     string // --home
	config   string // --config
	hubS3    string // dm hub --s3
}

func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "dm",
		Short: "git for the state of a whole application",
		Long: "dm commits, branches and rolls back the data of all services of an application at one instant.\n" +
			"A dot is a versioned collection of data; its subdots are the data directories of the services.",
		SilenceUsage:      true,
		SilenceErrors:     true,
		TraverseChildren:  true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		if args := cmd.Flags().Args(); len(args) > 0 && cmd.HasSubCommands() {
			return unknownCommand(cmd, args[0]) // the flag is one of a verb that is not there
		}
		return usage(cmd, "%w", err)
	})
	root.AddGroup(
		&cobra.Group{ID: groupData, Title: "Data:"}, &cobra.Group{ID: groupHistory, Title: "History:"},
		&cobra.Group{ID: groupRemote, Title: "Remotes:"}, &cobra.Group{ID: groupServer, Title: "Server:"})
	add := func(group string, verbs ...*cobra.Command) {
		for _, v := range verbs {
			v.GroupID = group
			root.AddCommand(v)
		}
	}
	add(groupData, newInit(a), newPath(a), newList(a), newSwitch(a), newStatus(a), newMount(a), newUmount(a), newDot(a),
		newImport(a), newExport(a))
	add(groupHistory, newCommit(a), newLog(a), newShow(a), newDiff(a), newCat(a), newBranch(a), newCheckout(a),
		newReset(a), newRestore(a), newTag(a), newPrune(a), newAutoCommit(a))
	add(groupRemote, newPush(a), newPull(a), newClone(a), newRemote(a), newTransfers(a), newHub(a))
	add(groupServer, newCluster(a), newServer(a), newGC(a), newFsck(a), newDu(a), newVersion(a))
	root.AddCommand(newCompletion(a), newDocs(a))
	finish(a, root)
	return root
}

// The groups of the help text.
const (
	groupData    = "data"
	groupHistory = "history"
	groupRemote  = "remote"
	groupServer  = "server"
)

// finish gives every command the flags that all have and, where it only groups others, an answer to a wrong name.
// They are not cobra's persistent flags: `dm path -c` is --create, so --config has no short form there.
func finish(a *app, cmd *cobra.Command) {
	short := "c"
	if f := cmd.Flags().ShorthandLookup("c"); f != nil {
		short = ""
	}
	cmd.Flags().StringVarP(&a.config, "config", short, "", "client config `FILE` (default $DM_CONFIG, or dm/config.json in the user's config directory)")
	cmd.Flags().StringVar(&a.home, "home", "", "state `DIR` of the server (default $DM_HOME, or /var/lib/dm)")
	for _, sub := range cmd.Commands() {
		finish(a, sub)
	}
	if cmd.HasSubCommands() && cmd.RunE == nil {
		cmd.Args = cobra.ArbitraryArgs
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return unknownCommand(cmd, args[0])
		}
	}
}

// unknownCommand is the error of a name that is no command of cmd, with those that it looks like.
func unknownCommand(cmd *cobra.Command, name string) error {
	err := usage(cmd, "unknown command %q", cmd.CommandPath()+" "+name)
	cmd.SuggestionsMinimumDistance = 2 // the most letters that are wrong; without it cobra suggests nothing
	like := cmd.SuggestionsFor(name)
	if len(like) == 0 {
		return err
	}
	for i := range like {
		like[i] = "'" + cmd.CommandPath() + " " + like[i] + "'"
	}
	return errs.WithHint(err, "did you mean %s? See '%s --help'", strings.Join(like, " or "), cmd.CommandPath())
}

// usage is the error of a command line that has no meaning.
func usage(cmd *cobra.Command, format string, args ...any) error {
	return errs.WithHint(errs.New(errs.Usage, format, args...), "see '%s --help'", cmd.CommandPath())
}

// argCount is a cobra check that takes between least and most arguments; most < 0 is any number.
func argCount(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return usage(cmd, "too few arguments: use '%s'", cmd.UseLine())
		case most >= 0 && len(args) > most:
			return usage(cmd, "too many arguments, the first is %q: use '%s'", args[most], cmd.UseLine())
		}
		return nil
	}
}

// oneOf adds to a command's check of its arguments that at most one of these flags is given.
func oneOf(cmd *cobra.Command, names ...string) {
	before := cmd.Args
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		given := ""
		for _, name := range names {
			if !cmd.Flags().Changed(name) {
				continue
			}
			if given != "" {
				return usage(cmd, "--%s and --%s cannot be used together", given, name)
			}
			given = name
		}
		return before(cmd, args)
	}
}
