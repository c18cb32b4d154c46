package hub

import (
	"context"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// countWait is how long counting users or dots may take.
const countWait = 5 * time.Second

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
	count := func(of func(accounts, func()) error) func() float64 {
		return func() float64 {
			ctx, cancel := context.WithTimeout(context.Background(), countWait)
			defer cancel()
			n := 0
			if err := h.engine.look(ctx, func(a accounts) error { n = 0; return of(a, func() { n++ }) }); err != nil {
				return math.NaN()
			}
			return float64(n)
		}
	}
	users := func(a accounts, one func()) error {
		return a.eachUser(func(string, *userRecord) error { one(); return nil })
	}
	dots := func(a accounts, one func()) error {
		return a.eachDot("", func(string, *dotRecord) error { one(); return nil })
	}
	m.registry.MustRegister(
		m.requests, m.received, m.sent, m.objects, m.logins,
		gauge("transfers", "Packs being taken in and loads being answered.", func() float64 { return float64(h.gates.transfers()) }),
		gauge("users", "Users.", count(users)),
		gauge("dots", "Dots, those in the making included.", count(dots)),
	)
	return m
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

func (m *metrics) answered(route string, status int) {
	m.requests.WithLabelValues(route, strconv.Itoa(status)).Inc()
}
