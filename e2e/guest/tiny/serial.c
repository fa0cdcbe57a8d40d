#include "tiny.h"
#include <stdarg.h>

enum {
    COM1 = 0x3f8,
    DATA = COM1,
    INTERRUPTS = COM1 + 1,
    FIFO = COM1 + 2,
    LINE = COM1 + 3,
    MODEM = COM1 + 4,
    LINE_STATUS = COM1 + 5,

    DIVISOR_ACCESS = 0x80,
    EIGHT_BITS_NO_PARITY = 3,
    FIFO_ON_AND_CLEAR = 7,
    READY_AND_REQUEST = 3,
    CAN_SEND = 0x20,
    PATIENCE = 100000, /* reads of the status before a character is given up */
};

void serial_start(void)
{
    out8(INTERRUPTS, 0);
    out8(LINE, DIVISOR_ACCESS);
    out8(DATA, 1); /* 115200 baud */
    out8(INTERRUPTS, 0);
    out8(LINE, EIGHT_BITS_NO_PARITY);
    out8(FIFO, FIFO_ON_AND_CLEAR);
    out8(MODEM, READY_AND_REQUEST);
}

static void put(char c)
{
    if (c == '\n')
        put('\r');
    for (int i = 0; i < PATIENCE && !(in8(LINE_STATUS) & CAN_SEND); i++)
        ;
    out8(DATA, (uint8_t)c);
}

/* At least `width` digits, zeros in front. */
static void put_number(unsigned value, unsigned base, unsigned width)
{
    char digits[32];
    unsigned count = 0;
    do {
        digits[count++] = "0123456789abcdef"[value % base];
        value /= base;
    } while (value || count < width);
    while (count)
        put(digits[--count]);
}

void print(const char *format, ...)
{
    va_list values;
    va_start(values, format);
    for (const char *at = format; *at; at++) {
        if (*at != '%') {
            put(*at);
            continue;
        }
        unsigned width = 0;
        if (*++at >= '1' && *at <= '9')
            width = (unsigned)(*at++ - '0');
        if (*at == 's')
            for (const char *s = va_arg(values, const char *); *s; s++)
                put(*s);
        else
            put_number(va_arg(values, unsigned), *at == 'x' ? 16 : 10, width);
    }
    va_end(values);
}
