package posix

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

func mappingChecks() []Check {
	return []Check{
		{"shared mapping", sharedMapping},
		{"private mapping", privateMapping},
		{"mapping of an unlinked file", mappingUnlinked},
		{"mapping of a hole", mappingHole},
	}
}

// aligned returns n bytes at a multiple of 4096, for O_DIRECT.
func aligned(n int) []byte {
	b := make([]byte, n+4096)
	skip := 4096 - int(uintptr(unsafe.Pointer(&b[0]))%4096)
	return b[skip : skip+n]
}

func (e *env) mmap(fd, length, prot, flags int) []byte {
	m, err := unix.Mmap(fd, 0, length, prot, flags)
	e.must("mmap", err)
	return m
}

func sharedMapping(e *env) {
	e.write("f", string(make([]byte, 8192)))
	fd := e.open("f", unix.O_RDWR)
	m := e.mmap(fd, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	other := e.mmap(fd, 8192, unix.PROT_READ, unix.MAP_SHARED)
	defer unix.Munmap(other)
	buf := make([]byte, 6)
	copy(m[5000:], "mapped")
	_, err := unix.Pread(fd, buf, 5000)
	e.must("read", err)
	e.equal("read after a store", string(buf), "mapped")
	_, err = unix.Pwrite(fd, []byte("writes"), 100)
	e.must("write", err)
	e.equal("the mapping after a write", string(m[100:106]), "writes")
	e.equal("another mapping", string(other[5000:5006]), "mapped")
	// Only the first store after a write-back is noticed.
	e.is("msync", unix.Msync(m, unix.MS_SYNC), 0)
	before := e.stat("f").Mtim
	tick()
	m[0] = 'x'
	e.is("msync", unix.Msync(m, unix.MS_SYNC), 0)
	if e.stat("f").Mtim == before {
		e.errorf("a store through a mapping and msync left the modification time")
	}
	e.must("close", unix.Close(fd))
	m[1] = 'y' // a mapping outlives its descriptor
	e.must("munmap", unix.Munmap(m))
	fd = e.open("f", unix.O_RDONLY)
	defer unix.Close(fd)
	_, err = unix.Pread(fd, buf[:2], 0)
	e.must("read", err)
	e.equal("stores before munmap", string(buf[:2]), "xy")
}

func privateMapping(e *env) {
	e.write("f", "original")
	fd := e.open("f", unix.O_RDONLY)
	defer unix.Close(fd)
	m := e.mmap(fd, 8, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	copy(m, "changed!")
	e.must("munmap", unix.Munmap(m))
	e.content("f", "original")
	_, err := unix.Mmap(fd, 0, 8, unix.PROT_WRITE, unix.MAP_SHARED)
	e.is("a shared writable mapping of what is open for reading", err, unix.EACCES)
}

func mappingUnlinked(e *env) {
	e.write("f", "before the unlink")
	fd := e.open("f", unix.O_RDWR)
	m := e.mmap(fd, 17, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	defer unix.Munmap(m)
	e.must("close", unix.Close(fd))
	e.must("unlink", unix.Unlink(e.path("f")))
	e.equal("the mapping", string(m), "before the unlink")
	copy(m, "stores")
	e.is("msync", unix.Msync(m, unix.MS_SYNC), 0)
	e.equal("the mapping", string(m), "stores the unlink")
}

func mappingHole(e *env) {
	e.write("f", "")
	fd := e.open("f", unix.O_RDWR)
	defer unix.Close(fd)
	e.must("grow", unix.Ftruncate(fd, 1<<20))
	m := e.mmap(fd, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	for _, at := range []int{0, 5000, 1<<20 - 1} {
		e.equal("a hole", m[at], byte(0))
	}
	m[600000] = 'x'
	e.must("munmap", unix.Munmap(m))
	buf := make([]byte, 3)
	_, err := unix.Pread(fd, buf, 599999)
	e.must("read", err)
	e.equal("stored into a hole", string(buf), "\x00x\x00")
}
