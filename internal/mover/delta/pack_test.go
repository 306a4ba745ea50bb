package delta

import (
	"bytes"
	"crypto/sha256"
	"testing"

	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// Noise is tried ever more rarely; the first success ends the caution.
func TestNoiseIsTriedRarely(t *testing.T) {
	p, err := newPacker()
	if err != nil {
		t.Fatal(err)
	}
	var noise []byte
	for sum := sha256.Sum256(nil); len(noise) < 65536; sum = sha256.Sum256(sum[:]) {
		noise = append(noise, sum[:]...)
	}
	tries := 0
	pack := func(b []byte) {
		if p.skip == 0 {
			tries++
		}
		p.pack(wire.Data{Length: len(b), Payload: b}, nil)
	}
	for range 400 {
		pack(noise)
	}
	if tries < 7 || tries > 12 {
		t.Errorf("%d of 400 records of noise were tried", tries)
	}
	text := bytes.Repeat([]byte("lifeboat "), 8000)
	tries = 0
	for range 400 {
		pack(text)
	}
	if tries < 400-maxSkip {
		t.Errorf("%d of 400 records of text were tried", tries)
	}
}
