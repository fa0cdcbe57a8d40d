# A boot sector that does what every guest does and a broken KVM cannot: it goes
# through protected into long mode with paging on, runs SSE instructions and a
# loop, and ends its machine through QEMU's isa-debug-exit device at port 0xf4.
# QEMU exits with (0x21 << 1) | 1 = 67 when all went well.
#
# probe.bin is made of it by:
#   as --64 -o probe.o probe.S
#   ld -m elf_x86_64 --oformat binary -Ttext 0x7c00 -o probe.bin probe.o

	.code16
	.globl	_start
_start:
	cli
	xor	%ax, %ax
	mov	%ax, %ds
	mov	%ax, %es
	mov	%ax, %ss
	mov	$0x7c00, %sp

	# Page tables at 0x1000, 0x2000 and 0x3000: the first 2 MiB, mapped to themselves.
	mov	$0x1000, %di
	mov	$0x1800, %cx
	rep stosw
	movl	$0x2003, 0x1000
	movl	$0x3003, 0x2000
	movl	$0x0083, 0x3000

	lgdt	gdt_pointer
	mov	%cr4, %eax
	or	$0x620, %eax		# PAE, OSFXSR, OSXMMEXCPT
	mov	%eax, %cr4
	mov	$0x1000, %eax
	mov	%eax, %cr3
	mov	$0xc0000080, %ecx	# EFER
	rdmsr
	or	$0x100, %eax		# long mode
	wrmsr
	mov	%cr0, %eax
	and	$0xfffffffb, %eax	# no FPU emulation
	or	$0x80000003, %eax	# paging, protection, monitor coprocessor
	mov	%eax, %cr0
	ljmp	$8, $long_mode

	.code64
long_mode:
	mov	$16, %eax
	mov	%eax, %ds
	mov	%eax, %ss
	xor	%eax, %eax
	cpuid
	mov	$1000, %ecx
	xor	%ebx, %ebx
add:
	add	%ecx, %ebx
	movq	%rbx, %xmm0
	paddq	%xmm0, %xmm1
	loop	add
	mov	$0x21, %al
	cmp	$500500, %ebx
	je	leave
	mov	$0x22, %al
leave:
	mov	$0xf4, %dx
	out	%al, %dx
halt:
	hlt
	jmp	halt

	.balign	8
gdt:
	.quad	0
	.quad	0x00209a0000000000	# 64-bit code
	.quad	0x0000920000000000	# data
gdt_pointer:
	.word	23
	.long	gdt

	.org	510
	.word	0xaa55
