package cri

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const signalPrefix = "SIGNAL_"

// realtime are the first and last signals that a program may use freely, as glibc counts them.
const (
	realtimeMin = 34
	realtimeMax = 64
)

// stopSignal converts to the name that signal(7) uses, "SIGRTMIN+3" included; "" is the default.
func stopSignal(field string, s runtime.Signal) (string, error) {
	name, ok := runtime.Signal_name[int32(s)]
	if !ok {
		return "", invalid(field, "%d is not a signal", s)
	}
	if s == runtime.Signal_SIGNAL_RUNTIME_DEFAULT {
		return "", nil
	}
	name = strings.TrimPrefix(name, signalPrefix)
	return strings.NewReplacer("PLUS", "+", "MINUS", "-").Replace(name), nil
}

// realtimeWords turns SIGRTMIN+1 into the CRI's SIGRTMINPLUS1.
var realtimeWords = strings.NewReplacer("+", "PLUS", "-", "MINUS")

// fromStopSignal reads what an image or a spec says: "SIGTERM", "TERM", "15" or "SIGRTMIN+3". What
// the CRI has no word for is shown as the default.
func fromStopSignal(s string) runtime.Signal {
	name := strings.ToUpper(s)
	if n, err := strconv.Atoi(name); err == nil {
		name = signalName(n)
	}
	name = realtimeWords.Replace(strings.TrimPrefix(name, "SIG"))
	return runtime.Signal(runtime.Signal_value[signalPrefix+"SIG"+name])
}

func signalName(n int) string {
	switch {
	case n == realtimeMin:
		return "SIGRTMIN"
	case n == realtimeMax:
		return "SIGRTMAX"
	case n > realtimeMin && n <= realtimeMin+15:
		return "SIGRTMIN+" + strconv.Itoa(n-realtimeMin)
	case n > realtimeMin && n < realtimeMax:
		return "SIGRTMAX-" + strconv.Itoa(realtimeMax-n)
	}
	return unix.SignalName(unix.Signal(n))
}
