package session_test

import (
	"errors"
	"testing"

	"lifeboat.dev/lifeboat/internal/mover/digest"
	"lifeboat.dev/lifeboat/internal/mover/session"
	"lifeboat.dev/lifeboat/internal/mover/wire"
)

// small is a group of two volumes: three blocks and an end of ten bytes, and ten bytes.
var small = []wire.Member{{Name: "a", Size: 3*digest.BlockSize + 10}, {Name: "b", Size: 10}}

// hole is a record of zeros, whose digest is known without hashing.
func hole(volume int, offset, length int64) wire.Hole {
	return wire.Hole{Volume: volume, Offset: offset, Length: length}
}

func TestWhatComesOutOfPlaceIsAViolation(t *testing.T) {
	const block = digest.BlockSize
	for name, script := range map[string][]session.Event{
		"a record again":                 {hole(0, 0, block), hole(0, 0, block)},
		"a record before another":        {hole(0, block, block), hole(0, 0, block)},
		"records that overlap":           {hole(0, 0, 2*block), hole(0, block, block)},
		"a record of the next volume":    {hole(1, 0, 10)},
		"a record of no volume":          {hole(2, 0, 10)},
		"a record beyond the end":        {hole(0, 3*block, 11)},
		"a record that ends in a block":  {hole(0, 0, block+1)},
		"the end of another segment":     {wire.SegmentEnd{Segment: 1}},
		"the end of another volume":      {wire.SegmentEnd{Volume: 1}},
		"closed before the end":          {wire.Close{}},
		"a record without its bytes":     {wire.Data{Codec: wire.CodecApart, Length: block, Digests: make([]digest.Digest, 1)}},
		"a segment that does not exist":  {wire.Want{Segment: 1}},
		"a volume that does not exist":   {wire.Want{Volume: 2}},
		"a message for a source":         {wire.Ack{}},
		"a segment that has ended":       {hole(0, 0, 3*block+10), wire.SegmentEnd{}, wire.Want{}},
		"a second Hello":                 {wire.Hello{}},
		"a record after the last volume": {hole(0, 0, 3*block+10), wire.SegmentEnd{}, hole(1, 0, 10), wire.SegmentEnd{Volume: 1}, hole(1, 0, 10)},
	} {
		t.Run(name, func(t *testing.T) {
			target := session.NewTarget(wire.Hello{Point: "p", Members: small}, wire.TierFull, nil)
			for _, e := range script[:len(script)-1] {
				if _, err := target.Step(e); err != nil {
					t.Fatal(err)
				}
			}
			_, err := target.Step(script[len(script)-1])
			var broke *session.Violation
			if !errors.As(err, &broke) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestARecordNobodyComparedIsAViolation(t *testing.T) {
	target := session.NewTarget(wire.Hello{Members: small}, wire.TierDigest, [][]digest.Digest{{digest.Zero}, {digest.Zero}})
	_, err := target.Step(hole(0, 0, digest.BlockSize))
	var broke *session.Violation
	if !errors.As(err, &broke) {
		t.Errorf("got %v", err)
	}
}

func TestTheClosingDigestIsChecked(t *testing.T) {
	right := session.Closing("p", small, [][]digest.Digest{{digest.Zero}, {digest.Zero}})
	for name, closing := range map[string]digest.Digest{
		"right":             right,
		"of nothing":        {},
		"of another point":  session.Closing("q", small, [][]digest.Digest{{digest.Zero}, {digest.Zero}}),
		"of another group":  session.Closing("p", small[:1], [][]digest.Digest{{digest.Zero}}),
		"of other segments": session.Closing("p", small, [][]digest.Digest{{digest.Zero}, {digest.Block([]byte("x"))}}),
	} {
		target := session.NewTarget(wire.Hello{Point: "p", Members: small}, wire.TierFull, nil)
		for _, e := range []session.Event{
			hole(0, 0, 3*digest.BlockSize+10), wire.SegmentEnd{}, hole(1, 0, 10), wire.SegmentEnd{Volume: 1}, session.Durable{Position: wire.Position{Volume: 2}},
		} {
			if _, err := target.Step(e); err != nil {
				t.Fatal(err)
			}
		}
		actions, err := target.Step(wire.Close{Digest: closing})
		var wrong *session.Integrity
		if closing == right && (err != nil || len(actions) != 1) || closing != right && !errors.As(err, &wrong) {
			t.Errorf("%s: %v, %v", name, actions, err)
		}
	}
}

// Commit waits for the disk, whatever the network says.
func TestNothingIsCommittedBeforeItIsDurable(t *testing.T) {
	target := session.NewTarget(wire.Hello{Point: "p", Members: small}, wire.TierFull, nil)
	closing := wire.Close{Digest: session.Closing("p", small, [][]digest.Digest{{digest.Zero}, {digest.Zero}})}
	for _, e := range []session.Event{
		hole(0, 0, 3*digest.BlockSize+10), wire.SegmentEnd{}, hole(1, 0, 10), wire.SegmentEnd{Volume: 1}, closing,
		session.Durable{Position: wire.Position{Volume: 1, Offset: 10}},
	} {
		actions, err := target.Step(e)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range actions {
			if _, early := a.(session.Commit); early {
				t.Fatalf("committed after %T", e)
			}
		}
	}
	actions, err := target.Step(session.Durable{Position: wire.Position{Volume: 2}})
	if err != nil || len(actions) != 2 {
		t.Fatalf("not committed when all was durable: %v, %v", actions, err)
	}
}
