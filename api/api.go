// Package api is what dm's command line says to dm's local server.
//
// It is HTTP/1.1 over a unix socket that only its owner can open. Every operation is one request:
//
//	POST /v1/<operation>      JSON body: the operation's Request type
//	Dm-Version: <version>     on requests and replies, for messages only
//
// A path that does not begin with /v1/ is another, incompatible version of this API; a server answers it with a message
// that says which side is too old. The reply is one of
//
//	application/x-ndjson        a stream of Messages: any number of progress and items, then one result or error
//	application/octet-stream    the bytes themselves (cat, export); the trailer Dm-Error tells of a failure on the way,
//	                            Dm-Result what there is to know of them at their end, in JSON
//	application/json            an Error, with the HTTP status of its kind: nothing was streamed yet
//
// Cancelling a request closes its connection, which cancels the operation on the server.
//
// The types here are the whole contract; the server's own types do not cross the socket.
package api

import "runtime/debug"

// Version is the version of this build of dm.
const Version = "0.1.0"

// PathPrefix begins the path of every operation and names the version of this API.
const PathPrefix = "/v1/"

// SocketName is the file name of the socket in a server's state directory.
const SocketName = "dm.sock"

// HTTP header and trailer names.
const (
	VersionHeader = "Dm-Version"
	ErrorTrailer  = "Dm-Error"
	ResultTrailer = "Dm-Result"
)

// MaxRequest is the longest request body a server reads, in bytes.
const MaxRequest = 8 << 20

// Revision returns the version control revision this binary was built from, or "" where the build does not know it.
func Revision() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	rev, dirty := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision" && len(s.Value) > 12:
			rev = s.Value[:12]
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "+"
		}
	}
	if rev == "" {
		return ""
	}
	return rev + dirty
}
