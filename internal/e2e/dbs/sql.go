package dbs

import (
	"bufio"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"syscall"
)

// clients is how many clients the tables are made for.
const clients = 8

// schema makes the tables of the SQL databases.
func schema() string {
	var b strings.Builder
	b.WriteString(`CREATE TABLE first (client INTEGER, n BIGINT, payload TEXT, PRIMARY KEY (client, n));
CREATE TABLE second (client INTEGER, n BIGINT, PRIMARY KEY (client, n));
CREATE TABLE counter (client INTEGER PRIMARY KEY, n BIGINT);
CREATE INDEX by_payload ON first (payload(20));
`)
	for c := range clients {
		fmt.Fprintf(&b, "INSERT INTO counter VALUES (%d, 0);\n", c)
	}
	return b.String()
}

// transaction returns the SQL of a client's transaction number n. Beside the three places that hold the number it
// rewrites an old row and an index entry, so that pages all over the files change.
func transaction(client int, n int64) string {
	payload := strings.Repeat(fmt.Sprintf("%x.", n*0x9e3779b9&0xffffffff), 1+int(n%60))
	return fmt.Sprintf("BEGIN; INSERT INTO first VALUES (%d, %d, '%s'); "+
		"UPDATE first SET payload = '%s' WHERE client = %d AND n = %d; "+
		"INSERT INTO second VALUES (%d, %d); UPDATE counter SET n = %d WHERE client = %d; COMMIT;",
		client, n, payload, payload[len(payload)/2:], client, 1+n*7919%n, client, n, n, client)
}

// stateQuery asks for a line a client with all its numbers, which must be equal.
const stateQuery = "SELECT c.client, c.n," +
	" (SELECT COUNT(*) FROM first f WHERE f.client = c.client), (SELECT COALESCE(MAX(n), 0) FROM first f WHERE f.client = c.client)," +
	" (SELECT COUNT(*) FROM second s WHERE s.client = c.client), (SELECT COALESCE(MAX(n), 0) FROM second s WHERE s.client = c.client)" +
	" FROM counter c WHERE c.n > 0 ORDER BY c.client;"

// shell is a database's command line client, fed with transactions through a pipe.
type shell struct {
	client int
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Reader
	errs   lockedBuffer
}

// newShell starts a client program as a user. Its standard output must come line by line, hence stdbuf.
func newShell(client int, as, name string, args ...string) (*shell, error) {
	cmd, err := command(as, "stdbuf", append([]string{"-oL", name}, args...)...)
	if err != nil {
		return nil, err
	}
	s := &shell{client: client, cmd: cmd}
	cmd.Stderr = &s.errs
	if s.in, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	s.out = bufio.NewReader(out)
	return s, cmd.Start()
}

// Commit sends a transaction and reads the acknowledgement, which the client program prints after the server's answer to
// COMMIT; it stops at the first error instead.
func (s *shell) Commit(n int64) error {
	if _, err := fmt.Fprintf(s.in, "%s SELECT %d;\n", transaction(s.client, n), n); err != nil {
		return fmt.Errorf("send transaction %d: %w %s", n, err, s.errs.tail())
	}
	line, err := s.out.ReadString('\n')
	if err != nil {
		return fmt.Errorf("await transaction %d: %w %s", n, err, s.errs.tail())
	}
	if strings.TrimSpace(line) != fmt.Sprint(n) {
		return fmt.Errorf("transaction %d was answered with %q", n, line)
	}
	return nil
}

// Close ends the client program, in whatever it is doing.
func (s *shell) Close() {
	syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL)
	s.in.Close()
	s.cmd.Wait()
}
