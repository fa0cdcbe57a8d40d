/* The smallest guest that behaves like one: says on serial what it finds, shows a
   test card, idles, and powers off when the power button is pressed. */
#include "tiny.h"

struct multiboot {
    uint32_t flags;
    uint32_t memory_below_1_mib, memory_above_1_mib; /* KiB */
    uint32_t boot_device;
    const char *command_line;
};

enum { HAS_MEMORY = 1 << 0, HAS_COMMAND_LINE = 1 << 2 };

enum {
    CLASS = 0x08, /* bits 8 to 31 */
    COMMAND = 0x04,
    COMMAND_MEMORY = 1 << 1,
    BAR0 = 0x10,
    BAR_FLAGS = 0xf,
};

/* True when `word` is one of the space-separated words after the first, which is
   the kernel's own path. */
static bool has_word(const char *line, const char *word)
{
    while (*line && *line != ' ')
        line++;
    while (*line) {
        while (*line == ' ')
            line++;
        const char *expected = word;
        while (*expected && *line == *expected)
            line++, expected++;
        if (!*expected && (!*line || *line == ' '))
            return true;
        while (*line && *line != ' ')
            line++;
    }
    return false;
}

static void report(struct pci_function found)
{
    print("tiny: pci %2x:%2x.%u %4x:%4x class %6x\n", found.bus, found.device,
          found.function, found.vendor_id, found.device_id,
          pci_read(found, CLASS) >> 8);
}

/* The kernel's sample of a mediated display (mdpy-fb): 640x480, in its BAR 0. */
static void paint_sample_display(struct pci_function found)
{
    if (found.vendor_id != 0x1b36 || found.device_id != 0x000f)
        return;
    pci_write(found, COMMAND, pci_read(found, COMMAND) | COMMAND_MEMORY);
    screen_paint(device_memory(pci_read(found, BAR0) & ~(uint32_t)BAR_FLAGS),
                 640, 480);
    print("tiny: painted the sample display\n");
}

void tiny_main(const struct multiboot *boot)
{
    uint32_t memory_mib =
        boot->flags & HAS_MEMORY ? boot->memory_above_1_mib / 1024 + 1 : 0;
    const char *command_line =
        boot->flags & HAS_COMMAND_LINE ? boot->command_line : "";

    serial_start();
    print("\ntiny: up, %u MiB, command line: %s\n", memory_mib, command_line);
    screen_show(memory_mib, command_line);
    print("tiny: power registers: %s\n", power_start());
    pci_each(report);
    pci_each(paint_sample_display);

    if (has_word(command_line, "halt")) {
        print("tiny: halt asked for, powering off\n");
        power_off();
    }

    timer_start();
    screen_status("running");
    print("tiny: ready\n");
    while (!power_button_pressed()) {
        if (key_pressed())
            screen_mark();
        sleep_one_tick();
    }
    print("tiny: power button, powering off\n");
    screen_status("powering off");
    power_off();
}
