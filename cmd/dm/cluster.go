package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"dm/api"
	"dm/daemon"
	"dm/internal/errs"
)

func newCluster(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "cluster", Short: "Start, look at, stop or delete the local server"}
	cmd.AddCommand(newClusterInit(a), newClusterStatus(a), newClusterStop(a), newClusterReset(a))
	return cmd
}

type clusterInitCmd struct {
	*app
	cache   string
	reserve bytesFlag
	plugin  string
	restart bool
}

func newClusterInit(a *app) *cobra.Command {
	c := &clusterInitCmd{app: a}
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Start the local server in the background",
		Args:  argCount(0, 0),
		RunE:  c.run,
	}
	registerCache(cmd, &c.cache)
	registerReserve(cmd, &c.reserve)
	registerPlugin(cmd, &c.plugin)
	cmd.Flags().BoolVar(&c.restart, "restart", false, "restart the containers that lost their volumes when an earlier server ended")
	return cmd
}

// registerPlugin adds the flag for the Docker plugin. Left out, the server serves one where Docker is installed.
func registerPlugin(cmd *cobra.Command, plugin *string) {
	cmd.Flags().StringVar(plugin, "docker-plugin", "", "`NAME` of the Docker volume driver, or off (default $DM_DOCKER_PLUGIN, or dm where Docker is installed)")
}

// pluginName is the name from the flag or the environment.
func pluginName(flag string) string {
	if flag == "" {
		return os.Getenv("DM_DOCKER_PLUGIN")
	}
	return flag
}

func registerCache(cmd *cobra.Command, cache *string) {
	cmd.Flags().StringVar(cache, "cache", daemon.CacheAuto, "how the kernel caches volumes: `MODE` auto, writeback or through")
}

func registerReserve(cmd *cobra.Command, reserve *bytesFlag) {
	cmd.Flags().Var(reserve, "reserve", "`SIZE` that commits, pulls and clones leave free on the disk of the state directory"+
		" (default a hundredth of it, between 64MiB and 1GiB)")
}

// bytesFlag is a flag with a number of bytes, such as 500MB or 2GiB.
type bytesFlag int64

func (b *bytesFlag) String() string {
	if *b == 0 {
		return ""
	}
	return strconv.FormatInt(int64(*b), 10)
}

func (b *bytesFlag) Type() string { return "size" }

func (b *bytesFlag) Set(s string) error {
	n, err := humanize.ParseBytes(s)
	if err != nil || n == 0 || n > 1<<60 {
		return errs.New(errs.Usage, "%q is no size: write it as 500MB or 2GiB", s)
	}
	*b = bytesFlag(n)
	return nil
}

func (c *clusterInitCmd) run(cmd *cobra.Command, _ []string) error {
	home, err := c.homeDir()
	if err != nil {
		return err
	}
	config, err := c.configPath()
	if err == nil {
		config, err = filepath.Abs(config) // the server runs in another directory
	}
	if err != nil {
		return errs.New(errs.Usage, "find the client config: %w", err)
	}
	started, err := daemon.Start(cmd.Context(), daemon.Config{
		Home: home, Cache: c.cache, Reserve: int64(c.reserve), DockerPlugin: pluginName(c.plugin),
		ClientConfig: config,
	})
	if err != nil {
		return err
	}
	err = c.changeConfig(func(cfg *clientConfig) {
		cfg.Remotes[localRemote] = remoteConfig{URL: "unix://" + filepath.Join(home, api.SocketName)}
		if cfg.Current == "" {
			cfg.Current = localRemote
		}
	})
	if err != nil {
		return err
	}
	if !started {
		fmt.Fprintf(c.err, "The dm server on %s is running already.\n", home)
		return c.containers(cmd.Context(), false)
	}
	fmt.Fprintf(c.err, "The dm server on %s is running.\n"+
		"Create a dot with 'dm init <dot>', and print where its data lives with 'dm path -c <dot>.<subdot>'.\n", home)
	return c.containers(cmd.Context(), true)
}

