package lab

// CgroupFor is Cgroup with the time that what was killed may take to leave.
var CgroupFor = cgroup

// RemoveCgroup is what Cgroup does when the test ends.
func RemoveCgroup(path string) (left []string) { return removeCgroup(path, endTime) }
