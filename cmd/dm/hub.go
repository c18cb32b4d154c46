package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"dm/api"
	"dm/hub"
	"dm/internal/errs"
	"dm/remote/hubproto"
)

func newHub(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "hub", Short: "Run a hub, a remote for many users, and administer it"}
	user := &cobra.Command{Use: "user", Short: "Add, remove and list a hub's users, or give one a new key"}
	user.AddCommand(newHubUserAdd(a), newHubUserKey(a), newHubUserRm(a), newHubUserList(a))
	cmd.AddCommand(newHubServe(a), user, newHubShare(a))
	cmd.PersistentFlags().StringVar(&a.hubS3, "s3", "", "keep the hub's state in a bucket, `s3://ACCESSKEY@BUCKET/PREFIX[?endpoint=URL&region=REGION]`,\n"+
		"whose secret key is asked for, or taken from DM_PASSWORD")
	return cmd
}

// hubConfig is where the hub's state is: in the state directory, or in a bucket.
func (a *app) hubConfig(ctx context.Context) (hub.Config, error) {
	home, err := a.homeDir()
	if err != nil || a.hubS3 == "" {
		return hub.Config{Dir: home}, err
	}
	key, err := a.secret(ctx, "Secret key of "+a.hubS3)
	return hub.Config{Dir: home, S3: a.hubS3, S3Key: key}, err
}

type hubServeCmd struct {
	*app
	listen        string
	cert, certKey string
	noTLS         bool
}

func newHubServe(a *app) *cobra.Command {
	c := &hubServeCmd{app: a}
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run a hub in the foreground; SIGTERM stops it when running transfers have ended",
		Long: "Run a hub in the foreground. Its state directory (--home, DM_HOME) is its own, not that of a dm server.\n\n" +
			"Without --tls-cert it makes a certificate for itself, and says its fingerprint: 'dm remote add' shows the same one.\n\n" +
			"With --s3, users, dots and data are in a bucket that any number of hubs serve at a time, each with a state\n" +
			"directory of its own for its certificate and for caches. The bucket, or the prefix, is for hubs alone.",
		Args: argCount(0, 0),
		RunE: c.run,
	}
	cmd.Flags().StringVar(&c.listen, "listen", ":"+hubproto.DefaultPort, "the `ADDR` to listen on")
	cmd.Flags().StringVar(&c.cert, "tls-cert", "", "PEM `FILE` with the certificate, and those that sign it")
	cmd.Flags().StringVar(&c.certKey, "tls-key", "", "PEM `FILE` with the certificate's key")
	cmd.Flags().BoolVar(&c.noTLS, "no-tls", false, "plain HTTP: for a proxy before the hub that speaks TLS, or a network that is trusted")
	oneOf(cmd, "no-tls", "tls-cert")
	return cmd
}

func (c *hubServeCmd) run(cmd *cobra.Command, _ []string) error {
	config, err := c.hubConfig(cmd.Context())
	if err != nil {
		return err
	}
	config.Version, config.Log = api.Version, slog.New(slog.NewTextHandler(c.err, nil))
	err = hub.Serve(cmd.Context(), hub.ServeConfig{
		Config: config,
		Listen: c.listen, TLSCert: c.cert, TLSKey: c.certKey, NoTLS: c.noTLS,
		Ready: func(addr net.Addr, fingerprint string) {
			fmt.Fprintf(c.out, "hub listens on %s\n", addr)
			if fingerprint != "" {
				fmt.Fprintf(c.out, "fingerprint %s\n", fingerprint)
			}
		},
	})
	if errs.KindOf(err) == errs.Interrupted && cmd.Context().Err() != nil {
		return nil
	}
	return err
}

// administer calls fn with the administration of the hub in the state directory.
func (a *app) administer(ctx context.Context, fn func(hub.Admin) error) error {
	config, err := a.hubConfig(ctx)
	if err != nil {
		return err
	}
	admin, err := hub.OpenAdmin(ctx, config)
	if err != nil {
		return err
	}
	defer admin.Close() //nolint:errcheck // what it did is durable
	return fn(admin)
}

// newKeyCmd is a command that gives a user a key and prints it, alone on stdout.
func newKeyCmd(a *app, use, short, said string, do func(context.Context, hub.Admin, string) (string, error)) *cobra.Command {
	return &cobra.Command{
		Use:   use,
		Short: short,
		Args:  argCount(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.administer(cmd.Context(), func(admin hub.Admin) error {
				key, err := do(cmd.Context(), admin, args[0])
				if err != nil {
					return err
				}
				fmt.Fprintf(a.err, "%s: this is shown once, the hub keeps a hash of it only.\n", fmt.Sprintf(said, args[0]))
				_, err = fmt.Fprintln(a.out, key)
				return written(err)
			})
		},
	}
}