// containers says how the server stands with Docker, and restarts containers without volumes if that was asked for.
func (c *clusterInitCmd) containers(ctx context.Context, started bool) error {
	server, err := c.client()
	if err != nil {
		return err
	}
	r, err := server.Server(ctx)
	if err != nil {
		return err
	}
	sayHidden(c.err, r.Hidden)
	d := r.Docker
	switch {
	case !started && d.Plugin != c.wanted() && c.wanted() != "":
		fmt.Fprintf(c.err, "It was started with another --docker-plugin: 'dm cluster stop' it first.\n")
	case !started:
	case d.Plugin != "":
		fmt.Fprintf(c.err, "Docker's containers can use dots as volumes: docker run -v <dot>.<subdot>:/data --volume-driver %s\n", d.Plugin)
	case d.Why != "":
		fmt.Fprintf(c.err, "Docker's volumes are not served: %s.\n", d.Why)
	}
	if len(d.Stale) == 0 {
		return nil
	}
	if !c.restart {
		fmt.Fprintf(c.err, "These containers lost their volumes when the earlier server ended: %s\n"+
			"Restart them with 'dm cluster init --restart'.\n", strings.Join(d.Stale, ", "))
		return nil
	}
	done, err := server.Restart(ctx)
	if err != nil {
		return err
	}
	sayRestarted(c.err, done.Containers)
	return nil
}

// sayHidden tells which dots have no path, and why.
func sayHidden(w io.Writer, dots []api.HiddenDot) {
	for _, d := range dots {
		fmt.Fprintf(w, "dm: dot %s is not shown: %s\n", d.Dot, oneLine(d.Why))
		fmt.Fprintf(w, "dm: hint: 'dm path %s' tries again\n", d.Dot)
	}
}

// wanted is the name of the plugin that was asked for, as the server tells it.
func (c *clusterInitCmd) wanted() string {
	if name := pluginName(c.plugin); name != daemon.PluginOff {
		return name
	}
	return ""
}

// sayRestarted tells which containers were restarted.
func sayRestarted(w io.Writer, containers []string) {
	if len(containers) > 0 {
		fmt.Fprintf(w, "Restarted %s\n", strings.Join(containers, ", "))
	}
}

type clusterStatusCmd struct {
	*app
	listing
}

func newClusterStatus(a *app) *cobra.Command {
	c := &clusterStatusCmd{app: a}
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the server's state, version, mounts and disk use",
		Args:  argCount(0, 0),
		RunE:  c.run,
	}
	c.listing.register(cmd)
	return cmd
}

func (c *clusterStatusCmd) run(cmd *cobra.Command, _ []string) error {
	server, err := c.client()
	if err != nil {
		return err
	}
	r, err := server.Server(cmd.Context())
	if err != nil {
		return err
	}
	if c.json {
		return writeJSON(c.out, r)
	}
	sayHidden(c.err, r.Hidden)
	amounts := func(n int64) string { return amount(n, true) }
	if c.scripting {
		amounts = func(n int64) string { return strconv.FormatInt(n, 10) }
	}
	cache := r.Cache
	if r.Why != "" {
		cache += " (" + r.Why + ")"
	}
	fields := [][]string{
		{"server", r.ID},
		{"state", "running"},
		{"pid", strconv.Itoa(r.PID)},
		{"started", r.Started.UTC().Format(time.RFC3339)},
		{"home", string(r.Home)},
		{"version", versionText(r.Version)},
		{"cache", cache},
		{"dots", strconv.Itoa(r.Dots)},
		{"store", amounts(r.Store)},
		{"work", amounts(r.Work)},
		{"free", amounts(r.Free)},
		{"reserve", amounts(r.Reserve)},
		{"docker", dockerText(r.Docker)},
	}
	if len(r.Docker.Running) > 0 {
		fields = append(fields, []string{"containers", strings.Join(r.Docker.Running, ",")})
	}
	if len(r.Docker.Stale) > 0 {
		fields = append(fields, []string{"stale", strings.Join(r.Docker.Stale, ",") + " (restart with 'dm cluster init --restart')"})
	}
	for _, m := range r.Mounts {
		fields = append(fields, []string{"mount", m.What + " on " + path(m.Dir)})
	}
	if !c.scripting {
		for i := range fields {
			fields[i][0] += ":"
		}
		return table(c.out, fields)
	}
	for _, f := range fields {
		if err := scriptLine(c.out, f[0], f[1]); err != nil {
			return err
		}
	}
	return nil
}

