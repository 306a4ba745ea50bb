package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"sort"
	"strings"

	"lifeboat.dev/lifeboat/test/clusters/env"
	"lifeboat.dev/lifeboat/test/clusters/image"
)

// list is a flag that may be given several times.
type list []string

func (l *list) String() string { return strings.Join(*l, " ") }

func (l *list) Set(value string) error {
	*l = append(*l, value)
	return nil
}

func buildImage(ctx context.Context, config env.Config, args []string) error {
	flags := flag.NewFlagSet("build-image", flag.ContinueOnError)
	var files, entrypoint, command, environment list
	s := image.Spec{}
	flags.StringVar(&s.Name, "name", "", "the image's `name`, such as lifeboat:dev")
	base := flags.String("base", "", "what it stands on: "+baseNames()+", or a list of Debian packages as packages:a,b; empty: nothing")
	out := flags.String("o", "", "the archive's `path`")
	flags.Var(&files, "add", "`FILE=/PATH/IN/IMAGE`; may be repeated")
	flags.Var(&entrypoint, "entrypoint", "a `word` of the entry point; may be repeated")
	flags.Var(&command, "cmd", "a `word` of the default arguments; may be repeated")
	flags.Var(&environment, "env", "`NAME=VALUE`; may be repeated")
	flags.StringVar(&s.User, "user", "", "the `user` it runs as; empty: root")
	flags.StringVar(&s.WorkDir, "workdir", "", "the working `folder`")
	if err := flags.Parse(args); err != nil {
		return err
	}
	switch {
	case flags.NArg() > 0:
		return fmt.Errorf("build-image: unexpected argument %q", flags.Arg(0))
	case s.Name == "":
		return errors.New("build-image: --name is missing")
	case *out == "":
		return errors.New("build-image: -o is missing")
	}
	for _, f := range files {
		from, to, ok := strings.Cut(f, "=")
		if !ok {
			return fmt.Errorf("build-image: --add %q: want FILE=/PATH/IN/IMAGE", f)
		}
		s.Files = append(s.Files, image.File{From: from, To: to})
	}
	s.Entrypoint, s.Cmd, s.Env = entrypoint, command, environment
	if *base != "" {
		path, err := config.Base(ctx, *base)
		if err != nil {
			return fmt.Errorf("build-image: %w", err)
		}
		s.Base = path
	}
	digest, err := image.Write(s, *out)
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stdout, "%s %s\n", *out, digest)
	return nil
}

func baseNames() string {
	names := make([]string, 0, len(image.Bases))
	for name := range image.Bases {
		names = append(names, name)
	}
	sort.Strings(names)
	return strings.Join(names, ", ")
}
