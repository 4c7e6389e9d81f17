"""Converts decoded video frames to RGB pictures of SDR, and RGB pictures to what an encoder takes.

`app.media.colorimetry.video_colour` says what the tags mean. FFmpeg's scaler upsamples chroma, applies the
matrix and scales, to 16 bits a channel; tables and small matrix products do the rest. Must not know files.
"""

from fractions import Fraction
from functools import lru_cache
from typing import Any, Final, NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from app.media.colorimetry.video_colour import (
    BT709,
    FULL,
    LIMITED,
    REFERENCE_WHITE_NITS,
    Colour,
    Transfer,
    colour_of,
    from_light,
    hlg_gain,
    luminance_of,
    to_bt709,
    to_light,
    tone_mapped,
)
from app.media.frame_filters import FrameFilter

Picture = NDArray[np.uint8]
Plane = NDArray[np.uint16]

# Without these, the scaler rounds down and averages chroma first: 1 to 1.5 of 255 too dark.
_EXACT: Final = (
    Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
    | Interpolation.BITEXACT
)
_READING: Final = Interpolation.LANCZOS | _EXACT
_WRITING: Final = Interpolation.BICUBIC | _EXACT
# Video codecs whose grey is Y' in limited range if the stream does not say; picture codecs use full range.
_VIDEO_CODECS: Final = frozenset(
    {"h264", "hevc", "vvc", "av1", "libdav1d", "vp8", "vp9", "mpeg2video", "mpeg4", "prores"}
)
# Streams that cannot say where chroma samples lie: at the left, as MPEG-2 has it and players assume. The
# scaler alone assumes the middle, half a pixel beside it.
_LEFT_SITED: Final = frozenset(
    {"vp8", "vp9", "av1", "libdav1d", "prores", "dnxhd", "ffv1", "huffyuv", "ffvhuff", "utvideo", "magicyuv"}
    | {"rawvideo", "v210"}
)


class UnknownPixels(ValueError):
    """The pixel format has no conversion here; the message names it."""


class _Encoding(NamedTuple):
    """What decides how 16-bit RGB becomes a picture: a key for the tables."""

    colour: Colour
    black: int
    white: int