// dockerText says how the server stands with Docker.
func dockerText(d api.Docker) string {
	text := "volume driver " + d.Plugin
	if d.Plugin == "" {
		text = "no volume driver (" + d.Why + ")"
	}
	if d.Error != "" {
		text += "; containers are not known (" + oneLine(d.Error) + ")"
	}
	return text
}

type clusterStopCmd struct {
	*app
	force bool
}

func newClusterStop(a *app) *cobra.Command {
	c := &clusterStopCmd{app: a}
	cmd := &cobra.Command{
		Use:   "stop",
		Short: "Stop the server cleanly: everything is flushed and unmounted",
		Args:  argCount(0, 0),
		RunE:  c.run,
	}
	cmd.Flags().BoolVarP(&c.force, "force", "f", false, "also while processes use its mounts: they get errors from then on")
	return cmd
}

func (c *clusterStopCmd) run(cmd *cobra.Command, _ []string) error {
	home, err := c.homeDir()
	if err != nil {
		return err
	}
	stopped, err := daemon.Stop(cmd.Context(), home, c.force)
	if err != nil {
		return err
	}
	if stopped {
		fmt.Fprintf(c.err, "The dm server on %s has stopped.\n", home)
	} else {
		fmt.Fprintf(c.err, "No dm server is running on %s.\n", home)
	}
	return nil
}

type clusterResetCmd struct {
	*app
	force bool
}

func newClusterReset(a *app) *cobra.Command {
	c := &clusterResetCmd{app: a}
	cmd := &cobra.Command{
		Use:   "reset",
		Short: "Stop the server and delete everything it keeps, after a prompt",
		Args:  argCount(0, 0),
		RunE:  c.run,
	}
	cmd.Flags().BoolVarP(&c.force, "force", "f", false, "do not ask, and do not wait for processes that use a mount")
	return cmd
}

func (c *clusterResetCmd) run(cmd *cobra.Command, _ []string) error {
	home, err := c.homeDir()
	if err != nil {
		return err
	}
	if !c.force {
		question := fmt.Sprintf("This deletes every dot with all its commits and uncommitted changes under %s.", home)
		if err := c.confirm(cmd.Context(), question); err != nil {
			return err
		}
	}
	if err := daemon.Destroy(cmd.Context(), home, c.force); err != nil {
		return err
	}
	fmt.Fprintf(c.err, "Deleted everything dm kept under %s.\n", home)
	return c.changeConfig(func(cfg *clientConfig) {
		delete(cfg.Servers, home)
		if cfg.Remotes[localRemote].URL == "unix://"+filepath.Join(home, api.SocketName) {
			delete(cfg.Remotes, localRemote)
			if cfg.Current == localRemote {
				cfg.Current = ""
			}
		}
	})
}

type serverCmd struct {
	*app
	cache   string
	log     string
	reserve bytesFlag
	plugin  string
}

func newServer(a *app) *cobra.Command {
	c := &serverCmd{app: a}
	cmd := &cobra.Command{
		Use:   "server",
		Short: "Run the server in the foreground, for systemd and containers; SIGTERM stops it cleanly",
		Args:  argCount(0, 0),
		RunE:  c.run,
	}
	registerCache(cmd, &c.cache)
	registerReserve(cmd, &c.reserve)
	registerPlugin(cmd, &c.plugin)
	cmd.Flags().StringVar(&c.log, "log", "stderr", "where the log goes: `DEST` stderr or file (dm.log in the state directory)")
	return cmd
}

func (c *serverCmd) run(cmd *cobra.Command, _ []string) error {
	home, err := c.homeDir()
	if err != nil {
		return err
	}
	cfg := daemon.Config{
		Home: home, Cache: c.cache, Reserve: int64(c.reserve), DockerPlugin: pluginName(c.plugin), Remote: c.remote,
	}
	switch c.log {
	case "stderr":
		cfg.Log = c.err
	case "file":
	default:
		return usage(cmd, "--log %q is not known: use stderr or file", c.log)
	}
	err = daemon.Run(cmd.Context(), cfg)
	// The signal that ends a server cleanly is no failure.
	if errs.KindOf(err) == errs.Interrupted && cmd.Context().Err() != nil {
		return nil
	}
	return err
}
