"""BMP: expands pixels that are coded as runs.

The decoder's own expansion takes a step for each pixel that a run leaves out: minutes for a few kilobytes.
"""

from typing import Final

from app.media.pictures.rejection import damaged, too_complex

MAX_STEPS: Final = 2_000_000
_END_OF_LINE, _END, _MOVE = 0, 1, 2


def expanded(data: bytes, at: int, size: tuple[int, int], bits: int) -> bytes:
    """One byte a pixel, rows padded to 4 bytes, in the file's order, of RLE8 or RLE4 codes from `at` on.

    Pixels that no run covers are 0. Raises `ImageRejected`.
    """
    width, height = size
    stride = width + -width % 4
    pixels = bytearray(stride * height)
    x = y = 0
    for _ in range(MAX_STEPS):
        if y >= height:
            return bytes(pixels)
        if at + 2 > len(data):
            raise damaged("its runs end before its last row")
        count, value = data[at], data[at + 1]
        at += 2
        if count:
            shades = (value >> 4, value & 15) if bits == 4 else (value, value)
            x = _put(pixels, y * stride, x, width, (bytes(shades) * (count // 2 + 1))[:count])
        elif value == _END_OF_LINE:
            x, y = 0, y + 1
        elif value == _END:
            return bytes(pixels)
        elif value == _MOVE:
            if at + 2 > len(data):
                raise damaged("its runs end before its last row")
            x, y = x + data[at], y + data[at + 1]
            at += 2
        else:
            length = (value + 1) // 2 if bits == 4 else value
            literal = data[at : at + length]
            if len(literal) < length:
                raise damaged("its runs end before its last row")
            if bits == 4:
                literal = bytes(shade for both in literal for shade in (both >> 4, both & 15))[:value]
            x = _put(pixels, y * stride, x, width, literal)
            at += length + length % 2
    raise too_complex(f"more than {MAX_STEPS:,} runs")


def _put(pixels: bytearray, row: int, x: int, width: int, shades: bytes) -> int:
    """Write the shades into the row, as far as it has room. Returns the column behind them."""
    end = min(width, x + len(shades))
    if x < end:
        pixels[row + x : row + end] = shades[: end - x]
    return x + len(shades)
