#include "tiny.h"

/* The old keyboard controller, which every machine with a screen has. Nothing is
   set up: the firmware has done that, and codes are read as they come. */

enum {
    DATA = 0x60,
    STATUS = 0x64,
    HAS_DATA = 1 << 0,
    FROM_MOUSE = 1 << 5,
    NOTHING_THERE = 0xff,
    RELEASED = 0x80,
};

uint8_t key_pressed(void)
{
    uint8_t status = in8(STATUS);
    if (status == NOTHING_THERE || !(status & HAS_DATA))
        return 0;
    uint8_t code = in8(DATA);
    return status & FROM_MOUSE || code & RELEASED ? 0 : code;
}
