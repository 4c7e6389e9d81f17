"""Encodes video to latents in chunks: exact, and in memory that does not grow with the length of the video.

Owns what lasts from one encode to the next: the policy and what was learned. All else is looked up when an
encode begins (`adaptive.decoding.one_encode`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from adaptive.decoding.encode_functions import encode as encode
from adaptive.decoding.encode_functions import stream_encode as stream_encode
from adaptive.decoding.live_device import LiveDevices
from adaptive.decoding.one_encode import STREAMED_LATENT_FRAMES as STREAMED_LATENT_FRAMES
from adaptive.decoding.one_encode import EncodePlan as EncodePlan
from adaptive.decoding.one_encode import OneEncode
from adaptive.device.probe import MemoryProbe
from adaptive.memory.margins import LearnedMargins
from adaptive.planning.planner import Policy
from adaptive.stream.inputs import refuse_gradient
from adaptive.stream.offload import run_offload_hook
from adaptive.stream.vae_view import encode_view_of


class AdaptiveEncoder:
    """Encodes videos with one VAE, in the largest chunks that fit the memory that is free.

    The VAE is looked at anew for each encode. Only the budget and the reserve of `policy` are used. The
    encoder predicts with the learned margins in `residuals`, by default its own, and adds to them. With
    `shares_costs`, they are those that all encodes of this process on the device learn. Not thread-safe.
    """

    def __init__(
        self,
        vae: Any,
        *,
        probe: MemoryProbe | None = None,
        policy: Policy | None = None,
        residuals: LearnedMargins | None = None,
        shares_costs: bool = False,
    ) -> None:
        self._vae = vae
        self._policy = policy or Policy()
        self._devices = LiveDevices(probe, residuals, shares_costs=shares_costs)

    def begin(self, **encode_kwargs: Any) -> OneEncode:
        """Look at the VAE, after its offload hook has run: what its weights take is not free for encoding."""
        run_offload_hook(self._vae)
        view = encode_view_of(self._vae, encode_kwargs)
        residuals = self._devices.costs(view.device).residuals
        return OneEncode(view, self._devices.probe(view.device), self._policy, residuals)

    def plan(self, shape: tuple[int, ...], *, below: int | None = None) -> EncodePlan:
        """The plan for a video of `shape` (`[B, C, F, H, W]`) in the memory that is free now.

        With `below`, only chunks of fewer video frames are considered. Raises `DoesNotFit` with the bytes of
        the smallest chunk where none fits.
        """
        return self.begin().plan(shape, below=below)

    def encode(
        self, video: Tensor, *, posterior: str = "mode", **encode_kwargs: Any
    ) -> tuple[Tensor, EncodePlan]:
        """Latents of `video` as `adaptive.encode` returns them, and the plan of their smallest chunks.

        After an out-of-memory it continues in smaller chunks from where it was; the error of the smallest
        chunk is raised unchanged, and after a few attempts an error that is only possibly an out-of-memory.
        """
        refuse_gradient("encode", video, encode_kwargs)
        return self.begin(**encode_kwargs).encode(video, posterior)

    def plan_stream(self, shape: tuple[int, ...], *, frames_per_chunk: int | None = None) -> EncodePlan:
        """The plan for streaming a video of `shape` (`[B, C, F, H, W]`) in the memory that is free now.

        A given `frames_per_chunk` is used or refused. Raises `DoesNotFit` with the bytes of the smallest
        chunk where none fits, and `UnsupportedVae` where this VAE cannot encode in chunks.
        """
        return self.begin().plan_stream(shape, frames_per_chunk)

    def stream(
        self,
        video: Iterable[Tensor],
        shape: tuple[int, ...],
        *,
        frames_per_chunk: int | None = None,
        posterior: str = "mode",
    ) -> Iterator[Tensor]:
        """Latents `[B, C, t, h, w]` in order, of a video of `shape` given in parts of any lengths.

        Reads free memory again before each chunk. After an out-of-memory the chunks become smaller; the error
        of the smallest chunk is raised unchanged. Raises as `plan_stream` does.
        """
        yield from self.begin().stream(video, shape, frames_per_chunk, posterior)
