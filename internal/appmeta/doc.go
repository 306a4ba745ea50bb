// Package appmeta carries the Kubernetes objects of an application from one cluster to another: it captures
// them, takes off what belongs to the cluster they came from, keeps them in packs, and brings them back.
//
//	Capturer  walks the API by discovery and returns portable objects   capture.go, choose.go, sanitise.go
//	Library   keeps captured objects in a store.Store as packs          library.go, pack.go
//	Inbox     takes a snapshot in that a peer sends                     inbox.go
//	Restorer  applies a snapshot in waves, by server-side apply         restore.go, order.go
//
// Begin reading at Capturer.Capture and Restorer.Restore. The package decides nothing about when: the
// ApplicationSnapshot controller captures and pushes, a plan restores. It never moves volumes, never starts or
// stops an application (package hook does), and puts the content of no object into an error or a log.
package appmeta
