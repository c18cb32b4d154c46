package policy

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const root = "../.."

// mayImport is the architecture: the packages of this module that each package may import. A package that is not here
// fails the test: enter it, and its place in ARCHITECTURE.md, together.
//
// "..." stands for a package and all below it that has no entry of its own.
func mayImport() map[string][]string {
	return map[string][]string{
		"internal/errs":       {},
		"chunker":             {},
		"dockervol":           {"internal/errs", "internal/unixsock"},
		"internal/policy":     {},
		"internal/powercut":   {},
		"internal/loopback":   {},
		"internal/background": {},
		"internal/durable":    {"internal/errs"},
		"internal/unixsock":   {},
		"object":              {"internal/errs"},
		"store/pack":          {"object", "internal/background", "internal/errs"},
		"workcopy":            {"object", "internal/durable", "internal/errs"},
		"store":               {"object", "store/pack", "internal/durable", "internal/errs"},
		"fusefs":              {"workcopy", "internal/errs"},
		"remote/...":          {"object", "store/pack", "remote/...", "internal/errs", "internal/durable"},
		"remote/remotetest":   {"object", "store", "store/pack", "remote", "internal/errs"},
		"remote/remotetest/s3server": {
			"internal/loopback",
		},
		"dot": {"object", "chunker", "store", "workcopy", "internal/background", "internal/durable", "internal/errs"},
		"hub": {
			"object", "store", "store/pack", "remote", "remote/bucket", "remote/hubproto", "remote/s3", "internal/errs", "internal/durable",
		},
		"api": {"internal/errs", "internal/unixsock"},
		"daemon": {
			"api", "chunker", "dockervol", "dot", "fusefs", "internal/background", "internal/durable", "internal/errs", "internal/unixsock", "object", "remote/...",
			"store", "store/pack", "workcopy",
		},
		"cmd/dm":           {"api", "daemon", "hub", "remote/hubproto", "internal/durable", "internal/errs"},
		"internal/demo":    {},
		"internal/e2e/...": {"internal/e2e/..."},
		"internal/bench":   {"internal/e2e/...", "chunker", "object", "store/pack"},
	}
}

// owns is third-party packages that one package alone may import, so that they stay replaceable.
func owns() map[string]string {
	return map[string]string{
		"github.com/hanwen/go-fuse/":  "fusefs",
		"github.com/spf13/cobra":      "cmd/dm",
		"github.com/minio/minio-go/":  "remote/s3",
		"github.com/moby/moby/client": "daemon",
	}
}

// file is one parsed Go file of the module.
type file struct {
	path string // from the root
	pkg  string // its directory from the root
	test bool
	ast  *ast.File
	src  string
}

