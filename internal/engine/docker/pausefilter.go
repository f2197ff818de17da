package docker

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/moby/moby/api/types/container"
)

// filterPause confines the built-in pause program to what it and the end of a container's start need: far less than
// Docker's own profile allows, and a filter that runc makes in a fraction of the time.
func (n *node) filterPause(host *container.HostConfig) (*container.HostConfig, error) {
	if !n.seccomp {
		return host, nil
	}
	profile, err := pauseFilter()
	if err != nil {
		return nil, fmt.Errorf("seccomp profile of the pause container: %w", err)
	}
	confined := *host
	confined.SecurityOpt = append(slices.Clone(host.SecurityOpt), "seccomp="+profile)
	return &confined, nil
}

// pauseFilter is a profile in Docker's form. What it does not name gets EPERM; system calls of another
// architecture end the process.
func pauseFilter() (string, error) {
	type rule struct {
		Names  []string `json:"names"`
		Action string   `json:"action"`
	}
	profile, err := json.Marshal(struct {
		DefaultAction string `json:"defaultAction"`
		Syscalls      []rule `json:"syscalls"`
	}{"SCMP_ACT_ERRNO", []rule{{pauseSyscalls(), "SCMP_ACT_ALLOW"}}})
	return string(profile), err
}

// pauseSyscalls are those of the program, and of an OCI runtime between the filter and execve: runc and crun set it
// last of all where there are no new privileges, and runc is a Go program with threads. None opens anything to a
// process that has neither a file nor a peer.
func pauseSyscalls() []string {
	program := []string{"rt_sigaction", "pause", "ppoll", "rt_sigreturn", "restart_syscall", "exit_group"}
	files := []string{
		"close", "close_range", "dup", "dup3", "fchdir", "fcntl", "fstat", "fstatfs", "getcwd", "getdents64", "ioctl", "lseek",
		"newfstatat", "openat", "openat2", "pread64", "read", "readlinkat", "statfs", "statx", "write",
	}
	process := []string{
		"capget", "capset", "execve", "execveat", "exit", "getegid", "geteuid", "getgid", "getpid", "getppid", "gettid", "getuid",
		"prctl", "prlimit64", "seccomp", "setgid", "setgroups", "setresgid", "setresuid", "setuid", "uname", "wait4", "waitid",
	}
	threads := []string{
		"arch_prctl", "clock_gettime", "clock_nanosleep", "clone", "clone3", "futex", "getrandom", "gettimeofday", "membarrier",
		"nanosleep", "rseq", "rt_sigprocmask", "sched_getaffinity", "sched_yield", "set_robust_list", "set_tid_address",
		"sigaltstack", "tgkill", "timer_create", "timer_delete", "timer_settime",
	}
	memory := []string{"brk", "madvise", "mmap", "mprotect", "mremap", "munmap"}
	events := []string{"epoll_create1", "epoll_ctl", "epoll_pwait", "eventfd2", "pipe2"}
	return slices.Concat(program, files, process, threads, memory, events)
}
