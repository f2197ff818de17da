package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
	"github.com/spf13/pflag"
)

// Flags are the flags of a command that reads the configuration.
type Flags struct {
	file   string
	values []*flagValue
}

// flagValue remembers what was given on the command line, to be applied over the file.
type flagValue struct {
	opt   option
	shown string
	given []string
}

func (v *flagValue) Type() string   { return v.opt.kind }
func (v *flagValue) String() string { return v.shown }
func (v *flagValue) Set(s string) error {
	scratch := Default()
	if err := v.opt.get(&scratch).Set(s, len(v.given) == 0); err != nil {
		return err
	}
	v.given = append(v.given, s)
	v.shown = strings.Join(v.given, ",")
	return nil
}

// AddFlags defines --config and one flag an option on set.
func AddFlags(set *pflag.FlagSet) *Flags {
	f := &Flags{}
	set.StringVar(&f.file, "config", "", "configuration `FILE` (default "+DefaultFile+" if it exists)")
	defaults := Default()
	for _, opt := range options() {
		v := &flagValue{opt: opt, shown: opt.get(&defaults).String()}
		set.Var(v, opt.flag, opt.usage)
		if opt.kind == "" { // the flag alone says yes
			set.Lookup(opt.flag).NoOptDefVal = "true"
		}
		f.values = append(f.values, v)
	}
	return f
}

// Load reads the file, lays the flags over it, fills in what depends on the machine, and validates.
// An error names the key and where its value came from: the flag, or the file and line.
func (f *Flags) Load(finder Finder) (*Options, error) {
	o := Default()
	src, err := read(f.file, &o)
	if err != nil {
		return nil, err
	}
	for _, v := range f.values {
		for i, s := range v.given {
			if err := v.opt.get(&o).Set(s, i == 0); err != nil {
				return nil, fmt.Errorf("--%s: %w", v.opt.flag, err)
			}
		}
	}
	o.Resolve(finder)
	if err := o.Validate(); err != nil {
		return nil, f.locate(src, err)
	}
	return &o, nil
}

// Changed are the keys whose values differ, in the order of the file.
func Changed(a, b *Options) []string {
	var keys []string
	for _, opt := range options() {
		if opt.get(a).String() != opt.get(b).String() {
			keys = append(keys, opt.key)
		}
	}
	return keys
}

// Reloadable says whether a running server takes another value of the option of this key. CNI
// configurations and the registries' files are no options; they are read when they change or for each pull.
func Reloadable(key string) bool {
	return slices.Contains([]string{"log.level", "runtime.default", "runtime.paths", "runtime.options"}, key)
}

// locate says of each illegal value where it was given.
func (f *Flags) locate(src *source, err error) error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return err
	}
	var errs []error
	for _, e := range joined.Unwrap() {
		var bad *ValueError
		if errors.As(e, &bad) {
			e = fmt.Errorf("%s%w", f.origin(src, bad.Key), e)
		}
		errs = append(errs, e)
	}
	return errors.Join(errs...)
}

func (f *Flags) origin(src *source, key string) string {
	for _, v := range f.values {
		if v.opt.key == key && len(v.given) > 0 {
			return "--" + v.opt.flag + ": "
		}
	}
	return src.at(key)
}

// source is the file that was read and the line of each of its keys.
type source struct {
	file  string
	lines map[string]int
}

// at is the line of a key, or of the value that it is in, as the beginning of a message; "" if the file has neither.
func (s *source) at(key string) string {
	for key != "" {
		if line, ok := s.lines[key]; ok {
			return fmt.Sprintf("%s:%d: ", s.file, line)
		}
		key = key[:max(strings.LastIndex(key, "."), 0)]
	}
	return ""
}

// read decodes the file over o. No name means DefaultFile, which need not exist.
func read(name string, o *Options) (*source, error) {
	src := &source{file: name}
	if name == "" {
		src.file = DefaultFile
	}
	data, err := os.ReadFile(src.file)
	if name == "" && errors.Is(err, fs.ErrNotExist) {
		return src, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	src.lines = keyLines(data)
	if err := src.checkTypes(data); err != nil {
		return nil, err
	}
	dec := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields()
	if err := dec.Decode(o); err != nil {
		return nil, src.explain(err)
	}
	return src, nil
}

// explain puts file, line and key before what the decoder says.
func (s *source) explain(err error) error {
	var unknown *toml.StrictMissingError
	if errors.As(err, &unknown) {
		var errs []error
		for i := range unknown.Errors {
			line, _ := unknown.Errors[i].Position()
			errs = append(errs, fmt.Errorf("%s:%d: %s: unknown key", s.file, line, strings.Join(unknown.Errors[i].Key(), ".")))
		}
		return errors.Join(errs...)
	}
	var bad *toml.DecodeError
	if !errors.As(err, &bad) {
		return fmt.Errorf("%s: %w", s.file, err)
	}
	line, _ := bad.Position()
	where := fmt.Sprintf("%s:%d", s.file, line)
	if key := s.keyAt(line); key != "" {
		where += ": " + key
	}
	return fmt.Errorf("%s: %w", where, err)
}

// keyAt is the key on a line, without the tables that it is in when they begin there too.
func (s *source) keyAt(line int) string {
	longest := ""
	for key, at := range s.lines {
		if at == line && len(key) > len(longest) {
			longest = key
		}
	}
	return longest
}

// keyLines finds the line of every key; of tables inside a value, the line of the value.
func keyLines(data []byte) map[string]int {
	lines := map[string]int{}
	var prefix []string
	var p unstable.Parser
	p.Reset(data)
	for p.NextExpression() {
		e := p.Expression()
		var key []string
		line := 0
		for it := e.Key(); it.Next(); {
			key = append(key, string(it.Node().Data))
			line = p.Shape(it.Node().Raw).Start.Line
		}
		switch e.Kind {
		case unstable.Table, unstable.ArrayTable:
			prefix = key
			setFirst(lines, strings.Join(key, "."), line)
		case unstable.KeyValue:
			full := append(append([]string{}, prefix...), key...)
			for n := len(full); n > 0; n-- {
				setFirst(lines, strings.Join(full[:n], "."), line)
			}
		}
	}
	return lines
}

func setFirst(m map[string]int, key string, line int) {
	if _, ok := m[key]; !ok {
		m[key] = line
	}
}
