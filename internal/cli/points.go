package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/duration"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"lifeboat.dev/lifeboat/api/v1alpha1"
	"lifeboat.dev/lifeboat/internal/snapshot"
)

func newRecoveryPointsCommand() *cobra.Command {
	var kubeContext, namespace string
	cmd := &cobra.Command{
		Use:   "recovery-points REPLICATION",
		Short: "List the recovery points that a target keeps of a replication",
		Long: `List the recovery points that a target keeps of a replication, newest first.

Points are kept as snapshots in the target's cluster. They are also listed when the Replication was deleted with
retainSnapshotsOnDeletion.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := kubeClient(kubeContext)
			if err != nil {
				return err
			}
			points, err := readPoints(cmd.Context(), c, types.NamespacedName{Namespace: namespace, Name: args[0]})
			if err != nil {
				return err
			}
			return printPoints(points, time.Now(), cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&kubeContext, "context", "", "kubeconfig context of the target's cluster (empty: the current one)")
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "default", "namespace of the replication")
	return cmd
}

// keptPoint is one recovery point as it can be used.
type keptPoint struct {
	v1alpha1.RecoveryPoint
	// present is true for the point the replica itself holds.
	present bool
	// snapshots are by claim; none for a point that only the replica holds.
	snapshots []snapshot.Seen
}

// restorable tells whether claims can be made from the point, and why not.
func (p keptPoint) restorable() (bool, string) {
	if len(p.snapshots) == 0 {
		return false, "no: only the replica holds it"
	}
	for _, s := range p.snapshots {
		switch {
		case s.Deleting:
			return false, "no: it is being deleted"
		case !s.Ready && s.Error != "":
			return false, "no: " + s.Error
		case !s.Ready:
			return false, "not yet"
		}
	}
	return true, "yes"
}

// add takes a snapshot in. Of a claim that was asked for in two ways, because the storage refused the first, the one that stays counts.
func (p *keptPoint) add(s snapshot.Seen) {
	i := slices.IndexFunc(p.snapshots, func(had snapshot.Seen) bool { return had.Claim == s.Claim })
	switch {
	case i < 0:
		p.snapshots = append(p.snapshots, s)
	case p.snapshots[i].Deleting:
		p.snapshots[i] = s
	default:
		return
	}
	p.GroupSnapshot = s.Group
}

// size is what the claims made from the point take at least.
func (p keptPoint) size() int64 {
	var sum int64
	for _, s := range p.snapshots {
		sum += s.RestoreSize
	}
	return sum
}

func (p keptPoint) keptAs() string {
	var as []string
	switch {
	case p.GroupSnapshot != "":
		as = append(as, "VolumeGroupSnapshot "+p.GroupSnapshot)
	case len(p.snapshots) == 1:
		as = append(as, "VolumeSnapshot "+p.snapshots[0].Name)
	case len(p.snapshots) > 1:
		as = append(as, fmt.Sprintf("%d VolumeSnapshots", len(p.snapshots)))
	}
	if p.present {
		as = append(as, "replica")
	}
	return strings.Join(as, " + ")
}

// readPoints reads what a cluster keeps of a replication, whether the Replication is there or not.
func readPoints(ctx context.Context, reader client.Reader, key types.NamespacedName) ([]keptPoint, error) {
	var rep v1alpha1.Replication
	err := reader.Get(ctx, key, &rep)
	gone := apierrors.IsNotFound(err)
	if err != nil && !gone {
		return nil, fmt.Errorf("replication %s: %w", key, err)
	}
	seen, err := snapshot.List(ctx, reader, key)
	if err != nil {
		return nil, err
	}
	points := joinPoints(&rep, seen)
	switch {
	case len(points) > 0:
		return points, nil
	case gone:
		return nil, fmt.Errorf("replication %s: there is none here, and no recovery point of it is kept here", key)
	case rep.Status.Role == v1alpha1.RoleSource:
		return nil, fmt.Errorf("replication %s: this cluster is the source; recovery points are kept on the target: use --context", key)
	}
	return nil, nil
}

// joinPoints joins what the Replication and what the snapshots tell, newest first.
func joinPoints(rep *v1alpha1.Replication, seen []snapshot.Seen) []keptPoint {
	points := map[string]*keptPoint{}
	if rep.Status.Role == v1alpha1.RoleTarget {
		for _, link := range rep.Status.Rlinks {
			for _, p := range link.RecoveryPoints {
				points[p.Point] = &keptPoint{RecoveryPoint: p}
			}
			if p := link.RecoveryPoint; p != nil {
				points[p.Point] = &keptPoint{RecoveryPoint: *p, present: true}
			}
		}
	}
	for _, s := range seen {
		if s.Purpose != snapshot.ForRecovery {
			continue
		}
		p := points[s.Point]
		if p == nil {
			p = &keptPoint{RecoveryPoint: v1alpha1.RecoveryPoint{Point: s.Point, Epoch: s.Epoch, Cut: s.Cut}}
			p.Time.Time = cmp.Or(s.Instant, s.CreatedAt)
			points[s.Point] = p
		}
		p.add(s)
	}
	var out []keptPoint
	for _, p := range points {
		// What the status still tells of snapshots that have gone is no point any more.
		if p.present || len(p.snapshots) > 0 {
			slices.SortFunc(p.snapshots, func(a, b snapshot.Seen) int { return strings.Compare(a.Claim, b.Claim) })
			out = append(out, *p)
		}
	}
	slices.SortFunc(out, func(a, b keptPoint) int {
		return cmp.Or(b.Time.Compare(a.Time.Time), strings.Compare(b.Point, a.Point))
	})
	return out
}

func printPoints(points []keptPoint, now time.Time, out io.Writer) error {
	if len(points) == 0 {
		_, err := fmt.Fprintln(out, "no recovery point yet")
		return err
	}
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "POINT\tAGE\tINSTANT\tEPOCH\tONE INSTANT\tSIZE\tKEPT AS\tRESTORABLE")
	for _, p := range points {
		_, restorable := p.restorable()
		size := "-"
		if p.size() > 0 {
			size = humanBytes(p.size())
		}
		epoch := "-"
		if p.Epoch > 0 {
			epoch = fmt.Sprint(p.Epoch)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", p.Point, duration.HumanDuration(now.Sub(p.Time.Time)), p.Time.UTC().Format(time.RFC3339), epoch,
			oneInstant(p.Cut), size, orDash(p.keptAs()), restorable)
	}
	return w.Flush()
}

func oneInstant(cut v1alpha1.CutAtomicity) string {
	switch cut {
	case v1alpha1.CutAtomic:
		return "yes"
	case v1alpha1.CutSingle:
		return "one claim"
	case v1alpha1.CutNotAtomic:
		return "no"
	}
	return "not known"
}

// restoreOptions says what is made from which point.
type restoreOptions struct {
	key          types.NamespacedName
	point        string
	suffix       string
	storageClass string
	timeout      time.Duration
	noWait       bool
}

const latestPoint = "latest"

func newRestoreCommand() *cobra.Command {
	var kubeContext string
	o := restoreOptions{}
	cmd := &cobra.Command{
		Use:   "restore REPLICATION --point ID --suffix SUFFIX",
		Short: "Make new claims from a recovery point, beside those that are there",
		Long: `Make new claims from a recovery point, beside those that are there.

Each claim of the point gets a new one of its name with the suffix behind it. Nothing that exists is written over:
when one of the new names is taken, nothing is made. The replica and its replication go on. lifeboat
recovery-points lists the points.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := kubeClient(kubeContext)
			if err != nil {
				return err
			}
			o.key.Name = args[0]
			return restorePoint(cmd.Context(), c, o, cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.StringVar(&kubeContext, "context", "", "kubeconfig context of the target's cluster (empty: the current one)")
	f.StringVarP(&o.key.Namespace, "namespace", "n", "default", "namespace of the replication")
	f.StringVar(&o.point, "point", "", "id of the point, or latest for the newest that can be restored")
	f.StringVar(&o.suffix, "suffix", "-restored", "what is put behind each claim's name")
	f.StringVar(&o.storageClass, "storage-class", "", "storage class of the new claims (empty: that of the claim the point is of)")
	f.DurationVar(&o.timeout, "timeout", 5*time.Minute, "how long to wait until the new claims are bound")
	f.BoolVar(&o.noWait, "no-wait", false, "return once the claims are made")
	_ = cmd.MarkFlagRequired("point")
	return cmd
}

// restorePoint judges first and makes then: a name that is taken is found before anything is made.
func restorePoint(ctx context.Context, c client.Client, o restoreOptions, out io.Writer) error {
	if o.suffix == "" {
		return errors.New("--suffix is empty: the new claims need names of their own, such as with -restored")
	}
	points, err := readPoints(ctx, c, o.key)
	if err != nil {
		return err
	}
	p, err := choosePoint(points, o)
	if err != nil {
		return err
	}
	var claims []*corev1.PersistentVolumeClaim
	for _, s := range p.snapshots {
		claim, err := restoredClaim(ctx, c, o, p, s)
		if err != nil {
			return err
		}
		claims = append(claims, claim)
	}
	for _, claim := range claims {
		if err := c.Create(ctx, claim); err != nil {
			return fmt.Errorf("create claim %s/%s: %w", claim.Namespace, claim.Name, err)
		}
		fmt.Fprintf(out, "claim %s/%s is made from point %s of %s\n", claim.Namespace, claim.Name, p.Point, p.Time.UTC().Format(time.RFC3339))
	}
	if o.noWait {
		return nil
	}
	return waitRestored(ctx, c, o, claims, out)
}

// choosePoint finds the point that was asked for, and refuses one that cannot be restored.
func choosePoint(points []keptPoint, o restoreOptions) (keptPoint, error) {
	var ids []string
	for _, p := range points {
		ok, why := p.restorable()
		switch {
		case p.Point == o.point && !ok:
			return p, fmt.Errorf("--point %s: it cannot be restored: %s", o.point, why)
		case p.Point == o.point, o.point == latestPoint && ok:
			return p, nil
		case ok:
			ids = append(ids, p.Point)
		}
	}
	if len(ids) == 0 {
		return keptPoint{}, fmt.Errorf("--point %s: replication %s keeps no point here that can be restored", o.point, o.key)
	}
	return keptPoint{}, fmt.Errorf("--point %s: replication %s keeps no such point here; it keeps %s", o.point, o.key, strings.Join(ids, ", "))
}

// restoredClaim is the claim to be made from a snapshot; an error when its name is taken. It bears no label of its replication: it is
// the user's, and nobody else removes it.
func restoredClaim(ctx context.Context, c client.Client, o restoreOptions, p keptPoint, s snapshot.Seen) (*corev1.PersistentVolumeClaim, error) {
	name := s.Claim + o.suffix
	var taken corev1.PersistentVolumeClaim
	err := c.Get(ctx, client.ObjectKey{Namespace: o.key.Namespace, Name: name}, &taken)
	switch {
	case err == nil:
		return nil, fmt.Errorf("claim %s/%s exists: nothing is written over; choose another --suffix or delete it", o.key.Namespace, name)
	case !apierrors.IsNotFound(err):
		return nil, fmt.Errorf("look for claim %s/%s: %w", o.key.Namespace, name, err)
	}
	var like corev1.PersistentVolumeClaim
	if err := c.Get(ctx, client.ObjectKey{Namespace: o.key.Namespace, Name: s.Claim}, &like); client.IgnoreNotFound(err) != nil {
		return nil, fmt.Errorf("read claim %s/%s: %w", o.key.Namespace, s.Claim, err)
	}
	return newRestoredClaim(o, p, s, name, &like), nil
}

func newRestoredClaim(o restoreOptions, p keptPoint, s snapshot.Seen, name string, like *corev1.PersistentVolumeClaim) *corev1.PersistentVolumeClaim {
	group := "snapshot.storage.k8s.io"
	claim := &corev1.PersistentVolumeClaim{}
	claim.Namespace, claim.Name = o.key.Namespace, name
	claim.Annotations = map[string]string{v1alpha1.AnnotationVolume: s.Claim, v1alpha1.AnnotationRestoredFrom: o.key.Name + "@" + p.Point}
	claim.Spec = corev1.PersistentVolumeClaimSpec{
		AccessModes: like.Spec.AccessModes, StorageClassName: like.Spec.StorageClassName, VolumeMode: like.Spec.VolumeMode,
		DataSource: &corev1.TypedLocalObjectReference{APIGroup: &group, Kind: "VolumeSnapshot", Name: s.Name},
		Resources:  corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{}},
	}
	size := like.Status.Capacity[corev1.ResourceStorage]
	if size.Value() < s.RestoreSize {
		size.Set(s.RestoreSize)
	}
	claim.Spec.Resources.Requests[corev1.ResourceStorage] = size
	if o.storageClass != "" {
		claim.Spec.StorageClassName = &o.storageClass
	}
	if len(claim.Spec.AccessModes) == 0 {
		claim.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
	}
	return claim
}

// waitRestored waits until the claims are bound. One whose class waits for its first pod is as far as it gets.
func waitRestored(ctx context.Context, c client.Client, o restoreOptions, claims []*corev1.PersistentVolumeClaim, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	for _, claim := range claims {
		late, err := snapshot.BindsLate(ctx, c, claim)
		if err != nil {
			return err
		}
		if late {
			fmt.Fprintf(out, "claim %s/%s is bound once a pod mounts it\n", claim.Namespace, claim.Name)
			continue
		}
		for {
			if err := c.Get(ctx, client.ObjectKeyFromObject(claim), claim); err != nil && ctx.Err() == nil {
				return fmt.Errorf("read claim %s/%s: %w", claim.Namespace, claim.Name, err)
			}
			if claim.Status.Phase == corev1.ClaimBound {
				fmt.Fprintf(out, "claim %s/%s is bound\n", claim.Namespace, claim.Name)
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("claim %s/%s is not bound after %s (phase %s): see its events; it is bound by itself later", claim.Namespace, claim.Name, o.timeout, claim.Status.Phase)
			case <-time.After(250 * time.Millisecond):
			}
		}
	}
	return nil
}
