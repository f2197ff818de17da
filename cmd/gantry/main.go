// Command gantry is the CRI server (`gantry serve`) and the command line that talks to it.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"gantry/cmd/gantry/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(cli.Main(ctx, os.Args[1:], cli.Stdio{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
}
