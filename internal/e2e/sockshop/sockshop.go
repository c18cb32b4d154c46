// Package sockshop is the stack of the containers' story: five services of Debian's packages as images of a test's own Docker
// engine, and what a user does with each through its own client.
//
// Each service keeps a list of numbered items. An item is written durably before its client returns, except that RabbitMQ
// keeps it in memory until it has nothing else to do: its client asks for no confirmation. The images behave like those of a
// registry: the first start on an empty directory makes the database, and the directory belongs to the service's user, who the
// container runs as.
package sockshop

import (
	"cmp"
	"fmt"
	"strings"

	"dm/internal/e2e/docker"
)

// Service is one service of testdata/sockshop/docker-compose.yml.
type Service struct {
	Name  string // in the compose file, and of the subdot
	Image string
	made  docker.Image
	rest  string // seconds between two items of a load; "" is loadRest
	write string // a shell command that writes item $i; it may be the first
	count string // a shell command that prints how many items there are
	wipe  string // a shell command that destroys what there is
}

// loadRest is how many seconds a load waits between two items.
const loadRest = "0.05"

// Services returns all services.
func Services() []Service {
	return []Service{mariadb(), postgres(), redis(), openldap(), rabbitmq()}
}

// MakeImages makes the images of all services.
func MakeImages(e *docker.Engine) error {
	for _, s := range Services() {
		if err := e.MakeImage(s.Image, s.made); err != nil {
			return err
		}
	}
	return nil
}

// Override is a second compose file, for images that have no programs of their own and an engine without networks; driver is
// the name of the volume driver.
func Override(driver string) string {
	var b strings.Builder
	b.WriteString("services:\n")
	for _, s := range Services() {
		fmt.Fprintf(&b, "  %s:\n    network_mode: none\n    volumes: [\"/usr:/usr:ro\"]\n", s.Name)
	}
	b.WriteString("volumes:\n")
	for _, s := range Services() {
		fmt.Fprintf(&b, "  sockshop.%s: {driver: %s}\n", s.Name, driver)
	}
	return b.String()
}

// Write returns the command that writes item i.
func (s Service) Write(i int) []string {
	return []string{"sh", "-c", fmt.Sprintf("i=%d; %s", i, s.write)}
}

// Count returns the command that prints the number of items. It fails as long as the service is not ready.
func (s Service) Count() []string { return []string{"sh", "-c", s.count} }

// Wipe returns the command that destroys all items.
func (s Service) Wipe() []string { return []string{"sh", "-c", s.wipe} }

// Load returns the command that writes items from the number on until the container is stopped, and notes the last that
// was written in a file that is not on the volume.
func (s Service) Load(from int) []string {
	return []string{"sh", "-c", fmt.Sprintf("i=%d; while %s; do echo $i > /tmp/acked.new; mv /tmp/acked.new /tmp/acked; i=$((i+1)); sleep %s; done",
		from, s.write, cmp.Or(s.rest, loadRest))}
}

// Acked returns the command that prints the last number that Load noted.
func (s Service) Acked() []string { return []string{"cat", "/tmp/acked"} }

// run is the program of an image.
func run(script string) docker.File {
	return docker.File{Path: "/run.sh", Mode: 0o755, Text: "#!/bin/sh\nset -e\n" + script + "\n"}
}

func changes(user string) []string { return []string{"USER " + user, `CMD ["/run.sh"]`} }

func mariadb() Service {
	const client = "mariadb --no-defaults --socket=/run/mysqld/s --user=root --batch --skip-column-names"
	return Service{
		Name: "catalogue-db", Image: "mariadb:10.11",
		made: docker.Image{
			Dirs: []docker.Dir{{Path: "/var/lib/mysql", Mode: 0o700, User: "mysql"}, {Path: "/run/mysqld", Mode: 0o755, User: "mysql"}},
			Files: []docker.File{run(`test -d /var/lib/mysql/mysql || mariadb-install-db --no-defaults --datadir=/var/lib/mysql \
	--skip-test-db --auth-root-authentication-method=normal --innodb-log-file-size=16M
exec mariadbd --no-defaults --datadir=/var/lib/mysql --socket=/run/mysqld/s --pid-file=/run/mysqld/pid --skip-networking \
	--innodb-buffer-pool-size=32M --innodb-log-file-size=16M --innodb-flush-log-at-trx-commit=1`)},
			Changes: changes("mysql"),
		},
		write: client + ` -e "CREATE DATABASE IF NOT EXISTS shop; CREATE TABLE IF NOT EXISTS shop.item (id INT PRIMARY KEY, t TEXT) ENGINE=InnoDB; INSERT INTO shop.item VALUES ($i, REPEAT('x', 1000))"`,
		count: client + ` -e "CREATE DATABASE IF NOT EXISTS shop; CREATE TABLE IF NOT EXISTS shop.item (id INT PRIMARY KEY, t TEXT) ENGINE=InnoDB; SELECT COUNT(*) FROM shop.item"`,
		wipe:  client + ` -e "DROP DATABASE shop"`,
	}
}

