package files

import (
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
)

// call is a system call that the kernel is told to refuse.
type call struct {
	name   string
	number uintptr
	errs   []syscall.Errno
	arg    uint32 // that tells it from others of the same number …
	test   uint16 // … by being equal to value, or by having one of its bits; 0: all of them
	value  uint32
}

const (
	bpfLoad   = syscall.BPF_LD | syscall.BPF_W | syscall.BPF_ABS
	bpfEqual  = syscall.BPF_JMP | syscall.BPF_JEQ | syscall.BPF_K
	bpfHas    = syscall.BPF_JMP | syscall.BPF_JSET | syscall.BPF_K
	bpfReturn = syscall.BPF_RET | syscall.BPF_K
)

// whileRefused does something on a thread of its own, of which the kernel refuses a call. Go's own system calls pass no library's function
// that could be replaced.
func whileRefused(t *testing.T, c call, e syscall.Errno, do func() error) (err error) {
	const argsAt, allow, refuse = 16, 0x7fff0000, 0x00050000 // struct seccomp_data; SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO
	filter := []syscall.SockFilter{
		{Code: bpfLoad, K: 0},
		{Code: bpfEqual, K: uint32(c.number), Jf: 3},
		{Code: bpfLoad, K: argsAt + 8*c.arg},
		{Code: c.test, K: c.value, Jf: 1},
		{Code: bpfReturn, K: refuse | uint32(e)},
		{Code: bpfReturn, K: allow},
	}
	if c.test == 0 {
		filter[3] = syscall.SockFilter{Code: syscall.BPF_JMP | syscall.BPF_JA}
	}
	var refused syscall.Errno
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		const noNewPrivileges, setSeccomp, byFilter = 38, 22, 2
		if _, _, refused = syscall.RawSyscall6(syscall.SYS_PRCTL, noNewPrivileges, 1, 0, 0, 0, 0); refused != 0 {
			return
		}
		program := syscall.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
		if _, _, refused = syscall.RawSyscall(syscall.SYS_PRCTL, setSeccomp, byFilter, uintptr(unsafe.Pointer(&program))); refused == 0 {
			err = do()
		}
	}()
	<-done
	if refused != 0 {
		t.Skipf("this kernel does not take a thread's filter of system calls: %v", refused)
	}
	return err
}

// Each call on the way to a new file fails: what was there is as it was, nothing is left behind, and the error names the file and nothing else.
func TestOutputOfWhichACallFails(t *testing.T) {
	calls := []call{
		{"create", syscall.SYS_OPENAT, []syscall.Errno{syscall.EIO, syscall.ENOSPC, syscall.EROFS, syscall.EMFILE, syscall.EACCES}, 2, bpfHas, syscall.O_CREAT},
		{"look at the old one", syscall.SYS_OPENAT, []syscall.Errno{syscall.EIO, syscall.EMFILE}, 2, bpfHas, syscall.O_NOFOLLOW},
		{"read the old one", syscall.SYS_READ, []syscall.Errno{syscall.EIO}, 2, bpfEqual, headCap},
		{"write", syscall.SYS_WRITE, []syscall.Errno{syscall.EIO, syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG}, 2, bpfEqual, uint32(len(written))},
		{"mode", syscall.SYS_FCHMOD, []syscall.Errno{syscall.EIO, syscall.EPERM, syscall.EROFS}, 0, 0, 0},
		{"close", syscall.SYS_CLOSE, []syscall.Errno{syscall.EIO, syscall.ENOSPC, syscall.EDQUOT}, 0, 0, 0},
		{"rename", syscall.SYS_RENAMEAT, []syscall.Errno{syscall.EIO, syscall.ENOSPC, syscall.EROFS, syscall.EXDEV}, 0, 0, 0},
	}
	const old = "{\"version\":\"old\"}"
	for _, c := range calls {
		for _, e := range c.errs {
			for _, there := range []bool{true, false} {
				if !there && (c.test == bpfEqual && c.number == syscall.SYS_READ || c.value == syscall.O_NOFOLLOW) {
					continue
				}
				dir := t.TempDir()
				path := filepath.Join(dir, "stats.json")
				if there {
					writeTo(t, path, old)
				}
				err := whileRefused(t, c, e, func() error { return WriteFile(path, []byte(written)) })
				require.EqualError(t, err, path+": "+e.Error(), "%s: %v", c.name, e)
				left, err := os.ReadDir(dir)
				require.NoError(t, err)
				if !there {
					require.Empty(t, left, "%s: %v", c.name, e)
					continue
				}
				require.Len(t, left, 1, "%s: %v", c.name, e)
				require.Equal(t, old, content(t, path), "%s: %v", c.name, e)
				require.NoError(t, WriteFile(path, []byte(written)), "the next time it works")
				require.Equal(t, written, content(t, path))
			}
		}
	}
}
