package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"gantry/cmd/gantry/internal/client"
	"gantry/internal/admin"
	"gantry/internal/image"
)

// asking asks the server's admin socket, which lies beside its CRI socket.
func (a *app) asking(do func(*admin.Client) error) error {
	c := admin.NewClient(a.adminSocket())
	defer c.Close()
	return do(c)
}

func (a *app) adminSocket() string {
	return filepath.Join(filepath.Dir(strings.TrimPrefix(a.endpoint, "unix://")), admin.SocketName)
}

func (a *app) verifyCommand() *cobra.Command {
	var repair bool
	var output string
	cmd := &cobra.Command{
		Use: "verify [IMAGE...]", Short: "Compare images with what was unpacked",
		Long: "Read every file of the images (all, if none is named) and compare it, its mode, owner, time and attributes\n" +
			"with what was unpacked. An image that differs is pulled again in part by --repair, or by its next pull.\n" +
			"Containers that use the image go on. The exit code is 1 if anything differs and was not mended.",
		PreRunE: func(cmd *cobra.Command, _ []string) error {
			if output != "text" && output != "json" {
				return &usageError{cmd.CommandPath(), fmt.Errorf("--output: %q is not text or json", output)}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.asking(func(c *admin.Client) error {
				all, broken := []*image.Verified{}, 0
				err := c.VerifyImages(cmd.Context(), image.Verify{Images: args, Repair: repair}, func(v *image.Verified) {
					if !v.Whole() {
						broken++
					}
					all = append(all, v)
					if output == "text" {
						printVerified(a.out, v)
					}
				})
				if err != nil {
					return fmt.Errorf("verify images: %w", err)
				}
				if output == "json" {
					if err := printJSON(a.out, all); err != nil {
						return err
					}
				}
				if broken > 0 {
					return fmt.Errorf("%d of %d images are damaged", broken, len(all))
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&repair, "repair", false, "mend what differs, from the registry where contents are needed")
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return cmd
}

// printVerified prints one line an image, and below it what differs.
func printVerified(w io.Writer, v *image.Verified) {
	name := "<none>"
	if len(v.Names) > 0 {
		name = v.Names[0]
	}
	var entries, bytes int64
	mended := false
	for _, l := range v.Layers {
		entries, bytes, mended = entries+l.Entries, bytes+l.Bytes, mended || l.Mended
	}
	state := "whole"
	switch {
	case !v.Whole():
		state = "damaged"
	case mended:
		state = "mended"
	}
	fmt.Fprintf(w, "%s  %s: %s (%d layers, %d entries, %s)\n", client.Short(v.ID), name, state, len(v.Layers), entries, size(uint64(bytes)))
	for _, l := range v.Layers {
		for _, d := range l.Differences {
			fmt.Fprintf(w, "  layer %s: %s\n", l.Name, d)
		}
		if more := l.Found - len(l.Differences); more > 0 {
			fmt.Fprintf(w, "  layer %s: and %d more\n", l.Name, more)
		}
		if len(l.Containers) > 0 {
			fmt.Fprintf(w, "  layer %s is used by %d containers: start them anew, they may have read what was wrong\n", l.Name, len(l.Containers))
		}
	}
	if v.Error != "" {
		fmt.Fprintf(w, "  not mended: %s\n", v.Error)
	}
}

func (a *app) exportCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use: "export IMAGE...", Short: "Write images to a tar", Args: cobra.MinimumNArgs(1),
		Long: "Write images to one tar that is an OCI layout and a docker-archive at once, to a file or to standard output.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if output == "" {
				if term.IsTerminal(int(a.std.Out.Fd())) {
					return &usageError{cmd.CommandPath(), errors.New("a tar is not written to a terminal: use --output FILE")}
				}
				return a.export(cmd.Context(), args, a.out)
			}
			return exportTo(output, func(w io.Writer) error { return a.export(cmd.Context(), args, w) })
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "`FILE` to write; standard output if it is not given")
	return cmd
}

func (a *app) export(ctx context.Context, refs []string, w io.Writer) error {
	return a.asking(func(c *admin.Client) error {
		out := bufio.NewWriterSize(w, 1<<20)
		if err := c.ExportImages(ctx, refs, out); err != nil {
			return err
		}
		return out.Flush()
	})
}

// exportTo writes a file that is there whole or not at all.
func exportTo(path string, write func(io.Writer) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	err = errors.Join(write(f), f.Chmod(0o644), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

func (a *app) importCommand() *cobra.Command {
	return &cobra.Command{
		Use: "import [FILE...]", Short: "Take images from tars",
		Long: "Take all images of tars that are OCI layouts or docker-archives, from files or from standard input, and\nprint their ids.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				if term.IsTerminal(int(a.std.In.Fd())) {
					return &usageError{cmd.CommandPath(), errors.New("no tar is read from a terminal: name a FILE")}
				}
				return a.importFrom(cmd.Context(), "standard input", a.std.In)
			}
			for _, path := range args {
				f, err := os.Open(path)
				if err != nil {
					return err
				}
				err = a.importFrom(cmd.Context(), path, f)
				_ = f.Close()
				if err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func (a *app) importFrom(ctx context.Context, name string, r io.Reader) error {
	return a.asking(func(c *admin.Client) error {
		ids, err := c.ImportImages(ctx, io.NopCloser(r))
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		for _, id := range ids {
			fmt.Fprintln(a.out, id)
		}
		return nil
	})
}

func (a *app) untagCommand() *cobra.Command {
	return &cobra.Command{
		Use: "untag TAG...", Short: "Take names from images", Args: cobra.MinimumNArgs(1),
		Long: "Take names from images. An image without a name stays, under its id and digest: `gantry rmi` removes it.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.asking(func(c *admin.Client) error {
				return a.each(args, func(tag string) error { return c.UntagImage(cmd.Context(), tag) })
			})
		},
	}
}

// showPulls prints the pulls under way.
func (a *app) showPulls(ctx context.Context, output string) error {
	return a.asking(func(c *admin.Client) error {
		pulls, err := c.Pulls(ctx)
		if err != nil {
			return err
		}
		if output == "json" {
			return printJSON(a.out, pulls)
		}
		for _, p := range pulls {
			fmt.Fprintf(a.out, "%s  %s\n", p.Ref, age(p.Started.UnixNano()))
			for _, l := range p.Layers {
				fmt.Fprintf(a.out, "  %s\n", bar(l, terminalWidth(a.std.Out)-2))
			}
		}
		return nil
	})
}
