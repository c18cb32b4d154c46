package main

import (
	"github.com/spf13/cobra"
)

type completionCmd struct{ *app }

func newCompletion(a *app) *cobra.Command {
	c := &completionCmd{a}
	return &cobra.Command{
		Use:   "completion <bash|zsh|fish>",
		Short: "Print a script that completes dm's commands and dots in a shell",
		Long: "Print a script that completes dm's commands and dots in a shell. For bash:\n\n" +
			"    source <(dm completion bash)",
		Args:      argCount(1, 1),
		ValidArgs: []string{"bash", "zsh", "fish"},
		RunE:      c.run,
	}
}

func (c *completionCmd) run(cmd *cobra.Command, args []string) error {
	switch args[0] {
	case "bash":
		return written(cmd.Root().GenBashCompletionV2(c.out, true))
	case "zsh":
		return written(cmd.Root().GenZshCompletion(c.out))
	case "fish":
		return written(cmd.Root().GenFishCompletion(c.out, true))
	}
	return usage(cmd, "shell %q is not known: use bash, zsh or fish", args[0])
}
