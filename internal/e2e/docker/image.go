package docker

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
)

// Image is what an image is made of beside the links and directories that all have.
type Image struct {
	Dirs    []Dir
	Files   []File
	Copies  []string // files and directories of the host, with their content
	Changes []string // instructions such as `CMD ["/run.sh"]`
}

// Dir is a directory.
type Dir struct {
	Path string
	Mode int64
	User string // of the host's /etc/passwd, with its group; "" is root
}

// File is a file.
type File struct {
	Path string
	Mode int64
	User string
	Text string
}

// Flags returns what a container of such an image needs at `docker run`.
func Flags() []string { return []string{"--network", "none", "-v", "/usr:/usr:ro"} }

// MakeImage makes an image by the name.
func (e *Engine) MakeImage(name string, img Image) error {
	var archive bytes.Buffer
	w := &imageWriter{w: tar.NewWriter(&archive), made: map[string]bool{}}
	w.base()
	for _, d := range img.Dirs {
		w.dir(d)
	}
	for _, c := range img.Copies {
		w.copy(c)
	}
	for _, f := range img.Files {
		w.file(f)
	}
	if w.err == nil {
		w.err = w.w.Close()
	}
	if w.err != nil {
		return fmt.Errorf("make image %s: %w", name, w.err)
	}
	args := []string{"import"}
	for _, c := range append([]string{"ENV " + Mark + "=" + e.dir + "/"}, img.Changes...) {
		args = append(args, "--change", c)
	}
	_, err := e.Exec(archive.Bytes(), client(), append(args, "-", name)...)
	return err
}

// imageWriter writes the archive of an image; after a first error nothing more.
type imageWriter struct {
	w    *tar.Writer
	made map[string]bool
	err  error
}

// base writes what every image has.
func (w *imageWriter) base() {
	for _, d := range []string{"/usr", "/proc", "/sys", "/dev", "/etc", "/run", "/root", "/var", "/var/lib", "/var/log"} {
		w.dir(Dir{Path: d, Mode: 0o755})
	}
	w.dir(Dir{Path: "/tmp", Mode: 0o1777})
	for _, link := range []string{"bin", "sbin", "lib", "lib64"} {
		w.write(&tar.Header{Typeflag: tar.TypeSymlink, Name: link, Linkname: "usr/" + link, Mode: 0o777}, nil)
	}
	for _, f := range []string{"/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/ld.so.cache", "/etc/alternatives", "/etc/services"} {
		w.copy(f)
	}
}

func (w *imageWriter) write(h *tar.Header, data []byte) {
	if w.err != nil {
		return
	}
	h.Name = strings.TrimPrefix(h.Name, "/")
	h.Format = tar.FormatPAX
	h.Size = int64(len(data))
	if w.err = w.w.WriteHeader(h); w.err == nil {
		_, w.err = w.w.Write(data)
	}
}

// parents makes the directories above p that are not there yet.
func (w *imageWriter) parents(p string) {
	if dir := path.Dir(p); dir != "/" && dir != "." && !w.made[dir] {
		w.dir(Dir{Path: dir, Mode: 0o755})
	}
}

func (w *imageWriter) dir(d Dir) {
	w.parents(d.Path)
	w.made[d.Path] = true
	uid, gid := w.owner(d.User)
	w.write(&tar.Header{Typeflag: tar.TypeDir, Name: d.Path + "/", Mode: d.Mode, Uid: uid, Gid: gid}, nil)
}

func (w *imageWriter) file(f File) {
	w.parents(f.Path)
	uid, gid := w.owner(f.User)
	w.write(&tar.Header{Typeflag: tar.TypeReg, Name: f.Path, Mode: f.Mode, Uid: uid, Gid: gid}, []byte(f.Text))
}

// copy takes in a file or directory of the host as root's.
func (w *imageWriter) copy(from string) {
	if w.err != nil {
		return
	}
	w.parents(from)
	err := filepath.Walk(from, func(p string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		switch {
		case info.IsDir():
			w.dir(Dir{Path: p, Mode: int64(info.Mode().Perm())})
		case info.Mode()&os.ModeSymlink != 0:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			w.write(&tar.Header{Typeflag: tar.TypeSymlink, Name: p, Linkname: target, Mode: 0o777}, nil)
		case info.Mode().IsRegular():
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			w.file(File{Path: p, Mode: int64(info.Mode().Perm()), Text: string(data)})
		}
		return w.err
	})
	if w.err == nil {
		w.err = err
	}
}

// owner returns the ids of a user of the host.
func (w *imageWriter) owner(user string) (uid, gid int) {
	if user == "" || w.err != nil {
		return 0, 0
	}
	text, err := os.ReadFile("/etc/passwd")
	if err != nil {
		w.err = err
		return 0, 0
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) < 4 || f[0] != user {
			continue
		}
		uid, err1 := strconv.Atoi(f[2])
		gid, err2 := strconv.Atoi(f[3])
		if err1 == nil && err2 == nil {
			return uid, gid
		}
	}
	w.err = fmt.Errorf("no user %s on this host", user)
	return 0, 0
}

// Names returns the names of the running containers in order.
func (e *Engine) Names() ([]string, error) {
	out, err := e.Run("ps", "--format", "{{.Names}}")
	names := strings.Fields(out)
	sort.Strings(names)
	return names, err
}
