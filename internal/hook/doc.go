// Package hook stops an application without forgetting how it ran, and starts it again.
//
//	Offline  Deployments, StatefulSets, ReplicaSets, ReplicationControllers to 0 replicas with the count kept;
//	         CronJobs and unfinished Jobs suspended; DaemonSets kept off every node. Then it waits until the
//	         application's pods are gone: only then has everything they wrote left their mounts.
//	Online   the inverse.
//	Observe  what runs now.
//
// Rules run commands in pods that quiesce an application while its volumes are cut, and let it go: rules.go tells what is run
// where and for whom, command.go what a command is that holds, exec.go how it gets into a pod.
//
// The pure part is workload.go (what a stopped workload looks like) and judge.go (what a look means); begin
// reading at Hook.Offline. It never deletes a pod, never touches volumes, and does not know why it was asked.
//
// HorizontalPodAutoscalers are left alone: one whose target has 0 replicas turns itself off (condition
// ScalingActive False, reason ScalingDisabled) and on again with the first replica. What is not stopped yet:
// workloads that an operator sets back (a custom resource owns them), and scalers that scale from 0 by
// themselves. Their pods stay, and are named in Waiting.
package hook
