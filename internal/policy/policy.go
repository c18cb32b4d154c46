// Package policy holds the house rules of this repository as tests. A message says what to do instead.
//
// The rules are about what no compiler checks: which package may import which (the architecture), one word for one
// thing (the glossary), shape (files, init functions), and that what is generated is fresh.
package policy
