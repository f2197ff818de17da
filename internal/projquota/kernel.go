package projquota

import (
	"errors"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// From linux/quota.h and linux/dqblk_xfs.h. The xfs commands work on ext4 too (fs/quota/quota.c).
const (
	projects = 2 // PRJQUOTA

	getQuota = 0x800007<<8 | projects // QCMD(Q_GETQUOTA, PRJQUOTA)
	getState = 0x5808<<8 | projects   // QCMD(Q_XGETQSTATV, PRJQUOTA)

	accountsProjects = 1 << 4 // FS_QUOTA_PDQ_ACCT
)

// state is struct fs_quota_statv as far as it matters here.
type state struct {
	version int8 // FS_QSTATV_VERSION1
	_       uint8
	flags   uint16
	_       [156]byte
}

// quota is struct if_dqblk.
type quota struct {
	bytesHard, bytesSoft, bytes    uint64 // limits in blocks of 1 KiB, the use in bytes
	inodesHard, inodesSoft, inodes uint64
	_, _                           uint64 // grace times
	_                              uint32 // which fields are valid
}

func (q *quota) unused() bool {
	return q.bytes|q.inodes|q.bytesHard|q.bytesSoft|q.inodesHard|q.inodesSoft == 0
}

// quotactl is quotactl_fd(2), which needs no name of a block device.
func quotactl(dir *os.File, cmd uintptr, id uint32, answer unsafe.Pointer) error {
	_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, dir.Fd(), cmd, uintptr(id), uintptr(answer), 0, 0)
	runtime.KeepAlive(dir)
	if errno != 0 {
		return os.NewSyscallError("quotactl_fd", errno)
	}
	return nil
}

// accounting says whether the file system of dir counts what projects occupy.
func accounting(dir *os.File) (bool, error) {
	s := state{version: 1}
	err := quotactl(dir, getState, 0, unsafe.Pointer(&s))
	return s.flags&accountsProjects != 0, err
}

// quotaOf is what a project occupies and may; one that never had a file occupies nothing.
func quotaOf(dir *os.File, id uint32) (*quota, error) {
	var q quota
	if err := quotactl(dir, getQuota, id, unsafe.Pointer(&q)); err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, err
	}
	return &q, nil
}

const inherit = 0x200 // FS_XFLAG_PROJINHERIT, linux/fs.h

// attributes are struct fsxattr.
type attributes struct {
	flags   uint32
	_, _    uint32
	project uint32
	_       uint32
	_       [8]byte
}

// FS_IOC_FSGETXATTR and FS_IOC_FSSETXATTR: _IOR and _IOW('X', 31 and 32, struct fsxattr).
const (
	getAttributes = 0x801c581f
	setAttributes = 0x401c5820
)

func attributesOf(dir *os.File) (*attributes, error) {
	var a attributes
	return &a, ioctl(dir, getAttributes, &a)
}

// setProject puts an empty directory, and what will be made in it, into a project.
func setProject(path string, id uint32) error {
	dir, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	a, err := attributesOf(dir)
	if err != nil {
		return err
	}
	a.project = id
	a.flags |= inherit
	return ioctl(dir, setAttributes, a)
}

func ioctl(dir *os.File, request uintptr, a *attributes) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), request, uintptr(unsafe.Pointer(a)))
	runtime.KeepAlive(dir)
	if errno != 0 {
		return os.NewSyscallError("ioctl", errno)
	}
	return nil
}
