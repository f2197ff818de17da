package docker

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// The pause program, as an ELF file that is made here: three signal actions and a wait for ever. It
// needs no compiler to be built again and four kilobytes to run.
//
//	rt_sigaction(SIGCHLD, {SIG_IGN})  the kernel reaps the children that a shared PID namespace gives it
//	rt_sigaction(SIGTERM, {end})      the first process of a namespace is deaf to what it does not handle
//	rt_sigaction(SIGINT, {end})
//	for { pause() }
//	end: exit_group(0)
const (
	pauseBase    = 0x400000 // where the file is mapped
	elfHeader    = 64
	programEntry = 56
	actionSize   = 32 // struct sigaction of the kernel: handler, flags, restorer, mask
	saRestorer   = 0x04000000
	sigIgn       = 1
)

// pauseProgram returns the program for an architecture as Go names it. One that it can't be made for
// is errdefs.ErrNotImplemented.
func pauseProgram(arch string) ([]byte, error) {
	switch arch {
	case "amd64":
		return pauseELF(elf.EM_X86_64, pauseAMD64), nil
	case "arm64":
		return pauseELF(elf.EM_AARCH64, pauseARM64), nil
	}
	return nil, fmt.Errorf("no pause image is built in for %s, name one with --docker-pause-image: %w", arch, errdefs.ErrNotImplemented)
}

// signalAction is one call of rt_sigaction: action is the index of the struct.
type signalAction struct{ signal, action uint32 }

// pauseActions are made in this order; the struct 0 ignores, 1 ends.
var pauseActions = []signalAction{{uint32(unix.SIGCHLD), 0}, {uint32(unix.SIGTERM), 1}, {uint32(unix.SIGINT), 1}}

// pauseELF lays out header, one segment, code and the two structs. Assemble is given the address of the
// structs and returns the code and where in it the handler begins.
func pauseELF(machine elf.Machine, assemble func(actions uint32) (code []byte, handler int)) []byte {
	const start = elfHeader + programEntry
	code, handler := assemble(0)
	data := start + (len(code)+7)&^7
	code, _ = assemble(uint32(pauseBase + data))
	end := uint64(pauseBase + start + handler)
	size := uint64(data + 2*actionSize)
	var b bytes.Buffer
	put := func(v any) { _ = binary.Write(&b, binary.LittleEndian, v) } // a Buffer takes everything
	put(elf.Header64{
		Ident:   [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:    uint16(elf.ET_EXEC),
		Machine: uint16(machine), Version: uint32(elf.EV_CURRENT), Entry: pauseBase + start, Phoff: elfHeader,
		Ehsize: elfHeader, Phentsize: programEntry, Phnum: 1,
	})
	put(elf.Prog64{
		Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Vaddr: pauseBase, Paddr: pauseBase,
		Filesz: size, Memsz: size, Align: 0x10000,
	})
	b.Write(code)
	b.Write(make([]byte, data-start-len(code)))
	put([4]uint64{sigIgn, 0, 0, 0})
	put([4]uint64{end, saRestorer, end, 0})
	return b.Bytes()
}

func pauseAMD64(actions uint32) (code []byte, handler int) {
	const sysPause, sysRtSigaction, sysExitGroup = 34, 13, 231
	var b bytes.Buffer
	load := func(opcode []byte, value uint32) {
		b.Write(opcode)
		b.Write(binary.LittleEndian.AppendUint32(nil, value))
	}
	syscall := func(number uint32) {
		load([]byte{0xb8}, number) // mov eax, number
		b.Write([]byte{0x0f, 0x05})
	}
	for _, a := range pauseActions {
		load([]byte{0xbf}, a.signal)                    // mov edi, signal
		load([]byte{0xbe}, actions+a.action*actionSize) // mov esi, action
		b.Write([]byte{0x31, 0xd2})                     // xor edx, edx
		load([]byte{0x41, 0xba}, 8)                     // mov r10d, size of the mask
		syscall(sysRtSigaction)
	}
	loop := b.Len()
	syscall(sysPause)
	b.Write([]byte{0xeb, byte(loop - b.Len() - 2)}) // jmp loop
	handler = b.Len()
	b.Write([]byte{0x31, 0xff}) // xor edi, edi
	syscall(sysExitGroup)
	return b.Bytes(), handler
}

func pauseARM64(actions uint32) (code []byte, handler int) {
	const sysPpoll, sysRtSigaction, sysExitGroup = 73, 134, 94
	var b bytes.Buffer
	put := func(word uint32) { b.Write(binary.LittleEndian.AppendUint32(nil, word)) }
	load := func(register, value uint32) {
		put(0xd2800000 | value&0xffff<<5 | register) // movz x, low
		put(0xf2a00000 | value>>16<<5 | register)    // movk x, high, lsl 16
	}
	syscall := func(number uint32) {
		load(8, number)
		put(0xd4000001) // svc 0
	}
	for _, a := range pauseActions {
		load(0, a.signal)
		load(1, actions+a.action*actionSize)
		load(2, 0)
		load(3, 8) // size of the mask
		syscall(sysRtSigaction)
	}
	loop := b.Len()
	for register := range uint32(5) { // arm64 has no pause: ppoll of nothing, for ever
		load(register, 0)
	}
	syscall(sysPpoll)
	put(0x14000000 | uint32((loop-b.Len())/4)&0x03ffffff) // b loop
	handler = b.Len()
	load(0, 0)
	syscall(sysExitGroup)
	return b.Bytes(), handler
}