func newHubUserAdd(a *app) *cobra.Command {
	return newKeyCmd(a, "add <name>", "Add a user, and print the new user's key", "The key of user %s",
		func(ctx context.Context, admin hub.Admin, name string) (string, error) {
			return admin.AddUser(ctx, name)
		})
}

func newHubUserKey(a *app) *cobra.Command {
	return newKeyCmd(a, "key <name>", "Give a user a new key, and print it; the old one is void", "The new key of user %s",
		func(ctx context.Context, admin hub.Admin, name string) (string, error) {
			return admin.NewKey(ctx, name)
		})
}

func newHubUserRm(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "rm <name>",
		Short: "Remove a user who has no dots any more",
		Args:  argCount(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.administer(cmd.Context(), func(admin hub.Admin) error { return admin.RemoveUser(cmd.Context(), args[0]) })
		},
	}
}

type hubUserListCmd struct {
	*app
	listing
}

func newHubUserList(a *app) *cobra.Command {
	c := &hubUserListCmd{app: a}
	cmd := &cobra.Command{Use: "list", Short: "List the users with their dots", Args: argCount(0, 0), RunE: c.run}
	c.listing.register(cmd)
	return cmd
}

func (c *hubUserListCmd) run(cmd *cobra.Command, _ []string) error {
	return c.administer(cmd.Context(), func(admin hub.Admin) error {
		users, err := admin.Users(cmd.Context())
		if err != nil {
			return err
		}
		if c.json {
			return writeJSON(c.out, struct {
				Users []hub.User `json:"users"`
			}{append([]hub.User{}, users...)})
		}
		rows := [][]string{{"USER", "DOTS", "SINCE"}}
		for _, u := range users {
			since := u.Created.UTC().Format(time.RFC3339)
			if c.scripting {
				if err := scriptLine(c.out, u.Name, u.Dots, since); err != nil {
					return err
				}
			}
			rows = append(rows, []string{u.Name, strconv.Itoa(u.Dots), since})
		}
		if c.scripting {
			return nil
		}
		return table(c.out, rows)
	})
}

type hubShareCmd struct {
	*app
	listing
	name string
}

func newHubShare(a *app) *cobra.Command {
	c := &hubShareCmd{app: a}
	cmd := &cobra.Command{
		Use:   "share <namespace/dot> [<user|everyone> <read|write|none>]",
		Short: "Let another user read or write a dot, or say who may",
		Long: "Let another user read or write a dot, or everyone read it, or take that back. Owners do it through their\n" +
			"remote (--remote); without that it is done by the hub's administrator, on the hub's state directory.\n\n" +
			"With --remote and no user, it lists who may beside the owner.",
		Args: argCount(1, 3),
		RunE: c.run,
	}
	c.listing.register(cmd)
	cmd.Flags().StringVar(&c.name, "remote", "", "the `REMOTE` that is the hub")
	oneOf(cmd, "remote", "s3")
	cmd.RegisterFlagCompletionFunc("remote", a.completeRemotes) //nolint:errcheck // fails only for a flag that does not exist
	return cmd
}

func (c *hubShareCmd) run(cmd *cobra.Command, args []string) error {
	share := hubproto.Share{}
	switch len(args) {
	case 2:
		return usage(cmd, "say what %s may do: read, write or none", args[1])
	case 3:
		share = hubproto.Share{User: args[1], Access: hubproto.Access(args[2])}
		switch share.Access {
		case hubproto.Read, hubproto.Write, hubproto.None:
		default:
			return usage(cmd, "%q is no access: use read, write or none", args[2])
		}
		if share.User == "everyone" {
			share.User = hubproto.Everyone
		}
	default:
		if c.name == "" {
			return usage(cmd, "name a user and what that user may do, or the --remote to ask")
		}
	}
	if c.name == "" {
		return c.administer(cmd.Context(), func(admin hub.Admin) error { return admin.ShareDot(cmd.Context(), args[0], share) })
	}
	rem, err := c.remote(c.name)
	if err != nil {
		return err
	}
	server, err := c.client()
	if err != nil {
		return err
	}
	r, err := server.Shares(cmd.Context(), api.SharesRequest{
		Remote: rem, Dot: args[0], User: share.User, Access: string(share.Access),
	})
	if err != nil || share.User != "" {
		return err
	}
	return c.print(r)
}

func (c *hubShareCmd) print(r api.SharesResult) error {
	if c.json {
		return writeJSON(c.out, r)
	}
	rows := [][]string{{"USER", "ACCESS"}}
	for _, s := range r.Shares {
		if s.User == hubproto.Everyone {
			s.User = "everyone"
		}
		if c.scripting {
			if err := scriptLine(c.out, s.User, s.Access); err != nil {
				return err
			}
		}
		rows = append(rows, []string{s.User, s.Access})
	}
	if c.scripting {
		return nil
	}
	return table(c.out, rows)
}
