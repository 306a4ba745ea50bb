package link

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/event"
)

// Nudges hand what peers ask to be looked at to the controllers of those kinds. A nudge that finds its channel full is
// dropped: the controller looks by itself a little later.
type Nudges struct {
	channels map[string]chan event.GenericEvent
}

// NewNudges makes a channel for each kind, as "Replication".
func NewNudges(kinds ...string) *Nudges {
	n := &Nudges{channels: map[string]chan event.GenericEvent{}}
	for _, kind := range kinds {
		n.channels[kind] = make(chan event.GenericEvent, 256)
	}
	return n
}

// Channel is what the controller of a kind watches with a source.Channel. The kind must be one NewNudges was given.
func (n *Nudges) Channel(kind string) <-chan event.GenericEvent {
	channel, ok := n.channels[kind]
	if !ok {
		panic("no nudges were made for kind " + kind)
	}
	return channel
}

// Nudge is for control.ServerOptions. It never blocks; kinds nobody asked for are ignored.
func (n *Nudges) Nudge(kind string, key types.NamespacedName) {
	object := &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}}
	select {
	case n.channels[kind] <- event.GenericEvent{Object: object}:
	default:
	}
}
