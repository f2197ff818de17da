package bench

import (
	"bytes"
	"fmt"
	"html"
	"slices"
)

// The measures of a plot, in pixels.
const (
	plotWidth   = 760
	plotLabel   = 250 // for names of metrics
	plotBar     = 13
	plotGap     = 9  // between metrics
	plotHead    = 48 // title and legend
	plotValue   = 90 // for the figure behind a bar
	plotLegend  = 34 // beside a name in the legend
	plotLetter  = 6  // of a name, about
	plotPadding = 10
)

// colours tell runtimes apart, also for those who do not tell red from green.
var colours = []string{"#0072b2", "#e69f00", "#56b4e9", "#999999", "#cc79a7", "#009e73"}

// plot draws the figures in milliseconds of a case as bars, each metric to a scale of its own, with a
// line from the low to the high of each. It returns nil where there is nothing to compare.
func plot(title string, all []Row) []byte {
	rows := slices.DeleteFunc(slices.Clone(all), func(r Row) bool { return r.Median <= 0 })
	metrics, names, cell := grid(rows)
	if len(names) < 2 {
		return nil
	}
	height := plotHead + len(metrics)*(len(names)*plotBar+plotGap) + plotPadding
	var b bytes.Buffer
	key, width := legend(names)
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="11">`+"\n", max(plotWidth, width), height)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="white"/><text x="%d" y="18" font-size="14">%s</text>`+"\n", plotPadding, html.EscapeString(title))
	b.WriteString(key)
	y := plotHead
	for _, m := range metrics {
		largest := 0.0
		for _, n := range names {
			if r, ok := cell(m, n); ok {
				largest = max(largest, r.High, r.Median)
			}
		}
		scale := float64(plotWidth-plotLabel-plotValue) / largest
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", plotLabel-6, y+(len(names)*plotBar)/2+4, html.EscapeString(m))
		for i, n := range names {
			if r, ok := cell(m, n); ok {
				bar(&b, r, colours[i%len(colours)], y, scale)
			}
			y += plotBar
		}
		y += plotGap
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}

// legend is what colours say, and how wide that is.
func legend(names []string) (svg string, width int) {
	x := plotPadding
	for i, n := range names {
		svg += fmt.Sprintf(`<rect x="%d" y="27" width="10" height="10" fill="%s"/><text x="%d" y="36">%s</text>`+"\n",
			x, colours[i%len(colours)], x+14, html.EscapeString(n))
		x += plotLegend + plotLetter*len(n)
	}
	return svg, x
}

func bar(b *bytes.Buffer, r Row, colour string, y int, scale float64) {
	fmt.Fprintf(b, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`, plotLabel, y+1, r.Median*scale, plotBar-2, colour)
	if r.N > 1 {
		fmt.Fprintf(b, `<path d="M%.1f %dH%.1f" stroke="black"/>`, plotLabel+r.Low*scale, y+plotBar/2, plotLabel+r.High*scale)
	}
	fmt.Fprintf(b, `<text x="%.1f" y="%d">%s %s</text>`+"\n", plotLabel+max(r.High, r.Median)*scale+4, y+plotBar-3, figureText(r.Median), html.EscapeString(r.Unit))
}
