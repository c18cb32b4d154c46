package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"dm/internal/e2e/causal"
	"dm/internal/e2e/posix"
)

func TestMain(m *testing.M) {
	runWatchdog()
	causal.RunWorker()
	posix.RunHelper()
	os.Exit(runTests(m))
}

// binaryEnv names the binary under test. TestMain sets it when it has built one.
const binaryEnv = "DM_BINARY"

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("/tmp", "dme2e")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	var clean func()
	if err == nil {
		clean, err = startWatchdog(dir)
	}
	if err == nil {
		defer clean()
		err = os.Setenv(runEnv, dir)
	}
	if err == nil && os.Getenv(binaryEnv) == "" {
		err = build(filepath.Join(dir, "dm"))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	if err := stopEngine(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

func build(dm string) error {
	cmd := exec.Command("go", "build", "-o", dm, "dm/cmd/dm")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build dm: %w\n%s", err, out)
	}
	return os.Setenv(binaryEnv, dm)
}

// number returns the number in an environment variable, or otherwise.
func number(t *testing.T, name string, otherwise int) int {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return otherwise
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 {
		t.Fatalf("%s=%q is no number", name, s)
	}
	return n
}
