// Mkimage makes a docker-archive from static files:
//
//	mkimage --ref REF --out FILE.tar --entrypoint /prog SRC:DST[:MODE]...
package main

import (
	"flag"
	"fmt"
	"os"
	"strings"

	"github.com/heliograph-dev/heliograph/hack/lab/internal/image"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "mkimage:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	fs := flag.NewFlagSet("mkimage", flag.ContinueOnError)
	ref := fs.String("ref", "", "the image's name and tag")
	out := fs.String("out", "", "the archive to write")
	entrypoint := fs.String("entrypoint", "", "the program to run, with arguments after spaces")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if *ref == "" || *out == "" || fs.NArg() == 0 {
		return fmt.Errorf("want --ref, --out and at least one SRC:DST[:MODE]")
	}
	spec := image.Spec{Ref: *ref, Entrypoint: strings.Fields(*entrypoint)}
	for _, arg := range fs.Args() {
		f, err := image.ParseFile(arg)
		if err != nil {
			return err
		}
		spec.Files = append(spec.Files, f)
	}
	return image.Write(spec, *out)
}