func files(t *testing.T) ([]file, *token.FileSet) {
	t.Helper()
	fset := token.NewFileSet()
	var all []file
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); path != root && (strings.HasPrefix(name, ".") || name == "testdata" || name == "tools" || name == "bin") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		src, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(fset, path, src, parser.ParseComments)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		all = append(all, file{
			path: rel, pkg: filepath.Dir(rel), test: strings.HasSuffix(path, "_test.go"), ast: f, src: string(src),
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 20 {
		t.Fatalf("only %d Go files found: the test looks in the wrong place", len(all))
	}
	return all, fset
}

// match says whether a package is what a table's entry stands for.
func match(entry, pkg string) bool {
	if base, ok := strings.CutSuffix(entry, "/..."); ok {
		return pkg == base || strings.HasPrefix(pkg, base+"/")
	}
	return entry == pkg
}

func allowedFor(pkg string) ([]string, bool) {
	if allowed, ok := mayImport()[pkg]; ok {
		return allowed, true
	}
	for entry, allowed := range mayImport() {
		if match(entry, pkg) {
			return allowed, true
		}
	}
	return nil, false
}

func imports(f file) []string {
	var all []string
	for _, spec := range f.ast.Imports {
		path, err := strconv.Unquote(spec.Path.Value)
		if err == nil {
			all = append(all, path)
		}
	}
	return all
}

// TestHouseRules parses the module once and holds every rule against it.
func TestHouseRules(t *testing.T) {
	all, fset := files(t)
	for name, rule := range map[string]func(*testing.T, []file, *token.FileSet){
		"imports follow the architecture":       importsFollowTheArchitecture,
		"every package says what it is":         everyPackageSaysWhatItIs,
		"shape":                                 shape,
		"no mutable globals":                    noMutableGlobals,
		"nothing is left for later":             nothingIsLeftForLater,
		"one word for one thing":                oneWordForOneThing,
		"nobody ends the process":               nobodyEndsTheProcess,
		"errors are wrapped with what was done": errorsAreWrappedWithWhatWasDone,
	} {
		t.Run(name, func(t *testing.T) { rule(t, all, fset) })
	}
}

func importsFollowTheArchitecture(t *testing.T, all []file, _ *token.FileSet) {
	for _, f := range all {
		allowed, known := allowedFor(f.pkg)
		if !known {
			t.Errorf("%s: package %s is not in the table of imports; enter it with what it may import", f.path, f.pkg)
			continue
		}
		if f.test {
			continue // a test may use what it needs to see its package from outside
		}
		for _, path := range imports(f) {
			if own, ok := strings.CutPrefix(path, "dm/"); ok {
				if !slices.ContainsFunc(allowed, func(entry string) bool { return match(entry, own) }) {
					t.Errorf("%s: %s may not import %s: declare a small interface where it is used, or move the code", f.path, f.pkg, own)
				}
			}
			for prefix, owner := range owns() {
				if strings.HasPrefix(path, prefix) && f.pkg != owner && !strings.HasPrefix(f.pkg, "internal/") {
					t.Errorf("%s: only %s may import %s", f.path, owner, path)
				}
			}
		}
	}
}

func everyPackageSaysWhatItIs(t *testing.T, all []file, _ *token.FileSet) {
	said := map[string]bool{}
	for _, f := range all {
		if f.test {
			continue
		}
		said[f.pkg] = said[f.pkg] || f.ast.Doc != nil && len(f.ast.Doc.Text()) > 60
	}
	for pkg, ok := range said {
		if !ok {
			t.Errorf("package %s has no package comment: say what it is, why, and its layout", pkg)
		}
	}
}

const maxLines = 700

func shape(t *testing.T, all []file, fset *token.FileSet) {
	for _, f := range all {
		if n := strings.Count(f.src, "\n"); n > maxLines {
			t.Errorf("%s has %d lines, more than %d: split it by ideas", f.path, n, maxLines)
		}
		for _, d := range f.ast.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				t.Errorf("%s: no init functions: make it a function that somebody calls", fset.Position(fn.Pos()))
			}
		}
		if base := filepath.Base(f.pkg); base == "util" || base == "utils" || base == "common" || base == "types" || base == "helpers" {
			t.Errorf("%s: a package is named after its idea, not %s", f.path, base)
		}
	}
}

// A global that can change makes two servers in one process disturb each other.
func noMutableGlobals(t *testing.T, all []file, fset *token.FileSet) {
	for _, f := range all {
		if f.test {
			continue
		}
		for _, d := range f.ast.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.VAR {
				continue
			}
			for _, spec := range g.Specs {
				v := spec.(*ast.ValueSpec)
				for i, name := range v.Names {
					var value ast.Expr
					if i < len(v.Values) {
						value = v.Values[i]
					}
					if name.Name != "_" && !constantLike(value) && !assignedOnce(all, f, name.Name) {
						t.Errorf("%s: global %s is changed: make it a field of what uses it", fset.Position(name.Pos()), name.Name)
					}
				}
			}
		}
	}
}

// constantLike says whether a global is one of the values that Go has no constants for.
func constantLike(v ast.Expr) bool {
	call, ok := v.(*ast.CallExpr)
	if !ok {
		return false
	}
	sel, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	x, ok := sel.X.(*ast.Ident)
	return ok && (x.Name == "errors" && sel.Sel.Name == "New" || x.Name == "regexp" && sel.Sel.Name == "MustCompile")
}

