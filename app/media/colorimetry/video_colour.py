"""The colour of video: what a frame's tags mean, and the formulas from coded numbers to light.

Pure: decides and calculates, touches no frame. `app.media.video_pixels` applies it. Numbers of tags are the
code points of ITU-T H.273 (ISO/IEC 23091-2), as FFmpeg uses them.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

import numpy as np

from app.media.colorimetry.primaries import PRIMARIES, SRGB
from app.media.colorimetry.xyz import Values, adaptation, rgb_to_xyz, white_of

UNSPECIFIED: Final = 2
BT709, BT470BG, SMPTE170M, BT2020 = 1, 5, 6, 9
LIMITED, FULL = 1, 2

# A client sees these names in a refusal. Only those in `_MATRICES` have fixed coefficients for Y'CbCr.
MATRIX_NAMES: Final = {
    8: "YCgCo",
    10: "BT.2020 constant luminance",
    11: "SMPTE 2085",
    12: "chromaticity-derived non-constant luminance",
    13: "chromaticity-derived constant luminance",
    14: "ICtCp",
    15: "IPT-PQ-C2",
    16: "YCgCo-Re",
    17: "YCgCo-Ro",
}
_MATRICES: Final = frozenset({1, 4, 5, 6, 7, 9})
TRANSFER_NAMES: Final = {9: "logarithmic (100:1)", 10: "logarithmic (316:1)", 17: "SMPTE ST 428-1"}
_HD_WIDTH, _SD_HEIGHT = 1280, 576

# HDR Reference White of ITU-R BT.2408: the light of an HDR video's diffuse white, which SDR shows as white.
REFERENCE_WHITE_NITS: Final = 203.0
# The peak of most mastering displays, and the nominal peak of HLG: assumed where a PQ video declares none.
NOMINAL_PEAK_NITS: Final = 1000.0
PQ_PEAK_NITS: Final = 10_000.0


class UnknownColour(ValueError):
    """The tags name a colour encoding that has no conversion here; the message names it."""


class Transfer(Enum):
    """How coded values become light.

    `VIDEO` is BT.709 and its relatives: the numbers are kept, as every player does.
    """

    VIDEO = "video"
    SRGB = "srgb"
    GAMMA22 = "gamma22"
    GAMMA28 = "gamma28"
    LINEAR = "linear"
    PQ = "pq"
    HLG = "hlg"

    @property
    def is_hdr(self) -> bool:
        """Whether highlights are brighter than SDR can show."""
        return self in (Transfer.PQ, Transfer.HLG)


_TRANSFERS: Final = {
    1: Transfer.VIDEO,
    4: Transfer.GAMMA22,
    5: Transfer.GAMMA28,
    6: Transfer.VIDEO,
    7: Transfer.VIDEO,
    8: Transfer.LINEAR,
    11: Transfer.VIDEO,
    12: Transfer.VIDEO,
    13: Transfer.SRGB,
    14: Transfer.VIDEO,
    15: Transfer.VIDEO,
    16: Transfer.PQ,
    18: Transfer.HLG,
}


@dataclass(frozen=True, slots=True)
class Colour:
    """The complete colour encoding of a frame. `matrix` is meaningless for RGB and grey."""

    matrix: int
    primaries: int
    transfer: Transfer
    peak_nits: float = NOMINAL_PEAK_NITS


def colour_of(
    size: tuple[int, int], matrix: int, primaries: int, transfer: int, *, peak_nits: float | None = None
) -> Colour:
    """Complete the tags of a frame of `size` (width, height), where the stream leaves them out.

    Primaries follow the transfer: BT.2020 for HDR, else BT.709. The matrix follows the primaries, and for
    BT.709 the size, with the limits that mpv and libplacebo use. Raises `UnknownColour`.
    """
    curve = Transfer.VIDEO if transfer in (0, UNSPECIFIED, 3) else _TRANSFERS.get(transfer)
    if curve is None:
        name = TRANSFER_NAMES.get(transfer, f"number {transfer}")
        raise UnknownColour(f"its transfer function is {name}")
    if primaries in (0, UNSPECIFIED, 3):
        primaries = BT2020 if curve.is_hdr or matrix == BT2020 else BT709
    elif primaries not in PRIMARIES:
        raise UnknownColour(f"its primaries are number {primaries}")
    if matrix in (0, UNSPECIFIED, 3):
        width, height = size
        high_definition = width >= _HD_WIDTH or height > _SD_HEIGHT
        matrix = BT2020 if primaries == BT2020 else BT709 if high_definition else SMPTE170M
    elif matrix not in _MATRICES:
        raise UnknownColour(f"its matrix is {MATRIX_NAMES.get(matrix, f'number {matrix}')}")
    peak = NOMINAL_PEAK_NITS if peak_nits is None or curve is not Transfer.PQ else peak_nits
    return Colour(matrix, primaries, curve, min(max(peak, REFERENCE_WHITE_NITS), PQ_PEAK_NITS))


def to_light(transfer: Transfer, values: Values) -> Values:
    """Coded values 0..1 as linear light; 1.0 is white, for PQ `REFERENCE_WHITE_NITS`.

    For HLG, the light of the scene (1.0 is the peak); `hlg_gain` makes it the light of the display. Formulas:
    BT.1886 with black at 0, IEC 61966-2-1, and tables 4 and 5 of BT.2100.
    """
    match transfer:
        case Transfer.VIDEO:
            return values**2.4
        case Transfer.SRGB:
            return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
        case Transfer.GAMMA22:
            return values**2.2
        case Transfer.GAMMA28:
            return values**2.8
        case Transfer.LINEAR:
            return values
        case Transfer.PQ:
            return pq_to_nits(values) / REFERENCE_WHITE_NITS
        case Transfer.HLG:
            a, b, c = 0.17883277, 0.28466892, 0.55991073
            return np.where(values <= 0.5, values**2 / 3, (np.exp((values - c) / a) + b) / 12)


def from_light(light: Values, *, video: bool) -> Values:
    """Linear light 0..1 as coded values: for `video` the inverse of BT.1886, else sRGB."""
    if video:
        result: Values = light ** (1 / 2.4)
        return result
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def pq_to_nits(values: Values) -> Values:
    """Table 4 of BT.2100: PQ's EOTF, in cd/m2."""
    root = values ** (1 / 78.84375)
    result: Values = PQ_PEAK_NITS * (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (
        1 / 0.1593017578125
    )
    return result


def nits_to_pq(nits: Values) -> Values:
    """The inverse of `pq_to_nits`."""
    power = (nits / PQ_PEAK_NITS) ** 0.1593017578125
    result: Values = ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    return result


def hlg_gain(luminance: Values) -> Values:
    """The OOTF of BT.2100 for a display of 1000 cd/m2: light of the display over light of the scene.

    `luminance` is the scene's, 0..1. The display's light is 1.0 at `REFERENCE_WHITE_NITS`.
    """
    result: Values = NOMINAL_PEAK_NITS / REFERENCE_WHITE_NITS * luminance**0.2
    return result


def tone_mapped(light: Values, peak_nits: float) -> Values:
    """The EETF of ITU-R BT.2390 (section 5.4.1), for a display whose peak is the reference white.

    Light is 1.0 at `REFERENCE_WHITE_NITS`, and at most `peak_nits`. Below the knee (90 cd/m2 for a peak of
    1000) nothing changes; a Hermite spline rolls off above it. Black is 0 on both sides.
    """
    white, top = nits_to_pq(np.array([REFERENCE_WHITE_NITS, peak_nits]))
    if peak_nits <= REFERENCE_WHITE_NITS:
        return light
    coded, largest = nits_to_pq(light * REFERENCE_WHITE_NITS) / top, white / top
    knee = 1.5 * largest - 0.5
    t = ((coded - knee) / (1 - knee)).clip(0, 1)
    spline = (
        (2 * t**3 - 3 * t**2 + 1) * knee
        + (t**3 - 2 * t**2 + t) * (1 - knee)
        + (-2 * t**3 + 3 * t**2) * largest
    )
    return pq_to_nits(np.where(coded < knee, coded, spline) * top) / REFERENCE_WHITE_NITS


def to_bt709(primaries: int) -> Values:
    """The matrix from linear RGB of these primaries to linear RGB of BT.709, shape [3, 3].

    White stays white: Bradford adaptation where the white points differ. Method: SMPTE RP 177.
    """
    space = PRIMARIES[primaries]
    adapted = adaptation(white_of(space), white_of(SRGB)) @ rgb_to_xyz(space)
    result: Values = np.linalg.inv(rgb_to_xyz(SRGB)) @ adapted
    return result


def luminance_of(primaries: int) -> Values:
    """The weights of linear R, G and B in the luminance."""
    weights: Values = rgb_to_xyz(PRIMARIES[primaries])[1]
    return weights
