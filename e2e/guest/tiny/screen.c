#include "tiny.h"

enum {
    COLUMNS = 80,
    ROWS = 25,
    TEXT_MEMORY = 0xb8000,

    CRT_INDEX = 0x3d4,
    CRT_DATA = 0x3d5,
    CURSOR_START = 0x0a,
    CURSOR_OFF = 0x20,

    GREY_ON_BLACK = 0x07,
    WHITE_ON_BLUE = 0x1f,
    TITLE_ROWS = 5,
    FIRST_BAR_ROW = 7,
    LAST_BAR_ROW = 17,
    FULL_BLOCK = 0xdb, /* in the card's own character set */

    BARS = 8,
};

/* From light to dark, as text attributes and as pixels. */
static const uint8_t bar_attribute[BARS] = {15, 14, 11, 10, 13, 12, 9, 0};
static const uint32_t bar_pixel[BARS] = {
    0xffffff, 0xffff00, 0x00ffff, 0x00ff00,
    0xff00ff, 0xff0000, 0x0000ff, 0x000000,
};

static volatile uint16_t *const cells = (volatile uint16_t *)TEXT_MEMORY;

static void fill(unsigned row, uint8_t attribute)
{
    for (unsigned column = 0; column < COLUMNS; column++)
        cells[row * COLUMNS + column] = (uint16_t)(attribute << 8 | ' ');
}

/* Returns the column after the text; what does not fit is cut off. */
static unsigned write(unsigned row, unsigned column, uint8_t attribute,
                      const char *text)
{
    for (; *text && column < COLUMNS; text++, column++)
        cells[row * COLUMNS + column] =
            (uint16_t)(attribute << 8 | (uint8_t)*text);
    return column;
}

static unsigned write_number(unsigned row, unsigned column, uint32_t value)
{
    char digits[11];
    char *first = digits + sizeof digits - 1;
    *first = 0;
    do {
        *--first = (char)('0' + value % 10);
        value /= 10;
    } while (value);
    return write(row, column, GREY_ON_BLACK, first);
}

void screen_show(uint32_t memory_mib, const char *command_line)
{
    for (unsigned row = 0; row < ROWS; row++)
        fill(row, row < TITLE_ROWS ? WHITE_ON_BLUE : GREY_ON_BLACK);
    write(1, 4, WHITE_ON_BLUE, "gpudesk");
    write(3, 4, WHITE_ON_BLUE, "tiny guest: a machine that only has to exist");

    for (unsigned row = FIRST_BAR_ROW; row <= LAST_BAR_ROW; row++)
        for (unsigned column = 0; column < COLUMNS; column++)
            cells[row * COLUMNS + column] = (uint16_t)(
                bar_attribute[column * BARS / COLUMNS] << 8 | FULL_BLOCK);

    unsigned end = write_number(19, 4, memory_mib);
    write(19, end, GREY_ON_BLACK, " MiB of memory");
    end = write(20, 4, GREY_ON_BLACK, "command line: ");
    write(20, end, GREY_ON_BLACK, command_line);

    out8(CRT_INDEX, CURSOR_START);
    out8(CRT_DATA, CURSOR_OFF);
}

void screen_mark(void)
{
    static unsigned marks;
    if (marks < COLUMNS)
        cells[(ROWS - 2) * COLUMNS + marks++] = (uint16_t)(GREY_ON_BLACK << 8 | FULL_BLOCK);
}

void screen_status(const char *text)
{
    fill(ROWS - 1, WHITE_ON_BLUE);
    write(ROWS - 1, 4, WHITE_ON_BLUE, text);
}

void screen_paint(volatile uint32_t *pixels, size_t width, size_t height)
{
    for (size_t y = 0; y < height; y++)
        for (size_t x = 0; x < width; x++)
            pixels[y * width + x] = bar_pixel[x * BARS / width];
}
