/* Entry from a multiboot loader (32-bit, paging off, interrupts off): a stack,
   flat segments of our own, and one interrupt, the local APIC's timer. */

        .set    MAGIC, 0x1badb002
        .set    FLAGS, 3                /* page-aligned modules, memory sizes */
        .set    CODE, 8
        .set    DATA, 16
        .set    APIC_END_OF_INTERRUPT, 0xfee000b0

        .section .multiboot, "a"
        .align  4
        .long   MAGIC, FLAGS, -(MAGIC + FLAGS)

        .section .bss
        .align  16
        .skip   16384
stack_top:

        .text
        .global start
start:  mov     $stack_top, %esp
        lgdt    gdt_pointer
        ljmp    $CODE, $1f
1:      mov     $DATA, %cx
        mov     %cx, %ds
        mov     %cx, %es
        mov     %cx, %ss
        push    %ebx                    /* what the loader tells us */
        call    tiny_main
2:      cli
        hlt
        jmp     2b

/* Only ends the halt that the idle loop is in. */
        .global on_timer
on_timer:
        movl    $0, APIC_END_OF_INTERRUPT
        iret

        .section .rodata
        .align  8
gdt:    .quad   0
        .quad   0x00cf9a000000ffff      /* CODE: 0 to 4 GiB, execute and read */
        .quad   0x00cf92000000ffff      /* DATA: 0 to 4 GiB, read and write */
gdt_pointer:
        .word   gdt_pointer - gdt - 1
        .long   gdt

        .section .note.GNU-stack, "", @progbits
