/* What the parts of the tiny guest offer each other. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- x86 ports and memory ---------------------------------------------- */

static inline void out8(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port));
}

static inline void out16(uint16_t port, uint16_t value)
{
    __asm__ volatile("outw %0, %1" ::"a"(value), "Nd"(port));
}

static inline void out32(uint16_t port, uint32_t value)
{
    __asm__ volatile("outl %0, %1" ::"a"(value), "Nd"(port));
}

static inline uint8_t in8(uint16_t port)
{
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline uint16_t in16(uint16_t port)
{
    uint16_t value;
    __asm__ volatile("inw %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline uint32_t in32(uint16_t port)
{
    uint32_t value;
    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

/* Device memory at a physical address; paging is off. */
static inline volatile uint32_t *device_memory(uint32_t address)
{
    return (volatile uint32_t *)address;
}

/* ---- timer.c ------------------------------------------------------------ */

/* Makes `sleep_one_tick` usable. */
void timer_start(void);

/* Halts the processor for about 50 ms. */
void sleep_one_tick(void);

/* ---- serial.c: COM1, 115200 baud ---------------------------------------- */

void serial_start(void);

/* `%s` string, `%u` decimal, `%x` hexadecimal without leading zeros, and `%2x`,
   `%4x`, `%6x` with that many digits. Nothing else. */
void print(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* ---- keyboard.c ---------------------------------------------------------- */

/* The code of a key that was pressed since the last call, 0 for none. */
uint8_t key_pressed(void);

/* ---- screen.c: what a screenshot shows ---------------------------------- */

/* Fills the 80x25 text screen with the test card: title, colour bars, and a
   line with the memory and the command line. Harmless without a VGA card. */
void screen_show(uint32_t memory_mib, const char *command_line);

/* Draws one more block in the line above the last one; harmless when it is full. */
void screen_mark(void);

/* Replaces the last line of the screen. */
void screen_status(const char *text);

/* Paints the colour bars on a linear framebuffer of 32 bits a pixel. */
void screen_paint(volatile uint32_t *pixels, size_t width, size_t height);

/* ---- pci.c --------------------------------------------------------------- */

struct pci_function {
    uint8_t bus, device, function;
    uint16_t vendor_id, device_id;
};

uint32_t pci_read(struct pci_function at, uint8_t offset);
void pci_write(struct pci_function at, uint8_t offset, uint32_t value);

/* Calls `visit` for every function on buses 0 to 31. */
void pci_each(void (*visit)(struct pci_function found));

/* True, and `*found` filled in, when the function at `device`.`function` of bus 0
   is `vendor_id`:`device_id`. */
bool pci_is(uint8_t device, uint8_t function, uint16_t vendor_id,
            uint16_t device_id, struct pci_function *found);

/* ---- power.c: ACPI without an interpreter -------------------------------- */

/* Finds the machine's power registers and takes ACPI mode, after which the power
   button is ours to answer. Returns the name of what was found. */
const char *power_start(void);

/* True once after each press of the power button. */
bool power_button_pressed(void);

/* Soft off (S5). Returns only if the machine has no power registers. */
void power_off(void);
