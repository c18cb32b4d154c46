package api

import (
	"os"
	"path/filepath"
	"strconv"
)

// maxSocketPath is the longest path that fits a sockaddr_un, in bytes, without its final NUL.
const maxSocketPath = 107

// SocketName is the file name of the socket in a server's state directory.
const SocketName = "dm.sock"

// ShortSocketPath returns a name for the socket at path that fits a sockaddr_un however long path is: where needed it
// goes through /proc/self/fd of the directory, which release closes. The name is good only within this process.
func ShortSocketPath(path string) (short string, release func(), err error) {
	if len(path) <= maxSocketPath {
		return path, func() {}, nil
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return "", nil, err
	}
	short = filepath.Join("/proc/self/fd", strconv.Itoa(int(dir.Fd())), filepath.Base(path))
	return short, func() { dir.Close() }, nil
}
