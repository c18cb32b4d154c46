# Every command of this repository is here; continuous integration calls it (.ci/run). Nothing to install but Go.
#
#   make demo      the product's story on a server of its own, which ends by itself and leaves nothing behind
#   make test      installs what the tests need from Debian's packages, then runs all tests
#   make check     formatting, vet, staticcheck, house rules; seconds when cached
#   make bench     speed: beside restic and borg, the host's filesystem and other FUSE filesystems
#   make fmt       formats all Go files as make check wants them
#   make soak      the crash and random tests with many more rounds
#   make install   the binary and the systemd unit; PREFIX, DESTDIR

PREFIX  ?= /usr/local
DESTDIR ?=
UNITDIR ?= $(PREFIX)/lib/systemd/system

BUILD   := CGO_ENABLED=0 go build -trimpath -buildvcs=auto
TOOL    := go tool -modfile=tools/go.mod
# A hang prints its stacks instead of waiting for somebody to kill it.
TIMEOUT ?= 40m
# Packages whose tests mount, start servers and load the machine: two at a time is what two cores can take.
TESTFLAGS ?= -p 2

.PHONY: build demo test fmt check deps s3servers bench soak install docs clean

build:
	$(BUILD) -o bin/dm ./cmd/dm

demo: build
	go run ./internal/demo -dm bin/dm

test: deps s3servers
	go test $(TESTFLAGS) -timeout $(TIMEOUT) ./...

# The tests' own needs from Debian, one package a line; apt is asked only when one is missing.
deps:
	@sh tools/deps.sh internal/e2e/packages.txt

# The S3 servers that tests start, built from source into the build cache of the go command (no Debian package has one).
# versitygw is the one for make test: two to three and a half minutes of CPU with an empty cache. MinIO, four minutes, joins it in make soak.
DM_S3_SERVERS ?= versitygw
s3servers:
	@for s in $(DM_S3_SERVERS); do CGO_ENABLED=0 go tool -modfile=tools/$$s.mod -n $$s >/dev/null || exit 1; done

check:
	@bad=$$($(TOOL) gofumpt -l $$(git ls-files -co --exclude-standard '*.go')); test -z "$$bad" || { echo "run make fmt, for: $$bad"; exit 1; }
	go vet ./...
	$(TOOL) staticcheck -checks inherit,-SA4023 ./...
	go test ./internal/policy

fmt:
	$(TOOL) gofumpt -w $$(git ls-files -co --exclude-standard '*.go')

# One part alone, smaller: make bench BENCHFLAGS='-parts fs -reps 1 -seconds 1'. The figures go into docs/performance.md.
bench: build
	@sh tools/deps.sh internal/bench/packages.txt
	go build -o bin/dm-bench ./internal/bench
	bin/dm-bench -dm bin/dm $(BENCHFLAGS)

soak: DM_S3_SERVERS = versitygw minio
soak: deps s3servers
	DM_S3_SERVERS='$(DM_S3_SERVERS)' DM_ROUNDS=200 DM_COMMITS=1000 DM_STACK_ROUNDS=50 go test $(TESTFLAGS) -count=1 -timeout 300m ./...

install: build
	install -D -m 0755 bin/dm $(DESTDIR)$(PREFIX)/bin/dm
	sed 's|@PREFIX@|$(PREFIX)|g' cmd/dm/dm.service.in | install -D -m 0644 /dev/stdin $(DESTDIR)$(UNITDIR)/dm.service

# The reference of the command line, from the commands themselves; a test says when it is stale.
docs:
	go run ./cmd/dm docs > docs/cli.md

clean:
	rm -rf bin
