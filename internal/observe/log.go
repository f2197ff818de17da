// Package observe makes gantry visible to operators: structured logs, one line and one measurement
// an RPC, and an HTTP page for metrics and health.
package observe

import (
	"fmt"
	"io"
	"log/slog"
	"strings"

	"k8s.io/klog/v2"
)

// Format is how a log line is written.
type Format string

// The formats of a log.
const (
	Text Format = "text"
	JSON Format = "json"
)

// ParseLevel reads debug, info, warn or error, in any case.
func ParseLevel(s string) (slog.Level, error) {
	for _, l := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError} {
		if strings.EqualFold(s, l.String()) {
			return l, nil
		}
	}
	return 0, fmt.Errorf("log level %q is not debug, info, warn or error", s)
}

// NewLogger returns a logger that writes lines at or above level, which may change later.
func NewLogger(w io.Writer, format Format, level slog.Leveler) (*slog.Logger, error) {
	o := &slog.HandlerOptions{Level: level}
	switch format {
	case Text:
		return slog.New(slog.NewTextHandler(w, o)), nil
	case JSON:
		return slog.New(slog.NewJSONHandler(w, o)), nil
	}
	return nil, fmt.Errorf("log format %q is neither text nor json", format)
}

// Adopt makes l the logger of everything in this process that has no other: package slog's own
// functions and the klog of the Kubernetes libraries.
func Adopt(l *slog.Logger) {
	slog.SetDefault(l)
	klog.SetSlogLogger(l.With("component", "kubernetes"))
}
