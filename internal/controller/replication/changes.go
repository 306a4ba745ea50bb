package replication

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/mover/change"
	"lifeboat.dev/lifeboat/internal/snapshot"
)

const (
	// tokenDir is where a mover finds its tokens for the drivers' services.
	tokenDir = "/var/run/lifeboat/tokens"
	// tokenLife in seconds is the shortest there is; kubelets renew tokens well before their end.
	tokenLife = 600
	// moverRole is the ClusterRole that lets a mover be told about the snapshots of its namespace. Services ask whether the caller
	// may get any snapshot there, never one by name, so a narrower rule would not let it in.
	moverRole = "lifeboat-mover"
)

// cut is a member's snapshot as it was seen, with what stands behind it.
type cut struct {
	claim    string
	snapshot *snapshot.Seen
	stored   *snapshot.Stored
}

// usable reports that the snapshot is there and will stay.
func (c cut) usable() bool {
	return c.snapshot != nil && !c.snapshot.Deleting && c.stored != nil && c.stored.Handle != ""
}

// lists is what the drivers of a session's members can say about changes, as the mover is told.
type lists struct {
	// base is the point that changes are listed since; empty when nobody can list them.
	base string
	// note says why there is no base, or why nothing at all is listed.
	note string
	// services are asked by the mover, each once however many members it serves.
	services []snapshot.MetadataService
	// changes and allocated are by member, or empty.
	changes, allocated []*change.Origin
}

// observeLists reads what is known of the running session's snapshots and of those of the point committed last.
func (r *Reconciler) observeLists(ctx context.Context, v *view) (lists, error) {
	now, err := r.cuts(ctx, v, v.status.Session.Point)
	if err != nil {
		return lists{}, err
	}
	base, err := r.cuts(ctx, v, v.status.BasePoint)
	if err != nil {
		return lists{}, err
	}
	services := map[string]*snapshot.MetadataService{}
	for _, c := range now {
		if c.stored == nil || services[c.stored.Driver] != nil {
			continue
		}
		if services[c.stored.Driver], err = snapshot.MetadataServiceOf(ctx, r.Live, c.stored.Driver); err != nil {
			return lists{}, err
		}
	}
	return offer(v, now, base, services), nil
}