func postgres() Service {
	const client = "psql -h /run/postgresql -U postgres -qAtX -v ON_ERROR_STOP=1"
	const table = "SET client_min_messages = error; CREATE TABLE IF NOT EXISTS item (id INT PRIMARY KEY, t TEXT);"
	return Service{
		Name: "user-db", Image: "postgres:15",
		made: docker.Image{
			Dirs: []docker.Dir{{Path: "/var/lib/postgresql/data", Mode: 0o700, User: "postgres"}, {Path: "/run/postgresql", Mode: 0o755, User: "postgres"}},
			Files: []docker.File{run(`bin=/usr/lib/postgresql/15/bin data=/var/lib/postgresql/data
test -s $data/PG_VERSION || $bin/initdb -D $data -U postgres -A trust -E UTF8 --no-locale
exec $bin/postgres -D $data -k /run/postgresql -c listen_addresses= -c shared_buffers=32MB -c max_wal_size=64MB -c min_wal_size=32MB`)},
			Changes: changes("postgres"),
		},
		write: client + ` -c "` + table + ` INSERT INTO item VALUES ($i, repeat('x', 1000))"`,
		count: client + ` -c "` + table + ` SELECT count(*) FROM item"`,
		wipe:  client + ` -c "DROP TABLE item"`,
	}
}

func redis() Service {
	const client = "redis-cli -e -s /run/redis/redis.sock"
	return Service{
		Name: "carts-db", Image: "redis:7",
		made: docker.Image{
			Dirs:    []docker.Dir{{Path: "/data", Mode: 0o755, User: "redis"}, {Path: "/run/redis", Mode: 0o755, User: "redis"}},
			Changes: []string{"USER redis", "WORKDIR /data"},
		},
		write: client + ` RPUSH item $i > /dev/null`,
		count: client + ` LLEN item`,
		wipe:  client + ` FLUSHALL > /dev/null`,
	}
}

func openldap() Service {
	const where = "-x -H ldapi://%2Frun%2Fslapd%2Fs"
	const login = where + " -D cn=admin,dc=shop -w secret"
	return Service{
		Name: "orders-db", Image: "openldap:2.5",
		made: docker.Image{
			Dirs:   []docker.Dir{{Path: "/var/lib/ldap", Mode: 0o700, User: "openldap"}, {Path: "/run/slapd", Mode: 0o755, User: "openldap"}},
			Copies: []string{"/etc/ldap/schema"},
			Files: []docker.File{
				{Path: "/etc/ldap/slapd.conf", Mode: 0o644, Text: `include /etc/ldap/schema/core.schema
modulepath /usr/lib/ldap
moduleload back_mdb
pidfile /run/slapd/pid
database mdb
suffix "dc=shop"
rootdn "cn=admin,dc=shop"
rootpw secret
directory /var/lib/ldap
maxsize 33554432
sizelimit unlimited
`},
				{Path: "/top.ldif", Mode: 0o644, Text: "dn: dc=shop\nobjectClass: dcObject\nobjectClass: organization\ndc: shop\no: shop\n"},
				run(`test -s /var/lib/ldap/data.mdb || slapadd -f /etc/ldap/slapd.conf -l /top.ldif
exec slapd -h ldapi://%2Frun%2Fslapd%2Fs -f /etc/ldap/slapd.conf -d 0`),
			},
			Changes: changes("openldap"),
		},
		write: `printf 'dn: ou=item%d,dc=shop\nobjectClass: organizationalUnit\nou: item%d\n' $i $i | ldapadd ` + login + ` > /dev/null`,
		count: `ldapsearch -LLL ` + where + ` -b dc=shop '(ou=item*)' dn > /tmp/found && { grep -c '^dn:' /tmp/found || true; }`,
		wipe:  `ldapsearch -LLL -o ldif-wrap=no ` + where + ` -b dc=shop '(ou=item*)' dn | sed -n 's/^dn: //p' | ldapdelete ` + login,
	}
}

func rabbitmq() Service {
	const url = "--server=127.0.0.1"
	return Service{
		Name: "shipping", Image: "rabbitmq:3.10",
		// It keeps persistent messages that nobody asked it to confirm in memory until it has had a rest of about 0.2 seconds.
		rest: "0.3",
		made: docker.Image{
			Dirs: []docker.Dir{
				{Path: "/var/lib/rabbitmq", Mode: 0o750, User: "rabbitmq"},
				{Path: "/var/log/rabbitmq", Mode: 0o755, User: "rabbitmq"},
				{Path: "/etc/rabbitmq", Mode: 0o755},
			},
			Files: []docker.File{run(`exec /usr/lib/rabbitmq/bin/rabbitmq-server`)},
			Changes: append(changes("rabbitmq"), "ENV HOME=/var/lib/rabbitmq", "ENV RABBITMQ_NODENAME=rabbit@localhost",
				"ENV RABBITMQ_LOGS=-", "ENV LANG=C.UTF-8", `ENV RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="+S 1:1 +sbwt none"`),
		},
		write: `amqp-declare-queue ` + url + ` -d -q item > /dev/null && amqp-publish ` + url + ` -p -r item -b $i`,
		count: `amqp-declare-queue ` + url + ` -d -q item > /dev/null && rabbitmqctl -q -n rabbit@localhost list_queues --no-table-headers messages`,
		wipe:  `amqp-delete-queue ` + url + ` -q item > /dev/null`,
	}
}
