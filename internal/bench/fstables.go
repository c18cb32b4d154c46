package main

import (
	"fmt"
)

// fsTables turns the samples of part "fs" into tables. A ratio above 1 is always better than the host.
func fsTables(r *record, targets []target) {
	head := []string{"fio job", "aim", "host"}
	for _, t := range targets[1:] {
		head = append(head, t.name)
	}
	var rows [][]string
	for _, j := range fioJobs() {
		k := "fio/" + j.name + "/"
		host := r.med(k + targets[0].name)
		row := []string{j.name, aim(j.aim), fmt.Sprintf("%s/s, %s/s", count(host), megabytes(r.med(k+targets[0].name+"/bytes")))}
		for _, t := range targets[1:] {
			v := r.med(k + t.name)
			row = append(row, show(v, "%s/s, **%.2f**", count(v), v/host))
		}
		rows = append(rows, row)
	}
	r.table(fmt.Sprintf("fio, one process, file of %d MiB, %d s a job: operations a second and the ratio to the host. Medians of %d interleaved repetitions. "+
		"With O_DIRECT, overlayfs and bindfs open the backing file without it: their figures are those of the page cache.",
		r.lab.fioMB, r.lab.seconds, r.lab.reps), head, rows)
	rateTable(r, targets)
	treeTable(r, targets)
}

func aim(v float64) string {
	if v == 0 {
		return "-"
	}
	return ratio(v)
}

func rateTable(r *record, targets []target) {
	names := []string{"host"}
	for _, t := range targets[1:] {
		if names = append(names, t.name); t.server != nil {
			names = append(names, withCommits)
		}
	}
	var rows [][]string
	for _, db := range []struct{ key, name string }{{"mariadb", "sysbench oltp_read_write, MariaDB"}, {"postgres", "pgbench, PostgreSQL"}} {
		k := "rate/" + db.key + "/"
		host := r.med(k + "host")
		row := []string{db.name}
		for _, n := range names {
			v := r.med(k + n)
			row = append(row, show(v, "%.0f/s, **%.2f**", v, v/host))
		}
		rows = append(rows, row)
		r.note("While %s ran: commits took %s (median), longest %s; pause median %s, longest %s.", db.name, seconds(r.med("commits/"+db.key+"/wall")),
			seconds(r.quantile("commits/"+db.key+"/wall", 1)), millis(r.med("commits/"+db.key+"/pause_ms")),
			millis(r.quantile("commits/"+db.key+"/pause_ms", 1)))
	}
	r.table(fmt.Sprintf("Transactions a second, 4 clients, %d s, default settings of the servers; ratio to the host (aim: 0.9, with commits 0.85).", 3*r.lab.seconds),
		append([]string{""}, names...), rows)
}

func treeTable(r *record, targets []target) {
	head := []string{"", "host"}
	for _, t := range targets[1:] {
		head = append(head, t.name)
	}
	var rows [][]string
	for _, step := range treeSteps("", r.lab.many) {
		k := "tree/" + step.name + "/"
		host := r.med(k + "host")
		row := []string{step.name, seconds(host)}
		for _, t := range targets[1:] {
			v := r.med(k + t.name)
			row = append(row, show(v, "%s, **%.2f**", seconds(v), host/v))
		}
		rows = append(rows, row)
	}
	r.table("A git working tree of small files: wall time, and the host's time divided by it.", head, rows)
}