// assignedOnce says whether nothing in the package assigns to a global, takes its address or changes what it holds. A
// local variable of the same name counts as the global: name it otherwise.
func assignedOnce(all []file, of file, name string) bool {
	once := true
	is := func(e ast.Expr) bool {
		for {
			switch x := e.(type) {
			case *ast.IndexExpr:
				e = x.X
			case *ast.Ident:
				return x.Name == name
			default:
				return false
			}
		}
	}
	for _, f := range all {
		if f.pkg != of.pkg || f.test {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			switch s := n.(type) {
			case *ast.AssignStmt:
				if s.Tok != token.DEFINE {
					once = once && !slices.ContainsFunc(s.Lhs, is)
				}
			case *ast.IncDecStmt:
				once = once && !is(s.X)
			case *ast.UnaryExpr:
				once = once && (s.Op != token.AND || !is(s.X))
			}
			return once
		})
	}
	return once
}

func nothingIsLeftForLater(t *testing.T, all []file, _ *token.FileSet) {
	marks := regexp.MustCompile(`\b(TODO|FIXME|XXX|HACK)\b`)
	skips := regexp.MustCompile(`\b[tb]\.Skip(f|Now)?\(`)
	for _, f := range all {
		if f.pkg == "internal/policy" {
			continue
		}
		for i, line := range strings.Split(f.src, "\n") {
			if m := marks.FindString(line); m != "" {
				t.Errorf("%s:%d: %s: do it, or write down in ARCHITECTURE.md why not", f.path, i+1, m)
			}
			if skips.MatchString(line) {
				t.Errorf("%s:%d: a test that can skip itself proves nothing: let make deps provide what it needs", f.path, i+1)
			}
		}
	}
}

// synonyms is words that dm has another word for. They are looked for in identifiers and in what users read.
func synonyms() map[string]string {
	return map[string]string{
		"snapshot of a dot": "commit",
		"datadot":           "dot",
		"microdot":          "dot",
		"filesystem clone":  "branch",
		"repository":        "store or remote",
		"blob":              "chunk or object",
		"manifest":          "chunk list or tree",
		"changeset":         "commit",
		"checkpoint":        "commit",
	}
}

func oneWordForOneThing(t *testing.T, all []file, _ *token.FileSet) {
	for _, f := range all {
		if f.pkg == "internal/policy" || match("internal/e2e/...", f.pkg) {
			continue // tests of other programs speak those programs' words
		}
		low := strings.ToLower(f.src)
		for bad, good := range synonyms() {
			if i := strings.Index(low, bad); i >= 0 {
				t.Errorf("%s:%d: %q: dm's word is %s", f.path, 1+strings.Count(f.src[:i], "\n"), bad, good)
			}
		}
	}
}

// Only the program's main may end the process, and only fmt's callers that own a stream may print.
func nobodyEndsTheProcess(t *testing.T, all []file, fset *token.FileSet) {
	for _, f := range all {
		if f.test || f.ast.Name.Name == "main" || match("internal/e2e/...", f.pkg) {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			sel, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			x, ok := sel.X.(*ast.Ident)
			if !ok {
				return true
			}
			switch name := x.Name + "." + sel.Sel.Name; name {
			case "os.Exit", "log.Fatal", "log.Fatalf", "log.Fatalln":
				t.Errorf("%s: %s: return an error", fset.Position(call.Pos()), name)
			case "fmt.Print", "fmt.Printf", "fmt.Println":
				t.Errorf("%s: %s: write to a stream you were given", fset.Position(call.Pos()), name)
			}
			return true
		})
	}
}

func errorsAreWrappedWithWhatWasDone(t *testing.T, all []file, _ *token.FileSet) {
	bad := regexp.MustCompile(`"([^"\n]*: )?(failed to|unable to|could not|error while)\b[^"\n]*%w`)
	for _, f := range all {
		if f.test {
			continue
		}
		for i, line := range strings.Split(f.src, "\n") {
			if bad.MatchString(line) {
				t.Errorf("%s:%d: wrap with a verb phrase, \"read pack %%s: %%w\", which chains", f.path, i+1)
			}
		}
	}
}
