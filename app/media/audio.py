"""Encodes the sound of a video: samples to an AAC track, interleaved with the frames.

Takes arrays in host memory; must not know tensors or the source of the frames.
"""

from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from numpy.typing import NDArray

from adaptive.errors import NonFiniteValues

BIT_RATE = 192_000
_LAYOUTS = {1: "mono", 2: "stereo"}


@dataclass(frozen=True, slots=True)
class AudioSamples:
    """Mono or stereo sound: float32 `[channels, samples]` in -1..1.

    Raises `ValueError` for other shapes, and `NonFiniteValues` for samples that are NaN or infinite.
    """

    samples: NDArray[np.float32]
    sample_rate: int

    def __post_init__(self) -> None:
        if self.samples.ndim != 2 or self.samples.shape[0] not in _LAYOUTS:
            raise ValueError(f"sound must be [1 or 2, samples], got shape {self.samples.shape}")
        broken = self.samples.size - int(np.isfinite(self.samples).sum())
        if broken:
            raise NonFiniteValues("sound", "the sound", values=broken, of=self.samples.size)

    def fitted(self, seconds: Fraction) -> NDArray[np.float32]:
        """The samples, cut or padded with silence to `seconds`."""
        wanted = round(seconds * self.sample_rate)
        cut = self.samples[:, :wanted].clip(-1, 1).astype(np.float32)
        return np.pad(cut, ((0, 0), (0, wanted - cut.shape[1])))


class AudioTrack:
    """The audio stream of one file. Create it before the file's first packet is written."""

    def __init__(self, file: "av.container.OutputContainer", sound: AudioSamples, seconds: Fraction) -> None:
        self._file = file
        self._rate = sound.sample_rate
        self._layout = _LAYOUTS[sound.samples.shape[0]]
        self._samples = sound.fitted(seconds)
        self._written = 0
        self._stream = file.add_stream("aac", rate=sound.sample_rate, layout=self._layout)
        self._stream.bit_rate = BIT_RATE

    def write_until(self, seconds: Fraction) -> None:
        """Write the samples before that time that are not written yet."""
        end = min(round(seconds * self._rate), self._samples.shape[1])
        if end <= self._written:
            return
        part = np.ascontiguousarray(self._samples[:, self._written : end])
        frame = av.AudioFrame.from_ndarray(part, format="fltp", layout=self._layout)
        frame.sample_rate, frame.pts, frame.time_base = self._rate, self._written, Fraction(1, self._rate)
        self._file.mux(self._stream.encode(frame))
        self._written = end

    def finish(self) -> None:
        """Write the packets that the encoder still buffers."""
        self._file.mux(self._stream.encode(None))
