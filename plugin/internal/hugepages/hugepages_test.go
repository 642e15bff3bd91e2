package hugepages

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
)

const page = 2 << 20

// mover is one whose pages answers are for, and which runs by hand.
func mover(ranges int, madvise func(at, size uintptr) syscall.Errno) *Mover {
	return &Mover{Ranges: make([]Range, ranges), size: page, madvise: madvise, stop: make(chan struct{})}
}

func TestWholePagesInUse(t *testing.T) {
	var asked []uintptr
	m := mover(2, func(at, size uintptr) syscall.Errno {
		require.EqualValues(t, page, size)
		asked = append(asked, at/page)
		return 0
	})
	require.False(t, m.moveOne(), "nothing is known")

	m.Ranges[0].Use(10*page+64, 13*page-64) // of the three pages that it touches one is its own
	require.True(t, m.moveOne())
	require.False(t, m.moveOne())
	require.Equal(t, []uintptr{11}, asked)

	m.Ranges[0].Use(10*page+64, 14*page) // it has grown
	m.Ranges[1].Use(20*page, 21*page)
	for m.moveOne() {
	}
	require.Equal(t, []uintptr{11, 12, 13, 20}, asked)
	require.EqualValues(t, 4*page, m.Bytes())

	m.Ranges[0].Use(10*page+64, 12*page) // another sequence, which is shorter: what was moved stays
	require.False(t, m.moveOne())

	m.Ranges[0].Use(30*page, 31*page) // the host has other memory
	for m.moveOne() {
	}
	require.Equal(t, []uintptr{11, 12, 13, 20, 30}, asked)
	require.EqualValues(t, 2*page, m.Bytes())
}

func TestEndsWhereTheKernelHasNoRoom(t *testing.T) {
	calls := 0
	m := mover(1, func(uintptr, uintptr) syscall.Errno {
		if calls++; calls == 3 {
			return 0
		}
		return syscall.ENOMEM
	})
	m.Ranges[0].Use(page, 100*page)
	for m.refused < patience && m.moveOne() {
	}
	require.Equal(t, 3+patience, calls)
	require.EqualValues(t, page, m.Bytes())
	m.Ranges[0].Use(200*page, 300*page)
	m.moveOne()
	require.Zero(t, m.Bytes(), "what was passed over is not counted twice")
}

// huge is how much of the process's memory from at on lies in huge pages.
func huge(t *testing.T, at uintptr) int {
	text, err := os.ReadFile("/proc/self/smaps")
	require.NoError(t, err)
	inside := false
	for _, line := range strings.Split(string(text), "\n") {
		field := strings.Fields(line)
		if len(field) > 0 && strings.Contains(field[0], "-") {
			first, last, _ := strings.Cut(field[0], "-")
			low, _ := strconv.ParseUint(first, 16, 64)
			high, _ := strconv.ParseUint(last, 16, 64)
			inside = uint64(at) >= low && uint64(at) < high
		}
		if inside && len(field) > 1 && field[0] == "AnonHugePages:" {
			kB, _ := strconv.Atoi(field[1])
			return kB << 10
		}
	}
	return 0
}

// Memory of this process, moved while it is written: nothing is lost.
func TestRealMemoryIsMovedAndStaysAsItIs(t *testing.T) {
	if sizeAt("/sys/kernel/mm/transparent_hugepage/") != page {
		t.Skip("this system has no huge pages of 2 MB, or wants none")
	}
	memory, err := syscall.Mmap(-1, 0, 9*page, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	require.NoError(t, err)
	defer syscall.Munmap(memory)
	begin := uintptr(unsafe.Pointer(&memory[0]))
	for i := range memory {
		memory[i] = byte(i * 7 >> 3)
	}
	if madvise((begin+page-1)&^(page-1), page) == syscall.EINVAL {
		t.Skip("this kernel moves no memory: Linux 6.1 does")
	}
	m := Start(1)
	defer m.Stop()
	m.Ranges[0].Use(begin+100, begin+9*page-100)
	give := time.Now().Add(90 * time.Second) // on a busy machine a page can take a second
	for round := byte(0); m.Bytes() < 4*page; round++ {
		require.True(t, time.Now().Before(give), "%d bytes", m.Bytes())
		for i := range memory {
			memory[i]++
		}
		time.Sleep(20 * time.Millisecond)
		for i := range memory {
			if want := byte(i*7>>3) + round + 1; memory[i] != want {
				t.Fatalf("byte %d: %d, not %d", i, memory[i], want)
			}
		}
	}
	require.GreaterOrEqual(t, huge(t, begin+page), 4*page)
}

func TestSystemsThatWantNone(t *testing.T) {
	folder := t.TempDir() + "/"
	require.Zero(t, sizeAt(folder), "a kernel without huge pages")
	for use, want := range map[string]uintptr{"always [madvise] never": page, "[always] madvise never": page, "always madvise [never]": 0} {
		require.NoError(t, os.WriteFile(filepath.Join(folder, "enabled"), []byte(use+"\n"), 0o600))
		require.NoError(t, os.WriteFile(filepath.Join(folder, "hpage_pmd_size"), []byte("2097152\n"), 0o600))
		require.Equal(t, want, sizeAt(folder), use)
	}
	require.NoError(t, os.WriteFile(filepath.Join(folder, "enabled"), []byte("always [madvise] never\n"), 0o600))
	for _, size := range []string{"536870912", "3000000", "", "x"} {
		require.NoError(t, os.WriteFile(filepath.Join(folder, "hpage_pmd_size"), []byte(size), 0o600))
		require.Zero(t, sizeAt(folder), size)
	}
}

func TestUseAllocatesNothing(t *testing.T) {
	var r Range
	end := uintptr(page)
	require.Zero(t, testing.AllocsPerRun(100, func() {
		end += 4096
		r.Use(page, end)
	}))
}
