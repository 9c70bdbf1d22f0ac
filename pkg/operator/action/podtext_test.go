package action

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestPodText: what is said of a check while it waits, while it runs, and at its end.
func TestPodText(t *testing.T) {
	for _, one := range []struct {
		state         corev1.ContainerState
		said, waiting string
	}{
		{corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}}, "ContainerCreating",
			"its pod does not run yet: ContainerCreating"},
		{corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ErrImagePull", Message: "no such image"}},
			"ErrImagePull: no such image", "its pod does not run yet: ErrImagePull: no such image"},
		{corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}, "", "it runs"},
		{corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Message: "7 orders\n"}}, "7 orders",
			"its pod has ended"},
		{corev1.ContainerState{}, "", "its pod has not started"},
	} {
		pods := &corev1.PodList{Items: make([]corev1.Pod, 1)}
		pods.Items[0].Status.ContainerStatuses = []corev1.ContainerStatus{{State: one.state}}
		if said, waiting := podText(pods); said != one.said || waiting != one.waiting {
			t.Errorf("%+v: %q, %q", one.state, said, waiting)
		}
	}
}
