"""Colour spaces given by numbers instead of an ICC profile.

The numbers are gamma and primaries (PNG), or the codes of ISO/IEC 23091-2 (PNG, HEIC, AVIF).
"""

from dataclasses import dataclass
from typing import Final

from app.media.colorimetry.primaries import PRIMARIES, SRGB, Chromaticities
from app.media.pictures.rejection import unsupported

# BT.709 and its like are shown as sRGB, as browsers and players do; so is what is not known.
_GAMMAS: Final = {4: 2.2, 5: 2.8, 8: 1.0, 17: 2.6}
_HDR: Final = {16: "PQ", 18: "HLG"}

_GAMMA_TOLERANCE = 0.05  # libpng's: a smaller difference from sRGB is not corrected
_CHROMATICITY_TOLERANCE = 0.01


@dataclass(frozen=True, slots=True)
class ColourSpace:
    """Primaries and white as `x, y` pairs (white, red, green, blue), and a gamma; None is sRGB's curve."""

    chromaticities: Chromaticities
    gamma: float | None = None


def from_codes(primaries: int, transfer: int) -> ColourSpace | None:
    """The space with these codes; None for sRGB and what is not specified. Refuses PQ and HLG."""
    if transfer in _HDR:
        raise unsupported(f"is HDR ({_HDR[transfer]})")
    return _unless_srgb(PRIMARIES.get(primaries, SRGB), _GAMMAS.get(transfer))


def from_gamma(exponent: float | None, chromaticities: Chromaticities | None) -> ColourSpace | None:
    """The space of an image whose values are light to the power of `exponent`; None for sRGB."""
    if exponent is None or not 0.05 < exponent < 20 or abs(2.2 * exponent - 1) < _GAMMA_TOLERANCE:
        return _unless_srgb(chromaticities or SRGB, None)
    return _unless_srgb(chromaticities or SRGB, 1 / exponent)


def _unless_srgb(chromaticities: Chromaticities, gamma: float | None) -> ColourSpace | None:
    near = all(
        abs(one - other) < _CHROMATICITY_TOLERANCE for one, other in zip(chromaticities, SRGB, strict=True)
    )
    if not near and not _is_possible(chromaticities):
        return ColourSpace(SRGB, gamma) if gamma is not None else None
    if near and gamma is None:
        return None
    return ColourSpace(chromaticities, gamma)


def _is_possible(values: Chromaticities) -> bool:
    """Whether the primaries span a triangle with the white inside."""
    (wx, wy), *corners = ((values[n], values[n + 1]) for n in range(0, 8, 2))
    if any(not (0 <= x <= 1 and 0 < y <= 1) for x, y in [(wx, wy), *corners]):
        return False
    sides = []
    for (ax, ay), (bx, by) in zip(corners, [*corners[1:], corners[0]], strict=True):
        sides.append((bx - ax) * (wy - ay) - (by - ay) * (wx - ax))
    return all(side > 1e-4 for side in sides) or all(side < -1e-4 for side in sides)
