package main

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// chart is a line chart with logarithmic axes.
type chart struct {
	title, x, y string
	series      []series
}

type series struct {
	name string
	xy   [][2]float64 // positive
}

// A chart's geometry, in pixels.
const (
	chartWidth, chartHeight = 640, 360
	chartLeft, chartRight   = 70, 170
	chartTop, chartBottom   = 36, 50
)

// svg draws the chart. Each axis goes from a power of ten to a power of ten.
func (c chart) svg() string {
	colors := []string{"#1b6ca8", "#c8553d", "#3f7d20", "#7d4e9e", "#8a6d00"}
	xlo, xhi := c.decades(0)
	ylo, yhi := c.decades(1)
	px := func(v float64) float64 {
		return chartLeft + (math.Log10(v)-xlo)/(xhi-xlo)*(chartWidth-chartLeft-chartRight)
	}
	py := func(v float64) float64 {
		return chartHeight - chartBottom - (math.Log10(v)-ylo)/(yhi-ylo)*(chartHeight-chartTop-chartBottom)
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n",
		chartWidth, chartHeight)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="#fff"/><text x="%d" y="20" font-size="14">%s</text>`+"\n", chartLeft,
		html.EscapeString(c.title))
	for d := xlo; d <= xhi; d++ {
		x := px(math.Pow(10, d))
		fmt.Fprintf(&b, `<path d="M%.1f %d V%d" stroke="#ddd"/><text x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n", x, chartTop,
			chartHeight-chartBottom, x, chartHeight-chartBottom+16, tick(d))
	}
	for d := ylo; d <= yhi; d++ {
		y := py(math.Pow(10, d))
		fmt.Fprintf(&b, `<path d="M%d %.1f H%d" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%s</text>`+"\n", chartLeft, y,
			chartWidth-chartRight, chartLeft-6, y+4, tick(d))
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d">%s</text><text x="14" y="%d" transform="rotate(-90 14 %d)" text-anchor="middle">%s</text>`+"\n",
		chartLeft, chartHeight-12, html.EscapeString(c.x), chartHeight/2, chartHeight/2, html.EscapeString(c.y))
	for i, s := range c.series {
		color := colors[i%len(colors)]
		var points []string
		for _, p := range s.xy {
			points = append(points, fmt.Sprintf("%.1f,%.1f", px(p[0]), py(p[1])))
			fmt.Fprintf(&b, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`, px(p[0]), py(p[1]), color)
		}
		fmt.Fprintf(&b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`, strings.Join(points, " "), color)
		fmt.Fprintf(&b, `<text x="%d" y="%d" fill="%s">%s</text>`+"\n", chartWidth-chartRight+10, chartTop+14+18*i, color, html.EscapeString(s.name))
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// decades returns the powers of ten around all values of an axis.
func (c chart) decades(axis int) (lo, hi float64) {
	lo, hi = math.Inf(1), math.Inf(-1)
	for _, s := range c.series {
		for _, p := range s.xy {
			lo, hi = min(lo, math.Floor(math.Log10(p[axis]))), max(hi, math.Ceil(math.Log10(p[axis])))
		}
	}
	switch {
	case lo > hi: // no values
		return 0, 1
	case lo == hi:
		return lo, lo + 1
	}
	return lo, hi
}

func tick(d float64) string {
	if d >= 0 && d <= 3 {
		return fmt.Sprintf("%.0f", math.Pow(10, d))
	}
	if d < 0 {
		return fmt.Sprintf("%.*f", int(-d), math.Pow(10, d))
	}
	names := map[float64]string{4: "10k", 5: "100k", 6: "1M", 7: "10M"}
	if n, ok := names[d]; ok {
		return n
	}
	return fmt.Sprintf("1e%.0f", d)
}

// draw adds a chart to the report.
func (r *record) draw(file string, c chart) {
	for i := range c.series {
		var good [][2]float64
		for _, p := range c.series[i].xy {
			if known(p[0]) && known(p[1]) && p[0] > 0 && p[1] > 0 {
				good = append(good, p)
			}
		}
		c.series[i].xy = good
	}
	r.Pictures = append(r.Pictures, file)
	r.pictures[file] = c.svg()
}
