// Package e2e holds the proofs that dm as a whole keeps its promises: the built binary, a server on a state directory of
// its own, real mounts, real database servers, real processes that are killed.
//
// All of its code is tests. What they are made of has packages of its own, each of which is tested against a plain
// directory of the host first, so that a failure here is a failure of dm and not of its harness:
//
//	tree      any tree of files, and an exact comparison of two
//	fsx       random operations on files, done on two filesystems at once
//	causal    steps in a known order over many files, and a checker that finds a state that never was
//	posix     a table of what Linux promises of system calls on a filesystem
//	docker    a Docker engine of its own, and images without a registry
//	sockshop  five services of a compose file, and what a user does with each
//	dbs       database servers, clients that log what was acknowledged, and a verification of what is left
//	watchdog  takes away what a killed run has left
//
// The tests leave no process, mount, loop device or file behind, pass, fail or killed. Environment:
//
//	DM_BINARY  a built dm to test instead of one built from this tree
//	DM_ROUNDS  rounds of the crash test, instead of as many as fit continuous integration
//	DM_STACK_ROUNDS  the same for five services in containers, whose rounds take half a minute
//	DM_COMMITS commits of the causality test, likewise
//	DM_FILES   files of the test of many small files
//	DM_SEED    seed of random tests, printed by a failing run
package e2e
