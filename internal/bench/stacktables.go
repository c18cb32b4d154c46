package main

import "fmt"

// stackTables turns the samples of part "stack" into tables.
func stackTables(r *record) {
	keepTable(r)
	restoreTable(r)
	volumeTable(r)
	rowTable(r)
}

func keepTable(r *record) {
	var rows [][]string
	for _, which := range []string{"first", "second"} {
		for _, name := range []string{"dm", "restic", "borg"} {
			k := which + "/" + name
			rows = append(rows, []string{
				which, name, seconds(r.med(k + "/wall")), seconds(r.med(k + "/cpu")), megabytes(r.med(k + "/rss")), megabytes(r.med(k + "/stored")),
				ratio(r.med(k+"/wall") / r.med(which+"/restic/wall")), ratio(r.med(k+"/stored") / r.med(which+"/restic/stored")),
			})
		}
	}
	r.table(fmt.Sprintf("Two versions of one stack's files (%s on disk), equal bytes for each: copies of two commits of the stopped databases. "+
		"Between them are %d sysbench, %d pgbench transactions and %d Redis writes, which changed %s files and %s in pages of 4 KiB. "+
		"dm's files are on its volume, the others' on the host's filesystem. CPU and memory of dm include the server's. "+
		"Medians of %d interleaved repetitions, caches warm, each in a new store.",
		megabytes(r.med("size")), sysbenchEvents, pgbenchEvents, redisWrites, count(r.med("changed/files")), megabytes(r.med("changed/bytes")), r.lab.reps),
		[]string{"version", "tool", "wall", "cpu", "peak memory", "stored", "wall / restic", "stored / restic"}, rows)
}

func restoreTable(r *record) {
	var rows [][]string
	for _, how := range []string{"dm mount of the commit, cp -a", "rm everything, dm reset --hard, read every file", "restic restore", "borg extract"} {
		k := "restore/" + how
		rows = append(rows, []string{
			how, seconds(r.med(k + "/wall")), seconds(r.med(k + "/cpu")), megabytes(r.med(k + "/rss")),
			ratio(r.med(k+"/wall") / r.med("restore/restic restore/wall")),
		})
	}
	r.table("The second version out again, each file then compared with the original; the removal is not in the time.", []string{"way", "wall", "cpu", "peak memory", "wall / restic"}, rows)
}

func volumeTable(r *record) {
	var rows [][]string
	for _, which := range []string{"first", "second"} {
		k := "volume/" + which
		rows = append(rows, []string{
			which, seconds(r.med(k + "/wall")), seconds(r.med(k + "/cpu")), megabytes(r.med(k + "/rss")), millis(r.med(k + "/pause_ms")),
			megabytes(r.med(k + "/dirty")), megabytes(r.med(k + "/read")), megabytes(r.med(k + "/stored")),
		})
	}
	r.table("The same commits as they were made on the volume where the databases ran and had just been stopped (once).",
		[]string{"commit", "wall", "cpu", "peak memory", "pause", "dirty", "read", "stored"}, rows)
}

func rowTable(r *record) {
	var rows [][]string
	for i, name := range []string{"first third", "second third", "last third"} {
		k := fmt.Sprintf("row/%d", i)
		rows = append(rows, []string{
			name, seconds(r.med(k + "/wall")), seconds(r.quantile(k+"/wall", 1)), megabytes(r.med(k + "/dirty")), megabytes(r.med(k + "/read")),
			megabytes(r.med(k + "/stored")), millis(r.med(k + "/pause_ms")), millis(r.quantile(k+"/pause_ms", 1)), megabytes(r.quantile(k+"/rss", 1)),
		})
	}
	r.table(fmt.Sprintf("%d commits in a row, each after the same number of transactions of the running databases (medians; the last state then read from the "+
		"store at %.0f MB/s).", r.lab.commits, r.med("row/read_mb_s")),
		[]string{"commits", "wall", "longest", "dirty", "read", "stored", "pause", "longest pause", "peak memory"}, rows)
}
