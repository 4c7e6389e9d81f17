"""The chromaticities of primaries by their code points. Imports no numpy, so that it loads fast."""

from typing import Final

Chromaticities = tuple[float, float, float, float, float, float, float, float]
"""CIE 1931 x and y of white, red, green and blue."""

_D65: Final = (0.3127, 0.3290)
_C: Final = (0.310, 0.316)
_DCI: Final = (0.314, 0.351)

SRGB: Final[Chromaticities] = (*_D65, 0.640, 0.330, 0.300, 0.600, 0.150, 0.060)
# Table 2 of ITU-T H.273 (ISO/IEC 23091-2).
PRIMARIES: Final[dict[int, Chromaticities]] = {
    1: SRGB,
    4: (*_C, 0.670, 0.330, 0.210, 0.710, 0.140, 0.080),
    5: (*_D65, 0.640, 0.330, 0.290, 0.600, 0.150, 0.060),
    6: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    7: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    8: (*_C, 0.681, 0.319, 0.243, 0.692, 0.145, 0.049),
    9: (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (*_DCI, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    22: (*_D65, 0.630, 0.340, 0.295, 0.605, 0.155, 0.077),
}
