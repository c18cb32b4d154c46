package dot

import (
	"regexp"
	"strings"

	"dm/internal/errs"
)

// DefaultSubdot is the subdot that is meant where none is named.
const DefaultSubdot = "__default__"

// RootSubdot stands for the whole dot where a subdot is expected.
const RootSubdot = "__root__"

// DefaultNamespace is the user's own namespace. It is not shown.
const DefaultNamespace = "admin"

// DefaultBranch is the branch a new dot starts with.
const DefaultBranch = "master"

var nameRE = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,64}$`)

// Name says which dot, and where it matters which branch and subdot of it, a user means.
type Name struct {
	Namespace string // never empty once parsed
	Dot       string
	Branch    string // empty: the current one
	Subdot    string // empty: none named
}

// ParseName reads `[namespace/]dot[@branch][.subdot]`. An error names the part that is wrong.
func ParseName(s string) (Name, error) {
	n := Name{Namespace: DefaultNamespace}
	rest := s
	if ns, after, ok := strings.Cut(rest, "/"); ok {
		if err := CheckName("namespace", ns); err != nil {
			return Name{}, err
		}
		n.Namespace, rest = ns, after
	}
	rest, subdot, hasSubdot := strings.Cut(rest, ".")
	rest, branch, hasBranch := strings.Cut(rest, "@")
	if err := CheckName("dot", rest); err != nil {
		return Name{}, err
	}
	n.Dot = rest
	if hasBranch {
		if err := CheckName("branch", branch); err != nil {
			return Name{}, err
		}
		n.Branch = branch
	}
	if hasSubdot {
		if err := CheckName("subdot", subdot); err != nil {
			return Name{}, err
		}
		n.Subdot = subdot
	}
	return n, nil
}

// CheckName says whether name can be the name of a what: a namespace, dot, branch, subdot or tag.
func CheckName(what, name string) error {
	if nameRE.MatchString(name) {
		return nil
	}
	return errs.New(errs.Usage, "invalid %s name '%s': use letters, digits, '_' and '-', at most 64", what, name)
}

// CheckNew is CheckName for what is about to be made. It refuses names that CheckName lets pass, because they may be stored
// already, but that are in their user's way: a name that begins with '-' is taken for a flag, and HEAD is always the last
// commit.
func CheckNew(what, name string) error {
	if err := CheckName(what, name); err != nil {
		return err
	}
	switch {
	case strings.HasPrefix(name, "-"):
		return errs.New(errs.Usage, "invalid %s name '%s': it must not begin with '-'", what, name)
	case name == "HEAD" && (what == "branch" || what == "tag"):
		return errs.New(errs.Usage, "invalid %s name 'HEAD': that always means the last commit of a branch", what)
	}
	return nil
}

// String returns the name as a user types it: the own namespace is left out.
func (n Name) String() string {
	s := n.DotName()
	if n.Branch != "" {
		s += "@" + n.Branch
	}
	if n.Subdot != "" {
		s += "." + n.Subdot
	}
	return s
}

// DotName returns the name of the dot alone, as a user types it.
func (n Name) DotName() string {
	if n.Namespace == "" || n.Namespace == DefaultNamespace {
		return n.Dot
	}
	return n.Namespace + "/" + n.Dot
}

// ParseDotName reads `[namespace/]dot`, where a branch or subdot has no place.
func ParseDotName(s string) (Name, error) {
	n := Name{Namespace: DefaultNamespace, Dot: s}
	if ns, after, ok := strings.Cut(s, "/"); ok {
		if err := CheckName("namespace", ns); err != nil {
			return Name{}, err
		}
		n.Namespace, n.Dot = ns, after
	}
	return n, CheckName("dot", n.Dot)
}
