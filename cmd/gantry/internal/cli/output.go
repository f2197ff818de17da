package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// format is how a list is printed.
type format struct {
	quiet bool
	name  string
}

func (f *format) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "print ids only")
	cmd.Flags().StringVarP(&f.name, "output", "o", "table", "table or json")
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		if f.name != "table" && f.name != "json" {
			return &usageError{cmd.CommandPath(), fmt.Errorf("--output: %q is not table or json", f.name)}
		}
		return nil
	}
}

// row is one line of a table, the id that --quiet prints, and the message that JSON prints.
type row struct {
	id    string
	cells []string
	msg   proto.Message
}

func (f *format) print(w io.Writer, head []string, rows []row) error {
	switch {
	case f.quiet:
		for _, r := range rows {
			fmt.Fprintln(w, r.id)
		}
		return nil
	case f.name == "json":
		msgs := make([]json.RawMessage, 0, len(rows))
		for _, r := range rows {
			data, err := protojson.Marshal(r.msg)
			if err != nil {
				return fmt.Errorf("write JSON: %w", err)
			}
			msgs = append(msgs, data)
		}
		return printJSON(w, msgs)
	}
	tw := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(tw, strings.Join(head, "\t"))
	for _, r := range rows {
		fmt.Fprintln(tw, strings.Join(r.cells, "\t"))
	}
	return tw.Flush()
}

// printJSON prints v indented; protojson's own spacing is unstable on purpose.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("write JSON: %w", err)
	}
	return nil
}

// printLine prints JSON on one line; protojson's own spacing is unstable on purpose.
func printLine(w io.Writer, data []byte) error {
	var b bytes.Buffer
	if err := json.Compact(&b, data); err != nil {
		return fmt.Errorf("write JSON: %w", err)
	}
	fmt.Fprintln(w, b.String())
	return nil
}

// age is how long ago t (nanoseconds since 1970) was, in the largest unit that says something.
func age(nanos int64) string {
	if nanos <= 0 {
		return "-"
	}
	d := time.Since(time.Unix(0, nanos))
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(max(d, 0).Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// size is a number of bytes in decimal units, as registries and disks are measured.
func size(n uint64) string {
	units := []string{"B", "kB", "MB", "GB", "TB"}
	f, i := float64(n), 0
	for f >= 1000 && i < len(units)-1 {
		f /= 1000
		i++
	}
	if i == 0 {
		return fmt.Sprintf("%d%s", n, units[0])
	}
	return fmt.Sprintf("%.3g%s", f, units[i])
}
