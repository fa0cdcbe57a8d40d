#include "tiny.h"

enum {
    CONFIG_ADDRESS = 0xcf8,
    CONFIG_DATA = 0xcfc,

    IDS = 0x00,
    HEADER_TYPE = 0x0c, /* bits 16 to 23 */
    MULTIFUNCTION = 0x80 << 16,
    NOTHING_THERE = 0xffff,

    BUSES = 32,
    DEVICES = 32,
    FUNCTIONS = 8,
};

static void select(struct pci_function at, uint8_t offset)
{
    out32(CONFIG_ADDRESS, 1u << 31 | (uint32_t)at.bus << 16 |
                              (uint32_t)at.device << 11 |
                              (uint32_t)at.function << 8 | (offset & 0xfc));
}

uint32_t pci_read(struct pci_function at, uint8_t offset)
{
    select(at, offset);
    return in32(CONFIG_DATA);
}

void pci_write(struct pci_function at, uint8_t offset, uint32_t value)
{
    select(at, offset);
    out32(CONFIG_DATA, value);
}

/* False when nothing answers there. */
static bool identify(struct pci_function *at)
{
    uint32_t ids = pci_read(*at, IDS);
    at->vendor_id = (uint16_t)ids;
    at->device_id = (uint16_t)(ids >> 16);
    return at->vendor_id != NOTHING_THERE && at->vendor_id != 0;
}

void pci_each(void (*visit)(struct pci_function found))
{
    for (unsigned slot = 0; slot < BUSES * DEVICES; slot++) {
        struct pci_function at = {.bus = (uint8_t)(slot / DEVICES),
                                  .device = slot % DEVICES};
        if (!identify(&at))
            continue;
        unsigned functions =
            pci_read(at, HEADER_TYPE) & MULTIFUNCTION ? FUNCTIONS : 1;
        for (at.function = 0; at.function < functions; at.function++)
            if (identify(&at))
                visit(at);
    }
}

bool pci_is(uint8_t device, uint8_t function, uint16_t vendor_id,
            uint16_t device_id, struct pci_function *found)
{
    *found = (struct pci_function){.device = device, .function = function};
    return identify(found) && found->vendor_id == vendor_id &&
           found->device_id == device_id;
}
