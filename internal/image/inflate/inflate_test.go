package inflate_test

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"gantry/internal/image/inflate"
)

// inflated is what a gzip stream holds.
func inflated(r io.Reader) ([]byte, error) {
	z, err := inflate.NewReader(r)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

func compressed(t testing.TB, level int, content []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z, err := gzip.NewWriterLevel(&out, level)
	if err != nil {
		t.Fatal(err)
	}
	if _, err = z.Write(content); err != nil {
		t.Fatal(err)
	}
	if err = z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// member puts a deflate stream between the header and the sums of a member.
func member(deflated, content []byte) []byte {
	out := append([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}, deflated...)
	out = binary.LittleEndian.AppendUint32(out, crc32.ChecksumIEEE(content))
	return binary.LittleEndian.AppendUint32(out, uint32(len(content)))
}

func contents(t testing.TB) map[string][]byte {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 300<<10)
	for i := range noise {
		noise[i] = byte(random.Uint32())
	}
	few := make([]byte, 500<<10) // codes of very different lengths
	for i := range few {
		few[i] = byte(random.ExpFloat64() * 3)
	}
	all := map[string][]byte{
		"nothing": {}, "a byte": {7}, "zeros": make([]byte, 1<<20), "noise": noise, "few": few,
		"a program": program[:min(len(program), 1<<20)],
		"far":       slices.Concat(noise[:32<<10], noise[:32<<10], noise[:32<<10-1], noise[:32<<10+1]),
	}
	for _, n := range []int{2, 3, 5, 7, 8, 9, 15, 17} { // copies that overlap themselves
		all["every "+string(rune('0'+n))] = bytes.Repeat(noise[:n], 3000/n)
	}
	return all
}

func TestWhatOthersCompressed(t *testing.T) {
	for name, content := range contents(t) {
		for _, level := range []int{flate.HuffmanOnly, flate.NoCompression, 1, 6, 9} {
			blob := compressed(t, level, content)
			for way, r := range map[string]io.Reader{
				"whole": bytes.NewReader(blob), "in halves": iotest.HalfReader(bytes.NewReader(blob)),
				"with its end": iotest.DataErrReader(bytes.NewReader(blob)),
			} {
				got, err := inflated(r)
				if err != nil || !bytes.Equal(got, content) {
					t.Errorf("%s, level %d, read %s: %d bytes of %d, error %v", name, level, way, len(got), len(content), err)
				}
			}
		}
	}
}

func TestMembersAndHeaders(t *testing.T) {
	text := []byte(strings.Repeat("a layer of an image, ", 5000))
	plain := compressed(t, 6, text)
	header := func(flags byte, optional string) []byte {
		head := append([]byte{0x1f, 0x8b, 8, flags, 1, 2, 3, 4, 0, 3}, optional...)
		if flags&2 != 0 {
			head = binary.LittleEndian.AppendUint16(head, uint16(crc32.ChecksumIEEE(head)))
		}
		return append(head, plain[10:]...)
	}
	wrong := header(2, "")
	wrong[10]++
	for name, c := range map[string]struct {
		blob  []byte
		times int // 0 if it is refused
	}{
		"two members":          {slices.Concat(plain, plain), 2},
		"an empty one between": {slices.Concat(plain, compressed(t, 6, nil), plain), 2},
		"a name":               {header(8, "layer.tar\x00"), 1},
		"everything":           {header(2|4|8|16, "\x03\x00abcname\x00comment\x00"), 1},
		"a wrong header's sum": {wrong, 0},
		"an unknown flag":      {header(32, ""), 0},
		"no gzip behind":       {slices.Concat(plain, []byte("and this")), 0},
		"a name without end":   {header(8, "layer")[:15], 0},
		// fixed codes: length 3, distance 1
		"a copy into the member before": {slices.Concat(plain, member([]byte{0x03, 0x02, 0}, nil)), 0},
	} {
		got, err := inflated(bytes.NewReader(c.blob))
		switch {
		case c.times == 0 && !errors.Is(err, inflate.ErrCorrupt) && !errors.Is(err, io.ErrUnexpectedEOF):
			t.Errorf("%s: error %v", name, err)
		case c.times > 0 && (err != nil || !bytes.Equal(got, bytes.Repeat(text, c.times))):
			t.Errorf("%s: %d bytes, error %v", name, len(got), err)
		}
	}
}

func TestBadContentIsCorrupt(t *testing.T) {
	for name, deflated := range map[string][]byte{
		"a block of type 3":      {0x07},
		"two lengths":            {0x01, 5, 0, 5, 0, 'h', 'e', 'l', 'l', 'o'},
		"a copy from nowhere":    {0x03, 0x02},       // fixed codes: length 3, distance 1
		"length 286":             {0x1b, 0x03},       // fixed codes: 11000110
		"distance 30":            {0x4b, 0x04, 0x3e}, // fixed codes: a literal, length 3, distance 30
		"too many codes":         {0xfd, 0xff, 0xff},
		"no codes of lengths":    {0x05, 0, 0, 0, 0, 0, 0, 0},
		"too many short lengths": {0x05, 0x00, 0x92, 0x24, 0x49, 0, 0},
	} {
		z, err := inflate.NewReader(bytes.NewReader(member(append(deflated, make([]byte, 32)...), nil)))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(z); !errors.Is(err, inflate.ErrCorrupt) || strings.Contains(err.Error(), "sum") {
			t.Errorf("%s: %q, error %v", name, got, err)
		}
	}
	for name, change := range map[string]int{"sum": 8, "size": 4} {
		blob := compressed(t, 6, []byte("content"))
		blob[len(blob)-change]++
		if _, err := inflated(bytes.NewReader(blob)); !errors.Is(err, inflate.ErrCorrupt) {
			t.Errorf("a wrong %s: error %v", name, err)
		}
	}
}

func TestATruncatedStreamIsNotWhole(t *testing.T) {
	text := []byte(strings.Repeat("some text that is compressed; ", 20) + "0123456789 and an end")
	for _, level := range []int{flate.HuffmanOnly, flate.NoCompression, 9} {
		blob := compressed(t, level, text)
		for n := range blob {
			got, err := inflated(bytes.NewReader(blob[:n]))
			if !errors.Is(err, io.ErrUnexpectedEOF) || !bytes.HasPrefix(text, got) {
				t.Errorf("level %d, %d of %d bytes: %q, error %v", level, n, len(blob), got, err)
			}
		}
	}
}

func TestTheSourcesErrorIsTold(t *testing.T) {
	blob := compressed(t, 6, contents(t)["a program"])
	for _, failure := range []error{errors.New("the line is cut"), io.ErrUnexpectedEOF} {
		for _, n := range []int{0, 5, 100_000, len(blob)} {
			_, err := inflated(io.MultiReader(bytes.NewReader(blob[:n]), iotest.ErrReader(failure)))
			if !errors.Is(err, failure) {
				t.Errorf("after %d bytes: error %v, want %v", n, err, failure)
			}
		}
	}
}

// same compares with the standard library: what is whole is the same, what is not is the same as far as
// it goes, and refused by both. Of what is whole, it also looks at what is behind the last block.
func same(t *testing.T, deflated []byte) {
	t.Helper()
	source := bytes.NewReader(deflated)
	want, wantErr := io.ReadAll(flate.NewReader(source))
	got, err := inflated(bytes.NewReader(member(deflated[:len(deflated)-source.Len()], want)))
	switch {
	case wantErr == nil && err == nil && bytes.Equal(got, want):
	case wantErr != nil && err != nil && bytes.HasPrefix(want, got) && len(want)-len(got) < 64:
	case wantErr != nil && err != nil && bytes.HasPrefix(got, want): // the sums were read as content
	default:
		t.Errorf("%d bytes, error %v; the standard library %d, %v", len(got), err, len(want), wantErr)
	}
	if wantErr == nil && source.Len() > 0 {
		blob := member(deflated, want)
		got, err := inflated(bytes.NewReader(blob))
		if wantErr := gunzip(blob); !bytes.HasPrefix(got, want) || (err == nil) != (wantErr == nil) {
			t.Errorf("with %d bytes behind the last block: %d bytes of %d, error %v; the standard library %v",
				source.Len(), len(got), len(want), err, wantErr)
		}
	}
}

// gunzip is what the standard library says of blob.
func gunzip(blob []byte) error {
	z, err := gzip.NewReader(bytes.NewReader(blob))
	if err == nil {
		_, err = io.Copy(io.Discard, z)
	}
	return err
}

func TestFlippedBits(t *testing.T) {
	for _, level := range []int{flate.HuffmanOnly, 9} {
		blob := compressed(t, level, contents(t)["few"][:400])
		for bit := range 8 * len(blob[10:]) {
			flipped := bytes.Clone(blob[10 : len(blob)-8])
			if bit/8 < len(flipped) {
				flipped[bit/8] ^= 1 << (bit % 8)
				same(t, flipped)
			}
		}
	}
}

func FuzzInflate(f *testing.F) {
	for name, content := range contents(f) {
		if name == "a program" {
			content = content[:2000]
		}
		for _, level := range []int{flate.HuffmanOnly, flate.NoCompression, 9} {
			blob := compressed(f, level, content[:min(len(content), 3000)])
			f.Add(blob[10 : len(blob)-8])
		}
	}
	f.Add([]byte{3, 0, 0}) // an empty block, and something behind it
	f.Fuzz(func(t *testing.T, deflated []byte) { same(t, deflated) })
}

// BenchmarkInflate decompresses a program.
func BenchmarkInflate(b *testing.B) {
	content := contents(b)["a program"]
	blob := compressed(b, 6, content)
	b.SetBytes(int64(len(content)))
	for b.Loop() {
		z, err := inflate.NewReader(bytes.NewReader(blob))
		if err != nil {
			b.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, z); err != nil || n != int64(len(content)) {
			b.Fatal(n, err)
		}
	}
}
