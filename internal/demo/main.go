// Command demo plays dm's story on a server of its own and proves each step: three services write to three subdots of one
// dot, each with a different kind of database, while dm commits, branches and goes back.
//
// It needs the dm binary, root and /dev/fuse, and nothing else. It ends by itself and leaves nothing behind.
//
//	main.go       the story
//	stage.go      the temporary server, running commands, proofs
//	services.go   the three databases: bbolt (a B+tree written in place), an append-only log, a file replaced by rename
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// limit bounds the whole demo.
const limit = time.Minute

func main() { os.Exit(run()) }

func run() int {
	dm := flag.String("dm", "bin/dm", "the dm program")
	service := flag.String("service", "", "run as the service of this kind (used by the demo itself)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if *service != "" {
		return serve(ctx, *service, flag.Arg(0))
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := play(ctx, *dm); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		return 1
	}
	return 0
}

// play runs the story. Whatever happens, it takes everything away that it made.
func play(ctx context.Context, dm string) (err error) {
	s, err := newStage(dm)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := s.close(); err == nil {
			err = cerr
		}
	}()
	for _, act := range []func(context.Context, *stage) error{begin, commit, change, branch, back} {
		if err := act(ctx, s); err != nil {
			return err
		}
	}
	s.say("Every database is in exactly the committed state. The demo ends here and takes its server away.")
	return nil
}

func begin(ctx context.Context, s *stage) error {
	s.say("A server with a state directory of its own, and a dot with three subdots: one for each service.")
	if err := s.dm(ctx, "cluster", "init"); err != nil {
		return err
	}
	if err := s.dm(ctx, "init", "shop", kinds()[0], kinds()[1], kinds()[2]); err != nil {
		return err
	}
	if err := s.dm(ctx, "path", "shop"); err != nil {
		return err
	}
	s.say("Three services start, each with its database in its subdot, and write all the time.")
	if err := s.startServices(ctx); err != nil {
		return err
	}
	return s.awaitWrites(ctx, 50)
}

func commit(ctx context.Context, s *stage) error {
	s.say("One commit takes the state of all three at one instant, while they go on writing.")
	if err := s.dm(ctx, "commit", "-m", "fifty orders", "-d", "ticket=42"); err != nil {
		return err
	}
	s.say("The services stop. A commit of what they have written by now; its content is noted for the proof at the end.")
	if err := s.stopServices(); err != nil {
		return err
	}
	if err := s.dm(ctx, "commit", "-m", "before the migration"); err != nil {
		return err
	}
	if err := s.dm(ctx, "tag", "good"); err != nil {
		return err
	}
	return s.note()
}

func change(ctx context.Context, s *stage) error {
	s.say("The services run again, and write what nobody has committed.")
	if err := s.startServices(ctx); err != nil {
		return err
	}
	if err := s.awaitWrites(ctx, 30); err != nil {
		return err
	}
	if err := s.stopServices(); err != nil {
		return err
	}
	for _, args := range [][]string{{"list"}, {"status"}, {"diff"}} {
		if err := s.dm(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

func branch(ctx context.Context, s *stage) error {
	s.say("A branch for an experiment that destroys everything. The uncommitted writes stay with master.")
	if err := s.dm(ctx, "checkout", "-b", "experiment"); err != nil {
		return err
	}
	if err := s.destroy(); err != nil {
		return err
	}
	for _, args := range [][]string{{"diff"}, {"checkout", "master"}, {"branch"}} {
		if err := s.dm(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

func back(ctx context.Context, s *stage) error {
	s.say("Back on master, the uncommitted writes are dropped: back to the state before the migration.")
	if err := s.dm(ctx, "reset", "--hard", "good"); err != nil {
		return err
	}
	for _, args := range [][]string{{"log"}, {"list"}} {
		if err := s.dm(ctx, args...); err != nil {
			return err
		}
	}
	s.say("The proof: each database opens, passes its own check, and has the content that was noted.")
	if err := s.prove(); err != nil {
		return err
	}
	s.say("The first commit was taken while all three wrote. Looked at read-only, copied aside and opened, each is whole.")
	return s.proveRunning(ctx)
}
