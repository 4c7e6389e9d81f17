"""Reads a clip of the corpus with ffmpeg's command line and its accurate scaler (`zscale`, from zimg).

Another decoder build, another scaler and other code for colours than the project's. HDR ends as linear light
there; the tone mapping is written here again, from BT.2390's text, with the matrix that BT.2087 prints.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from clip_corpus import FULL, UPRIGHT, Case
from numpy.typing import NDArray

FFMPEG = shutil.which("ffmpeg")
REASON = "ffmpeg is not installed (Debian: apt install ffmpeg)"
# What a clip may differ: in the mean of a channel, and in all samples but a thousandth, of 255.
MEAN, MOST = 0.25, 2.0
NITS = 203.0  # HDR Reference White of BT.2408
# Linear light of BT.2020 (BT.2087) and of Display P3 as that of BT.709.
TO_BT709 = {
    9: np.array(
        [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]]
    ),
    12: np.array([[1.224940, -0.224940, 0.0], [-0.042057, 1.042057, 0.0], [-0.019638, -0.078636, 1.098274]]),
}
_TURNS = {
    (0, 1, -1, 0): "transpose=clock",
    (-1, 0, 0, -1): "hflip,vflip",
    (0, -1, 1, 0): "transpose=cclock",
    (-1, 0, 0, 1): "hflip",
    (1, 0, 0, -1): "vflip",
    (0, 1, 1, 0): "transpose=cclock_flip",
    (0, -1, -1, 0): "transpose=clock_flip",
    UPRIGHT: "null",
}
_FLAGS = "accurate_rnd+full_chroma_int+full_chroma_inp+bitexact"


def read(case: Case, path: Path) -> NDArray[np.float64]:
    """Frames `[frames, height, width, 3]` in 0..255, not rounded."""
    assert FFMPEG is not None
    width, height = case.size_shown if case.turn[0] else case.size_shown[::-1]
    chain = ["bwdif=mode=send_frame:deint=all"] if case.interlaced else []
    grey, alpha = case.pixels.startswith("gray") and case.codec != "libx264", case.has_alpha
    if not grey:
        chain.append(_colours(case, width, height))
    form = case.pixels if grey else "gbrap16le" if alpha else "gbrpf32le"
    command = [FFMPEG, "-v", "error", "-noautorotate", "-i", str(path), "-sws_flags", _FLAGS]
    command += ["-vf", ",".join([*chain, f"format={form}", _TURNS[case.turn]])]
    command += ["-vsync", "passthrough", "-f", "rawvideo", "-"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert not done.returncode, done.stderr.decode()
    sides = case.size_shown[::-1]
    if grey:
        return _grey(case, done.stdout, sides)
    samples = np.frombuffer(done.stdout, np.uint16 if alpha else np.float32)
    planes = samples.reshape(-1, 4 if alpha else 3, *sides) / (65535.0 if alpha else 1.0)
    frames = planes[:, [2, 0, 1]].transpose(0, 2, 3, 1)
    if case.meant[1] in (16, 18):
        frames = _tone_mapped(frames, case)
    frames = frames.clip(0, 1)
    if alpha:
        opaque = planes[:, 3, ..., None] / planes[:, 3].max()  # opaque at the left
        frames = frames * opaque + 1 - opaque
    return frames * 255


def _grey(case: Case, content: bytes, sides: tuple[int, int]) -> NDArray[np.float64]:
    bits = 10 if "10" in case.pixels else 8
    samples = np.frombuffer(content, np.uint16 if bits > 8 else np.uint8).reshape(-1, *sides, 1)
    black, white = (0, (1 << bits) - 1) if case.meant[3] == FULL else (16 << (bits - 8), 235 << (bits - 8))
    return np.repeat(((samples - float(black)) / (white - black)).clip(0, 1) * 255, 3, -1)


def _colours(case: Case, width: int, height: int) -> str:
    """The scaler and its options. BT.709 and its relatives keep their numbers, others become sRGB."""
    primaries, transfer, matrix, full = case.meant
    video, hdr = transfer in (1, 6, 7, 11, 12, 14, 15), transfer in (16, 18)
    given = (
        f"pin={primaries}:tin={1 if video else transfer}:rin={'pc' if full == FULL or case.is_rgb else 'tv'}"
    )
    given += ":min=gbr" if case.is_rgb else f":min={matrix}"
    wanted = f"p={primaries if hdr else 1}:t={'linear' if hdr else 1 if video else 13}:m=gbr:r=pc"
    light = f":npl={NITS:g}" if hdr else ""
    return f"zscale=w={width}:h={height}:filter=lanczos:{given}:{wanted}{light}"


def _tone_mapped(light: NDArray[np.float64], case: Case) -> NDArray[np.float64]:
    """BT.2390, 5.4.1: steps 1 to 5 of the EETF with no lift of black; then BT.709 and BT.1886."""
    if case.meant[1] == 18:
        # zimg applies the system gamma of 1.2 to each channel; BT.2100 to the luminance.
        scene = (light.clip(0, None) * NITS / 1000) ** (1 / 1.2)
        light = scene * (scene @ [0.2627, 0.6780, 0.0593])[..., None] ** 0.2 * 1000 / NITS
    nits = light.clip(0, case.peak_nits / NITS) * NITS
    brightest = nits.max(-1, keepdims=True).clip(1e-6, None)
    source_white, target_white = pq(case.peak_nits), pq(NITS)
    e1 = pq(brightest) / source_white
    most = target_white / source_white
    ks = 1.5 * most - 0.5
    t = (e1 - ks) / (1 - ks)
    p = (2 * t**3 - 3 * t**2 + 1) * ks + (t**3 - 2 * t**2 + t) * (1 - ks) + (-2 * t**3 + 3 * t**2) * most
    mapped = light_of_pq(np.where(e1 < ks, e1, p) * source_white)
    shown = nits * (mapped / brightest) / NITS
    return (shown @ TO_BT709[case.meant[0]].T).clip(0, 1) ** (1 / 2.4)


def pq(nits: Any) -> Any:
    """SMPTE ST 2084, the inverse EOTF, with its constants as fractions."""
    y = (np.asarray(nits) / 10000) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * y) / (1 + 2392 / 128 * y)) ** (2523 / 32)


def light_of_pq(values: Any) -> Any:
    """SMPTE ST 2084, the EOTF in cd/m2."""
    x = values ** (32 / 2523)
    return 10000 * (np.maximum(x - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * x)) ** (16384 / 2610)


def difference(case: Case, found: list[Any], expected: NDArray[np.float64]) -> tuple[float, float]:
    """The largest mean difference of a channel, and the largest difference of all but a thousandth."""
    assert np.shape(found) == expected.shape, f"{np.shape(found)} instead of {expected.shape}"
    off = np.asarray(found) - expected
    if case.interlaced:
        off = off[1:, 8:-8]  # versions of the deinterlacer differ at the edges
    return float(np.abs(off.mean((0, 1, 2))).max()), float(np.quantile(np.abs(off), 0.999))
