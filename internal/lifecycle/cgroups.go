package lifecycle

import (
	"strings"

	"gantry/internal/pod"
)

// cgroupUsers knows whose containers are below a cgroup: for each that is a sandbox's, and for each above
// it, how many sandboxes of which pod's UID. Sandboxes of one pod, an old one and its successor, share theirs.
type cgroupUsers struct {
	below  map[string]map[string]int
	placed map[pod.Key]*pod.Sandbox // as it was counted
}

func newCgroupUsers() cgroupUsers {
	return cgroupUsers{below: make(map[string]map[string]int), placed: make(map[pod.Key]*pod.Sandbox)}
}

// place counts a sandbox, once, where it is now.
func (u *cgroupUsers) place(key pod.Key, sb *pod.Sandbox) {
	if was := u.placed[key]; was != nil && was.CgroupPath == sb.CgroupPath {
		return
	}
	u.remove(key)
	if sb.CgroupPath == "" {
		return
	}
	u.placed[key] = sb
	upwards(sb.CgroupPath, func(cgroup string) {
		if u.below[cgroup] == nil {
			u.below[cgroup] = make(map[string]int)
		}
		u.below[cgroup][sb.Spec.Metadata.UID]++
	})
}

func (u *cgroupUsers) remove(key pod.Key) {
	sb := u.placed[key]
	if sb == nil {
		return
	}
	delete(u.placed, key)
	upwards(sb.CgroupPath, func(cgroup string) {
		of := u.below[cgroup]
		if of[sb.Spec.Metadata.UID]--; of[sb.Spec.Metadata.UID] == 0 {
			delete(of, sb.Spec.Metadata.UID)
		}
		if len(of) == 0 {
			delete(u.below, cgroup)
		}
	})
}

// shared says whether a pod that is not uid's has the cgroup, or one below it.
func (u *cgroupUsers) shared(cgroup, uid string) bool {
	of := u.below[cgroup]
	return len(of) > 1 || len(of) == 1 && of[uid] == 0
}

// upwards calls each with a cgroup and all that it is below.
func upwards(cgroup string, each func(string)) {
	for at := len(cgroup); at > 0; at = strings.LastIndexByte(cgroup[:at], '/') {
		each(cgroup[:at])
	}
	if cgroup != "/" {
		each("/")
	}
}
