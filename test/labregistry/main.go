// Command labregistry serves small images, built from this machine's own binaries, on the loopback.
// It prints their references, one a line, and serves until SIGTERM or SIGINT.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"gantry/internal/labimage"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:5000", "address to serve on")
	flag.Parse()
	if err := serve(*listen); err != nil {
		fmt.Fprintln(os.Stderr, "labregistry:", err)
		os.Exit(1)
	}
}

func serve(listen string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	s, err := labimage.Serve(labimage.Config{Listen: listen})
	if err != nil {
		return err
	}
	defer s.Close()
	refs, err := s.Catalog()
	if err != nil {
		return err
	}
	for _, r := range refs {
		fmt.Println(r)
	}
	<-ctx.Done()
	return nil
}