class PictureReader:
    """Converts the frames of one clip; keeps the scaler's tables between frames."""

    def __init__(self, codec: str) -> None:
        self._codec = codec
        self._first, self._second = VideoReformatter(), VideoReformatter()
        self._left_sited = FrameFilter("setparams", "chroma_location=left")
        self._started = False
        self._peak_nits: float | None = None

    def picture(self, frame: Any, width: int, height: int) -> Picture:
        """The frame as RGB `[height, width, 3]`, in BT.709 or sRGB; transparency is blended over white.

        Raises `UnknownColour` and `UnknownPixels`.
        """
        name = frame.format.name
        if name.startswith(("bayer", "xyz")) or "f16" in name or "f32" in name or _bits(frame) > 16:
            raise UnknownPixels(f"its pixels are {name}")
        if frame.format.has_palette or _bits(frame) < 8:
            frame = self._second.reformat(frame, format="rgba" if frame.format.has_palette else "rgb24")
        encoding = self._encoding(frame)
        if self._is_left_sited(frame):
            frame = next(self._left_sited.push(frame))
        if any(component.is_alpha for component in frame.format.components):
            return self._blended(frame, encoding, width, height)
        return _picture(self._planes(frame, encoding, width, height, "gbrp16le"), encoding)

    def _is_left_sited(self, frame: Any) -> bool:
        form = frame.format
        if form.is_rgb or _is_grey(frame) or form.chroma_width(64) == 64:
            return False
        # HEVC says it for 4:2:0 only.
        return self._codec in _LEFT_SITED or (self._codec == "hevc" and form.chroma_height(64) == 64)

    def _encoding(self, frame: Any) -> _Encoding:
        form, bits = frame.format, _bits(frame)
        matrix = 0 if form.is_rgb or _is_grey(frame) else frame.colorspace
        if not self._started:  # the same tone mapping for all frames
            self._started, self._peak_nits = True, declared_peak_nits(frame)
        size = frame.width, frame.height
        peak = self._peak_nits
        colour = colour_of(size, matrix, frame.color_primaries, frame.color_trc, peak_nits=peak)
        # The scaler's 16 bits are the sample shifted up, so that 8-bit white is 255 * 256.
        full = ((1 << bits) - 1) << (16 - bits)
        if form.is_rgb or form.name.startswith("yuvj"):
            return _Encoding(colour, 0, full)
        if _is_grey(frame):  # the scaler takes it as full range
            limited = frame.color_range == LIMITED
            limited |= frame.color_range != FULL and self._codec in _VIDEO_CODECS
            return _Encoding(colour, 16 << 8, 235 << 8) if limited else _Encoding(colour, 0, full)
        # The scaler expands limited range to 0..255 * 256.
        return _Encoding(colour, 0, full if frame.color_range == FULL else 255 << 8)

    def _planes(self, frame: Any, encoding: _Encoding, width: int, height: int, form: str) -> list[Plane]:
        """The frame in 16 bits, each plane `[height, width]`: G, B, R, and alpha if `form` has it."""
        scaled = self._first.reformat(
            frame, width, height, form, src_colorspace=encoding.colour.matrix, interpolation=_READING
        )
        return [_samples(plane, width) for plane in scaled.planes]

    def _blended(self, frame: Any, encoding: _Encoding, width: int, height: int) -> Picture:
        """Blend before scaling, so that colours of transparent pixels do not leak into their neighbours."""
        planes = self._planes(frame, encoding, frame.width, frame.height, "gbrap16le")
        bits = _bits(frame)
        alpha = (planes[3] / float(((1 << bits) - 1) << (16 - bits))).clip(0, 1)[..., None]
        colours = _picture(planes[:3], encoding)
        over_white: Picture = np.rint(colours * alpha + 255 * (1 - alpha)).astype(np.uint8)
        if over_white.shape[:2] == (height, width):
            return over_white
        whole = av.VideoFrame.from_ndarray(over_white, format="rgb24")
        scaled = self._second.reformat(whole, width, height, "rgb24", interpolation=_READING)
        picture: Picture = scaled.to_ndarray().astype(np.uint8, copy=False)
        return picture


class PictureWriter:
    """Converts pictures to `yuv420p` frames in BT.709 and limited range, with chroma at the left."""

    def __init__(self) -> None:
        self._scaler = VideoReformatter()
        self._left_sited = FrameFilter("setparams", "chroma_location=left")

    def frame(self, picture: Picture) -> Any:
        """The RGB picture `[height, width, 3]` as a frame that is tagged completely."""
        whole = av.VideoFrame.from_ndarray(picture, format="rgb24")
        whole.pts, whole.time_base = 0, Fraction(1)  # the filter takes no frame without
        converted = self._scaler.reformat(
            next(self._left_sited.push(whole)),
            format="yuv420p",
            dst_colorspace=BT709,
            dst_color_range=LIMITED,
            interpolation=_WRITING,
        )
        converted.colorspace = converted.color_primaries = converted.color_trc = BT709
        converted.color_range = LIMITED
        return converted


def declared_peak_nits(frame: Any) -> float | None:
    """The brightest light of the content, else of the display it was mastered on, in cd/m2; None if unknown.

    Reads FFmpeg's `AVContentLightMetadata` and `AVMasteringDisplayMetadata`.
    """
    if (data := frame.side_data.get(SideData.CONTENT_LIGHT_LEVEL)) is not None:
        most = int(np.frombuffer(bytes(data)[:4], np.uint32)[0])
        if most:
            return float(most)
    if (data := frame.side_data.get(SideData.MASTERING_DISPLAY_METADATA)) is not None:
        numbers = np.frombuffer(bytes(data)[:88], np.int32)
        # 8 rationals of chromaticity, then the least and the most light, then two flags.
        (above, below), has_luminance = numbers[18:20], numbers[21]
        if has_luminance and above > 0 and below > 0:
            return float(above / below)
    return None


