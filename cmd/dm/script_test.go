package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"dm/daemon"
	"dm/remote/remotetest/s3server"
)

func TestMain(m *testing.M) {
	// The servers that the scripts start are this test binary, and so are their helpers.
	if code, ran := daemon.RunChild(); ran {
		os.Exit(code)
	}
	testscript.Main(m, map[string]func(){"dm": func() { os.Exit(Main()) }})
}

// scriptDeadline bounds one script.
const scriptDeadline = 2 * time.Minute

// The scripts in testdata/script are the specification of the command line. Each has a server of its own; see
// scriptCommands for what they can do beside running programs.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		WorkdirRoot:         t.TempDir(), // whose removal fails if a script leaves something mounted
		Deadline:            time.Now().Add(scriptDeadline),
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               setupScript,
		Cmds:                scriptCommands(),
	})
}

// The scripts in testdata/bucket have an S3 server with an empty bucket besides: $S3 is its address, $S3_KEY the secret key.
func TestBucketScripts(t *testing.T) {
	addr := s3server.Start(t, s3server.Names()[0])
	s3server.MakeBucket(t, addr, "dm-test")
	testscript.Run(t, testscript.Params{
		Dir: "testdata/bucket", WorkdirRoot: t.TempDir(), Deadline: time.Now().Add(scriptDeadline),
		RequireExplicitExec: true, RequireUniqueNames: true, Cmds: scriptCommands(),
		Setup: func(env *testscript.Env) error {
			env.Setenv("S3", fmt.Sprintf("s3://%s@dm-test/hub?endpoint=http://%s&region=%s", s3server.AccessKey, addr, s3server.Region))
			env.Setenv("S3_KEY", s3server.SecretKey)
			return setupScript(env)
		},
	})
}

func setupScript(env *testscript.Env) error {
	home := env.WorkDir + "/home"
	env.Setenv("DM_HOME", home)
	env.Setenv("DM_CONFIG", env.WorkDir+"/config.json")
	env.Setenv("DM_DOT", "")
	env.Setenv("DM_DOCKER_PLUGIN", "off") // the name is one for the whole machine
	env.Defer(func() {
		for _, args := range [][]string{{"cluster", "reset", "-f"}, {"cluster", "reset", "-f", "--home", home + "2"}} {
			cmd := exec.Command("dm", args...)
			cmd.Env = env.Vars
			if out, err := cmd.CombinedOutput(); err != nil {
				env.T().Log("reset the script's server:", err, string(out))
			}
		}
	})
	return nil
}

// scriptCommands are the commands the scripts have beside testscript's own:
//
//	exits CODE PROGRAM ARG...   runs a program that must end with this exit code
//	capture VAR REGEXP          sets a variable to the first group of a match in the last stdout
//	waitfor PROGRAM ARG...      runs a program until it succeeds, for some seconds
//	killserver                  kills the server, as a crash does
func scriptCommands() map[string]func(*testscript.TestScript, bool, []string) {
	return map[string]func(*testscript.TestScript, bool, []string){
		"exits":      exits,
		"capture":    capture,
		"waitfor":    waitFor,
		"killserver": killServer,
	}
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARG...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("%s ended with exit code %d, not %d\n%s%s", strings.Join(args[1:], " "), got, want,
			ts.ReadFile("stdout"), ts.ReadFile("stderr"))
	}
}

func capture(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: capture VAR REGEXP")
	}
	re, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	m := re.FindStringSubmatch(ts.ReadFile("stdout"))
	if len(m) != 2 {
		ts.Fatalf("no match for %s in:\n%s", args[1], ts.ReadFile("stdout"))
	}
	ts.Setenv(args[0], m[1])
}

func waitFor(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: waitfor PROGRAM ARG...")
	}
	var err error
	for range 500 {
		if err = ts.Exec(args[0], args[1:]...); err == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	ts.Fatalf("waited in vain for %s: %v", strings.Join(args, " "), err)
}

func killServer(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: killserver")
	}
	pid, err := strconv.Atoi(strings.TrimSpace(ts.ReadFile(ts.Getenv("DM_HOME") + "/lock")))
	ts.Check(err)
	// The file stays after the server, so that by now the number may be another process's. The descriptor stands for the one
	// that is looked at.
	fd, err := unix.PidfdOpen(pid, 0)
	ts.Check(err)
	defer unix.Close(fd)
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	ts.Check(err)
	if !slices.Contains(strings.Split(string(environ), "\x00"), "DM_HOME="+ts.Getenv("DM_HOME")) {
		ts.Fatalf("process %d is not this script's server", pid)
	}
	ts.Check(unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0))
	for range 3000 {
		if errors.Is(unix.PidfdSendSignal(fd, 0, nil, 0), unix.ESRCH) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	ts.Fatalf("server %d does not go", pid)
}
