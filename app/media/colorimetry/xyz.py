"""Linear RGB and CIE XYZ."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from app.media.colorimetry.primaries import Chromaticities

Values = NDArray[np.float64]

# The cone responses of Bradford: CIE 160:2004, as the ICC's chromatic adaptation uses them.
_BRADFORD: Final = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def white_of(space: Chromaticities) -> Values:
    """The white in XYZ, with Y = 1; shape [3]."""
    return _xyz(*space[:2])


def rgb_to_xyz(space: Chromaticities) -> Values:
    """The matrix from linear RGB to XYZ, shape [3, 3]. Its middle row weighs R, G and B in the luminance.

    Method: SMPTE RP 177.
    """
    colours = np.stack([_xyz(*space[n : n + 2]) for n in (2, 4, 6)], -1)
    result: Values = colours * np.linalg.solve(colours, white_of(space))
    return result


def adaptation(source: Values, target: Values) -> Values:
    """The matrix from XYZ seen under white `source` to XYZ under white `target`, shape [3, 3]."""
    gains = (_BRADFORD @ target) / (_BRADFORD @ source)
    result: Values = np.linalg.inv(_BRADFORD) @ np.diag(gains) @ _BRADFORD
    return result


def _xyz(x: float, y: float) -> Values:
    return np.array([x / y, 1.0, (1 - x - y) / y])