// cuts reads the snapshots that a point has of the session's members.
func (r *Reconciler) cuts(ctx context.Context, v *view, point string) ([]cut, error) {
	out := make([]cut, len(v.status.Session.Claims))
	for i, claim := range v.status.Session.Claims {
		out[i].claim = claim
		if out[i].snapshot = find(v, point, snapshot.ForSession, claim); out[i].snapshot == nil || out[i].snapshot.Content == "" {
			continue
		}
		var err error
		if out[i].stored, err = snapshot.StoredAs(ctx, r.Live, out[i].snapshot.Content); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// offer decides what the mover may ask for. A list must be complete for the whole group or it is not offered: one member
// whose changes nobody lists makes the point no base. The base is named by point, and the target says by name which point it
// holds: the two must be one.
func offer(v *view, now, base []cut, services map[string]*snapshot.MetadataService) lists {
	var l lists
	for _, c := range now {
		if !c.usable() {
			return lists{note: fmt.Sprintf("the storage does not say what it calls the snapshot of claim %s", c.claim)}
		}
		service := services[c.stored.Driver]
		if service == nil {
			return lists{note: fmt.Sprintf("driver %s of claim %s has no SnapshotMetadataService, so nobody lists what changed", c.stored.Driver, c.claim)}
		}
		l.allocated = append(l.allocated, l.origin(v, *service, c.snapshot.Name, ""))
	}
	if l.note = baseless(v, now, base); l.note != "" {
		return l
	}
	l.base = v.status.BasePoint
	for i, c := range now {
		l.changes = append(l.changes, l.origin(v, *services[c.stored.Driver], c.snapshot.Name, base[i].stored.Handle))
	}
	return l
}

// baseless tells why no list leads from the point committed last to this one; empty when one does.
func baseless(v *view, now, base []cut) string {
	last := v.status.RecoveryPoint
	switch {
	case last == nil:
		return "nothing was committed from here yet"
	case v.status.BasePoint != last.Point:
		return fmt.Sprintf("point %s, the newest on the target, is not kept as snapshots here", last.Point)
	}
	for i, c := range now {
		was := base[i]
		switch {
		case !was.usable():
			return fmt.Sprintf("the snapshot of claim %s at point %s is gone", c.claim, last.Point)
		case was.stored.Driver != c.stored.Driver, was.stored.Volume != c.stored.Volume, c.stored.Volume == "":
			return fmt.Sprintf("claim %s has another volume than at point %s", c.claim, last.Point)
		case was.snapshot.RestoreSize != c.snapshot.RestoreSize:
			return fmt.Sprintf("claim %s has another size than at point %s", c.claim, last.Point)
		}
	}
	return ""
}

// origin asks a service about one snapshot; base is empty for what was ever written.
func (l *lists) origin(v *view, service snapshot.MetadataService, name, base string) *change.Origin {
	i := slices.IndexFunc(l.services, func(s snapshot.MetadataService) bool { return s.Driver == service.Driver })
	if i < 0 {
		i = len(l.services)
		l.services = append(l.services, service)
	}
	return &change.Origin{CSI: &change.CSI{Address: service.Address, CAFile: configDir + "/" + caKey(i), TokenFile: tokenDir + "/" + strconv.Itoa(i),
		Namespace: v.rep.Namespace, BaseSnapshot: base, Snapshot: name}}
}

// caKey is where the configuration keeps the certificates of a service.
func caKey(service int) string { return fmt.Sprintf("service-%d.crt", service) }

// files are the certificates of the services, for the mover's configuration.
func (l lists) files() map[string]string {
	out := map[string]string{}
	for i, service := range l.services {
		out[caKey(i)] = string(service.CA)
	}
	return out
}

// mountTokens gives a mover a token for each service, which is good for nothing else, and the account it is of.
func (l lists) mountTokens(pod *corev1.PodSpec, account string) {
	if len(l.services) == 0 {
		return
	}
	life := int64(tokenLife)
	readable := int32(0o400)
	projected := &corev1.ProjectedVolumeSource{DefaultMode: &readable}
	for i, service := range l.services {
		projected.Sources = append(projected.Sources, corev1.VolumeProjection{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{
			Audience: service.Audience, ExpirationSeconds: &life, Path: strconv.Itoa(i)}})
	}
	pod.ServiceAccountName = account
	pod.Volumes = append(pod.Volumes, corev1.Volume{Name: "tokens", VolumeSource: corev1.VolumeSource{Projected: projected}})
	main := &pod.Containers[0]
	main.VolumeMounts = append(main.VolumeMounts, corev1.VolumeMount{Name: "tokens", MountPath: tokenDir, ReadOnly: true})
}

// keepAccount makes the account whose tokens movers show to the drivers' services.
func (r *Reconciler) keepAccount(ctx context.Context, v *view) error {
	about := metav1.ObjectMeta{Namespace: v.rep.Namespace, Name: v.names.mover(), Labels: v.names.labels(v1alpha1.ComponentSourceMover),
		OwnerReferences: []metav1.OwnerReference{ownedBy(v.rep)}}
	no := false
	return errors.Join(
		r.create(ctx, &corev1.ServiceAccount{ObjectMeta: about, AutomountServiceAccountToken: &no}),
		r.create(ctx, &rbacv1.RoleBinding{ObjectMeta: about,
			RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: moverRole},
			Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: v.rep.Namespace, Name: v.names.mover()}}}),
	)
}

func (r *Reconciler) removeAccount(ctx context.Context, v *view) error {
	return errors.Join(
		r.delete(ctx, &rbacv1.RoleBinding{}, v.rep.Namespace, v.names.mover()),
		r.delete(ctx, &corev1.ServiceAccount{}, v.rep.Namespace, v.names.mover()),
	)
}
