#include "tiny.h"

/* The local APIC is the one timer that every machine type has (a microvm may
   come without the two old interrupt controllers and their timer). */

enum {
    APIC = 0xfee00000,
    APIC_SPURIOUS = 0xf0,
    APIC_TIMER = 0x320,
    APIC_INITIAL_COUNT = 0x380,
    APIC_DIVIDE = 0x3e0,

    SOFTWARE_ENABLE = 1 << 8,
    PERIODIC = 1 << 17,
    DIVIDE_BY_16 = 3,
    COUNTS_PER_TICK = 3125000, /* 50 ms of QEMU's 1 GHz bus, divided by 16 */

    PIC1_MASK = 0x21,
    PIC2_MASK = 0xa1,

    VECTOR = 0x40,
    SPURIOUS_VECTOR = 0x4f,
    VECTORS = 0x50,

    CODE_SEGMENT = 8,
    PRESENT_INTERRUPT_GATE = 0x8e00,
};

void on_timer(void);

static struct {
    uint16_t low, segment, flags, high;
} gates[VECTORS];

static void gate(unsigned vector, void (*handler)(void))
{
    uint32_t address = (uint32_t)handler;
    gates[vector].low = (uint16_t)address;
    gates[vector].segment = CODE_SEGMENT;
    gates[vector].flags = PRESENT_INTERRUPT_GATE;
    gates[vector].high = (uint16_t)(address >> 16);
}

void timer_start(void)
{
    struct __attribute__((packed)) {
        uint16_t limit;
        uint32_t base;
    } table = {sizeof gates - 1, (uint32_t)gates};

    gate(VECTOR, on_timer);
    gate(SPURIOUS_VECTOR, on_timer);
    __asm__ volatile("lidt %0" ::"m"(table));

    out8(PIC1_MASK, 0xff);
    out8(PIC2_MASK, 0xff);
    *device_memory(APIC + APIC_SPURIOUS) = SOFTWARE_ENABLE | SPURIOUS_VECTOR;
    *device_memory(APIC + APIC_DIVIDE) = DIVIDE_BY_16;
    *device_memory(APIC + APIC_TIMER) = PERIODIC | VECTOR;
    *device_memory(APIC + APIC_INITIAL_COUNT) = COUNTS_PER_TICK;
}

void sleep_one_tick(void)
{
    /* `sti` takes effect after the next instruction: no tick is lost between. */
    __asm__ volatile("sti; hlt; cli" ::: "memory");
}
