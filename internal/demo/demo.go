// Package demo is the main job as a story that anybody can watch: a PostgreSQL database under load is
// replicated to another cluster, moved there, and moved home, and every commit that the load was told of
// is looked for at the end.
//
// It knows PostgreSQL, pgbench and Lifeboat's kinds as a user knows them. It never reaches into Lifeboat:
// what it does could be done with kubectl. Begin with Run.
package demo

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
)

// Cluster is one side of the story.
type Cluster struct {
	// Name as Lifeboat knows it.
	Name string
	// Client reaches its API server.
	Client client.Client
	// Address is where the database's node port answers.
	Address string
}

// Options says where and how big.
type Options struct {
	// Home is where the database starts; Away is where it is moved to.
	Home, Away Cluster
	// Namespace of the application; it is made, and deleted first when a demo left it behind.
	Namespace string
	// Image of PostgreSQL 15 with pgbench's server side extensions.
	Image string
	// User the server runs as; 0 leaves it to the image.
	User int64
	// Scale is pgbench's scale factor; 70 is about 1 GiB.
	Scale int
	// VolumeSize of the database's claim, as a Kubernetes quantity.
	VolumeSize string
	// StorageClass of the claim; "" is the cluster's default.
	StorageClass string
	// Clients and Rate (transactions per second) of the load.
	Clients, Rate int
	// ScheduledSessions to wait for before the first move.
	ScheduledSessions int
	// WorkDir keeps pgbench's logs.
	WorkDir string
	// Keep leaves the application in place at the end.
	Keep bool
	// Out receives the story; its last lines are figures for scripts.
	Out io.Writer
}

// Figures is what the story measured. LostCommits must be 0.
type Figures struct {
	// Checked is true once the acknowledged commits were looked for; before, LostCommits says nothing.
	Checked           bool
	LostCommits       int
	AckedCommits      int
	DowntimeMigrate   time.Duration
	DowntimeHome      time.Duration
	MigrateTime       time.Duration
	HomeTime          time.Duration
	FirstSync         time.Duration
	Sessions          []SessionRow
	InconsistentSums  bool
	AmcheckComplaints string
}

// SessionRow is a line of the table of sessions.
type SessionRow struct {
	From, What string
	Report     v1alpha1.SessionReport
	// Lag is the age of the committed instant at the session's end; 0 when the session was seen too late to tell.
	Lag time.Duration
}

// Run tells the whole story and returns what it measured. An error says at which step it ended; figures
// gathered until then are returned with it.
func Run(ctx context.Context, o Options) (*Figures, error) {
	if err := os.MkdirAll(o.WorkDir, 0o755); err != nil {
		return nil, fmt.Errorf("make the demo's folder: %w", err)
	}
	s := NewStory(o)
	err := s.tell(ctx)
	s.StopLoad()
	return s.Figures, err
}

// Story is the demo in chapters, for whoever tells another story with the same people.
type Story struct {
	Options
	// Figures gathered so far.
	Figures *Figures
	// Load is nil until StartLoad.
	Load *Load

	started time.Time
	seen    map[string]bool
}

// NewStory begins a story; nothing happens yet.
func NewStory(o Options) *Story {
	return &Story{Options: o, Figures: &Figures{}, started: time.Now(), seen: map[string]bool{}}
}

func (s *Story) say(format string, args ...any) {
	fmt.Fprintf(s.Out, "%6.1f s  %s\n", time.Since(s.started).Seconds(), fmt.Sprintf(format, args...))
}

func (s *Story) tell(ctx context.Context) error {
	chapters := []struct {
		name string
		do   func(context.Context) error
	}{
		{"make room", s.MakeRoom},
		{"start the database", s.StartDatabase},
		{"fill the database", s.FillDatabase},
		{"start the load", s.StartLoad},
		{"protect", s.Protect},
		{"first sync", s.FirstSync},
		{"scheduled sessions", s.WaitScheduledSessions},
		{"migrate", s.migrateAway},
		{"migrate home", s.migrateHome},
		{"check", s.Check},
	}
	for _, c := range chapters {
		if err := c.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	if s.Keep {
		return nil
	}
	return s.MakeRoom(ctx)
}

// both does the same on both clusters.
func (s *Story) both(do func(Cluster) error) error {
	for _, c := range []Cluster{s.Home, s.Away} {
		if err := do(c); err != nil {
			return fmt.Errorf("cluster %s: %w", c.Name, err)
		}
	}
	return nil
}

// StartDatabase makes the database on the home cluster and waits until it answers.
func (s *Story) StartDatabase(ctx context.Context) error {
	s.say("starting PostgreSQL on %s", s.Home.Name)
	for _, o := range s.databaseObjects() {
		if err := s.Home.Client.Create(ctx, o); err != nil {
			return fmt.Errorf("create %T %s: %w", o, o.GetName(), err)
		}
	}
	return s.Database().WaitReady(ctx, 3*time.Minute)
}

// Database is the server, wherever it answers.
func (s *Story) Database() *Database {
	return &Database{Hosts: []string{s.Home.Address, s.Away.Address}, Port: nodePort, Password: password}
}

// FillDatabase makes pgbench's tables.
func (s *Story) FillDatabase(ctx context.Context) error {
	db := s.Database()
	if err := db.Fill(ctx, s.Scale); err != nil {
		return err
	}
	size, err := db.Query(ctx, "SELECT pg_size_pretty(pg_database_size(current_database()))")
	if err != nil {
		return err
	}
	s.say("pgbench made a database of %s", size)
	return nil
}

// StartLoad begins the load from outside.
func (s *Story) StartLoad(ctx context.Context) error {
	s.Load = &Load{Database: s.Database(), Dir: filepath.Join(s.WorkDir, "load"), Scale: s.Scale, Clients: s.Clients, Rate: s.Rate}
	if err := s.Load.Start(ctx); err != nil {
		return err
	}
	s.say("pgbench keeps committing from outside: %d clients, %d transactions per second", s.Clients, s.Rate)
	return nil
}

// StopLoad ends the load, if there is one.
func (s *Story) StopLoad() {
	if s.Load != nil {
		s.Load.Stop()
	}
}
