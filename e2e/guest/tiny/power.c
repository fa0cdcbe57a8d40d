#include "tiny.h"

/* Three places where a QEMU x86 machine keeps its power registers: the ICH9 of
   a q35, the PIIX4 of an i440fx (both ACPI "PM1a" blocks in port space, put
   where the firmware says), and the event device of a microvm (memory). */

enum {
    /* PM1a block, offsets from its base port */
    PM1_STATUS = 0,
    PM1_ENABLE = 2,
    PM1_CONTROL = 4,
    POWER_BUTTON = 1 << 8,
    SCI_ENABLED = 1 << 0,
    SLEEP_NOW = 1 << 13, /* with sleep type 0, which is S5 on both chipsets */

    SMI_COMMAND = 0xb2,
    ACPI_ENABLE_ICH9 = 0x02,
    ACPI_ENABLE_PIIX4 = 0xf1,
    PM_BASE_REGISTER = 0x40, /* in PCI configuration space, both chipsets */
    PM_BASE_MASK = 0xff80,

    /* A microvm's generic event device */
    EVENTS = 0xfea00000,
    EVENT_POWER_BUTTON = 1 << 1,
    SLEEP_CONTROL = 0xfea00200,
    SLEEP_S5_NOW = 1 << 5 | 5 << 2,
};

static enum { PM1A, EVENT_DEVICE, NONE } registers = NONE;
static uint16_t pm1a;

static void take_pm1a(struct pci_function bridge, uint8_t enable_command)
{
    registers = PM1A;
    pm1a = pci_read(bridge, PM_BASE_REGISTER) & PM_BASE_MASK;
    if (!(in16(pm1a + PM1_CONTROL) & SCI_ENABLED))
        out8(SMI_COMMAND, enable_command);
    out16(pm1a + PM1_STATUS, POWER_BUTTON);
    out16(pm1a + PM1_ENABLE, POWER_BUTTON);
}

const char *power_start(void)
{
    struct pci_function found;
    if (pci_is(0x1f, 0, 0x8086, 0x2918, &found)) {
        take_pm1a(found, ACPI_ENABLE_ICH9);
        return "ICH9";
    }
    if (pci_is(1, 3, 0x8086, 0x7113, &found)) {
        take_pm1a(found, ACPI_ENABLE_PIIX4);
        return "PIIX4";
    }
    if (*device_memory(EVENTS) != UINT32_MAX) {
        registers = EVENT_DEVICE;
        return "event device";
    }
    return "none";
}

bool power_button_pressed(void)
{
    switch (registers) {
    case PM1A:
        if (!(in16(pm1a + PM1_STATUS) & POWER_BUTTON))
            return false;
        out16(pm1a + PM1_STATUS, POWER_BUTTON); /* written ones clear */
        return true;
    case EVENT_DEVICE:
        return *device_memory(EVENTS) & EVENT_POWER_BUTTON; /* a read clears */
    default:
        return false;
    }
}

void power_off(void)
{
    if (registers == PM1A)
        out16(pm1a + PM1_CONTROL, SLEEP_NOW);
    if (registers == EVENT_DEVICE)
        *(volatile uint8_t *)SLEEP_CONTROL = SLEEP_S5_NOW;
}