def _bits(frame: Any) -> int:
    return int(frame.format.components[0].bits)


def _is_grey(frame: Any) -> bool:
    return sum(not component.is_alpha for component in frame.format.components) == 1


def _samples(plane: Any, width: int) -> Plane:
    samples: Plane = np.frombuffer(plane, np.uint16).reshape(plane.height, plane.line_size // 2)[:, :width]
    return samples


def _picture(planes: list[Plane], encoding: _Encoding) -> Picture:
    """Planes G, B, R of 16 bits as an RGB picture."""
    colour, (green, blue, red) = encoding.colour, planes
    if not colour.transfer.is_hdr and colour.primaries == BT709:
        table, picture = _direct_table(encoding), np.empty((*red.shape, 3), np.uint8)
        for channel, plane in enumerate((red, green, blue)):
            picture[..., channel] = table[plane]
        return picture
    light = _light_table(encoding)[np.stack([red, green, blue])]
    if colour.transfer is Transfer.HLG:
        luminance = np.tensordot(luminance_of(colour.primaries).astype(np.float32), light, 1)
        light *= _hlg_table()[_index(luminance)]
    if colour.transfer.is_hdr:
        # The same factor for the three channels keeps the hue.
        peak = np.float32(colour.peak_nits / REFERENCE_WHITE_NITS)
        light *= _tone_table(colour.peak_nits)[_index(light.max(0) / peak)]
    light = np.tensordot(to_bt709(colour.primaries).astype(np.float32), light, 1)
    # Colours outside BT.709 are clipped.
    coded: Picture = _coding_table(_is_video(colour.transfer))[_index(light)]
    return np.ascontiguousarray(coded.transpose(1, 2, 0))


def _is_video(transfer: Transfer) -> bool:
    """Whether the picture is coded as BT.709 video, else as sRGB."""
    return transfer is Transfer.VIDEO or transfer.is_hdr


def _index(light: NDArray[np.float32]) -> Plane:
    """Light 0..1 as an index into a table of 65,536 entries, which are dense near black."""
    index: Plane = (np.sqrt(light.clip(0, 1)) * 65535 + 0.5).astype(np.uint16)
    return index


def _indexed_light() -> NDArray[np.float64]:
    return np.linspace(0, 1, 65536) ** 2


def _coded(encoding: _Encoding) -> NDArray[np.float64]:
    """The coded value, 0..1, of each 16-bit sample."""
    span = encoding.white - encoding.black
    return ((np.arange(65536) - encoding.black) / span).clip(0, 1)


@lru_cache(4)
def _direct_table(encoding: _Encoding) -> Picture:
    coded, transfer = _coded(encoding), encoding.colour.transfer
    if transfer not in (Transfer.VIDEO, Transfer.SRGB):
        coded = from_light(to_light(transfer, coded), video=False)
    return np.rint(coded * 255).astype(np.uint8)


@lru_cache(4)
def _light_table(encoding: _Encoding) -> NDArray[np.float32]:
    light = to_light(encoding.colour.transfer, _coded(encoding))
    if encoding.colour.transfer is Transfer.PQ:
        light = light.clip(0, encoding.colour.peak_nits / REFERENCE_WHITE_NITS)
    return light.astype(np.float32)


@lru_cache(1)
def _hlg_table() -> NDArray[np.float32]:
    return hlg_gain(_indexed_light()).astype(np.float32)


@lru_cache(4)
def _tone_table(peak_nits: float) -> NDArray[np.float32]:
    """The factor of the tone mapping by the brightest channel's share of the peak."""
    light = _indexed_light()[1:] * (peak_nits / REFERENCE_WHITE_NITS)
    factors = tone_mapped(light, peak_nits) / light
    return np.concatenate([[1.0], factors]).astype(np.float32)


@lru_cache(2)
def _coding_table(video: bool) -> Picture:
    return np.rint(from_light(_indexed_light(), video=video) * 255).astype(np.uint8)
