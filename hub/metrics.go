package hub

import (
	"net/http"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.etcd.io/bbolt"
)

// metrics is what /metrics shows. It names no user and no dot.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec // by route and status
	received prometheus.Counter     // bytes of records
	sent     prometheus.Counter     // bytes of packs
	objects  prometheus.Counter     // taken in
	logins   prometheus.Counter     // failed
}

func newMetrics(h *Hub) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "dm_hub_" + name, Help: help})
	}
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "dm_hub_requests_total", Help: "Requests answered.",
		}, []string{"route", "status"}),
		received: counter("received_bytes_total", "Bytes of packs taken in."),
		sent:     counter("sent_bytes_total", "Bytes of packs sent."),
		objects:  counter("received_objects_total", "Objects taken in."),
		logins:   counter("failed_logins_total", "Requests with a wrong key."),
	}
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "dm_hub_" + name, Help: help}, value)
	}
	count := func(bucket string) func() float64 {
		return func() float64 {
			n := 0
			h.db.View(func(tx *bbolt.Tx) error {
				n = tx.Bucket([]byte(bucket)).Stats().KeyN
				return nil
			})
			return float64(n)
		}
	}
	m.registry.MustRegister(
		m.requests, m.received, m.sent, m.objects, m.logins,
		gauge("transfers", "Packs being taken in and loads being answered.", func() float64 { return float64(h.gates.transfers()) }),
		gauge("users", "Users.", count(bucketUsers)),
		gauge("dots", "Dots, those in the making included.", count(bucketDots)),
	)
	return m
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

func (m *metrics) answered(route string, status int) {
	m.requests.WithLabelValues(route, strconv.Itoa(status)).Inc()
}
