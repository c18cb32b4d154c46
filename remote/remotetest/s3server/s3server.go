// Package s3server starts real S3 servers for tests, on a port of the loopback of their own, with their data in a temporary
// directory, and ends them by their process id. The programs are tools of this module (tools/versitygw.mod, tools/minio.mod), which
// the go command builds when they are first used and keeps in its build cache.
//
// The environment variable DM_S3_SERVERS lists the servers that tests run against. Default is versitygw alone: it takes
// two minutes of CPU to build, MinIO four, and both keep the same promises. make soak uses both.
package s3server

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"dm/internal/loopback"
)

// What every server is started with.
const (
	AccessKey = "dmtestkey"
	SecretKey = "dmtestsecretkey"
	Region    = "us-east-1"
)

// Names lists the servers to test against.
func Names() []string {
	if s := strings.Fields(os.Getenv("DM_S3_SERVERS")); len(s) > 0 {
		return s
	}
	return []string{"versitygw"}
}

// Start starts the server of that name, which runs until the test ends, and returns its HOST:PORT. It has no buckets yet.
func Start(t testing.TB, name string) (addr string) {
	t.Helper()
	program := build(t, name)
	dir := t.TempDir()
	data := filepath.Join(dir, "data")
	if err := os.Mkdir(data, 0o700); err != nil {
		t.Fatal(err)
	}
	addr = loopback.Address(t)
	var cmd *exec.Cmd
	switch name {
	case "versitygw":
		cmd = exec.Command(program, "--port", addr, "--quiet", "posix", data)
		cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+AccessKey, "ROOT_SECRET_KEY="+SecretKey)
	case "minio":
		cmd = exec.Command(program, "server", "--quiet", "--address", addr, data)
		cmd.Env = append(os.Environ(), "MINIO_ROOT_USER="+AccessKey, "MINIO_ROOT_PASSWORD="+SecretKey, "HOME="+dir)
	default:
		t.Fatalf("DM_S3_SERVERS has %q; known are versitygw and minio", name)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			b, _ := os.ReadFile(log.Name())
			t.Logf("%s said:\n%.4000s", name, b)
		}
		log.Close()
	})
	await(t, addr)
	return addr
}

// MakeBucket makes a bucket: a PUT of its name, signed with the version 4 of Amazon's signatures.
func MakeBucket(t testing.TB, addr, bucket string) {
	t.Helper()
	req, err := http.NewRequest(http.MethodPut, "http://"+addr+"/"+bucket, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	sign(req, time.Now().UTC())
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		t.Fatalf("make bucket %s: %s\n%s", bucket, resp.Status, b)
	}
}

// sign signs a request without a body or query.
func sign(req *http.Request, now time.Time) {
	hash := func(s string) string { sum := sha256.Sum256([]byte(s)); return hex.EncodeToString(sum[:]) }
	mac := func(key []byte, s string) []byte {
		h := hmac.New(sha256.New, key)
		h.Write([]byte(s))
		return h.Sum(nil)
	}
	date, day, empty := now.Format("20060102T150405Z"), now.Format("20060102"), hash("")
	req.Header.Set("X-Amz-Date", date)
	req.Header.Set("X-Amz-Content-Sha256", empty)
	const signed = "host;x-amz-content-sha256;x-amz-date"
	canonical := fmt.Sprintf("%s\n%s\n\nhost:%s\nx-amz-content-sha256:%s\nx-amz-date:%s\n\n%s\n%s",
		req.Method, req.URL.Path, req.URL.Host, empty, date, signed, empty)
	scope := day + "/" + Region + "/s3/aws4_request"
	key := []byte("AWS4" + SecretKey)
	for _, part := range strings.Split(scope, "/") {
		key = mac(key, part)
	}
	signature := hex.EncodeToString(mac(key, "AWS4-HMAC-SHA256\n"+date+"\n"+scope+"\n"+hash(canonical)))
	req.Header.Set("Authorization", fmt.Sprintf("AWS4-HMAC-SHA256 Credential=%s/%s, SignedHeaders=%s, Signature=%s",
		AccessKey, scope, signed, signature))
}

// build returns the server's program.
func build(t testing.TB, name string) string {
	t.Helper()
	_, here, _, _ := runtime.Caller(0)
	root := filepath.Join(filepath.Dir(here), "../../..")
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "tool", "-modfile="+filepath.Join("tools", name+".mod"), "-n", name)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("build %s: %v\n%s", name, err, stderr.Bytes())
	}
	return strings.TrimSpace(string(out))
}

// await waits until the server answers requests, with whatever status but that it is starting.
func await(t testing.TB, addr string) {
	t.Helper()
	client := http.Client{Timeout: 2 * time.Second}
	var last string
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		resp, err := client.Get(fmt.Sprintf("http://%s/", addr))
		if err != nil {
			last = err.Error()
			continue
		}
		resp.Body.Close()
		if last = resp.Status; resp.StatusCode < 500 {
			return
		}
	}
	t.Fatalf("the server at %s does not come up: %s", addr, last)
}
