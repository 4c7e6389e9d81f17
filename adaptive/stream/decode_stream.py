"""Decode latents in steps of any size, with the result of a single call.

A `DecodeStream` feeds chunks of latents to an engine and counts what comes back. Chunk sizes may differ from
step to step, because all that earlier chunks contribute to later ones is in the stream's state. A step that
fails loses nothing: it leaves the state of before the step or, for staged engines, of the last completed
stage (see `engines.stages`).

Owns positions, devices, atomicity and parking of one decode. The engine computes the frames (see
`engines.engine`); the family chooses the engine (see `adaptive.families`).
"""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from adaptive.errors import UnsupportedVae
from adaptive.families import family_of
from adaptive.stream.engines.engine import UNFINISHED_CHUNK, Engine, StagedEngine, State, StripwiseEngine
from adaptive.stream.engines.stages import PENDING
from adaptive.stream.inputs import dtype_explained
from adaptive.stream.layers.convolution import convolutions_for, convolved_dtype
from adaptive.stream.offload import run_offload_hook, without_splitting
from adaptive.stream.state import computing, map_tensors, moved, tensors
from adaptive.stream.vae_view import as_view
from adaptive.types import VaeTraits

_MOST_PARTS = 4096  # more parts than a chunk has frames: one frame at a time
# In a row, of steps that feed nothing, give nothing and leave every kept tensor as long as it was. Steps that
# drain a decoder with delays may give nothing while frames move from layer to layer.
_MOST_IDLE_STEPS = 2


class DecodeStream:
    """One decode in progress: feed latent frames, get finished video frames.

    All state is in the stream, so several streams may take turns on one VAE, and each step may be as large as
    memory allows at that moment. After an exception, the stream is as before the step. If the VAE's decoder
    is a sequence of stages, the stream is instead where the last completed stage left it. The frames of the
    failed step then wait before the next stage, and the following steps resume with them before they feed
    more, in smaller parts if they are asked to. So a step holds no second copy of the state, and only one
    stage is computed twice.

    Other threads may call the VAE or stream it meanwhile, but a stream belongs to one thread at a time. While
    it is open, the VAE's layers have dispatchers (see `intercept`). They go with the last frame, with `close`
    or when the stream is garbage.
    """

    def __init__(
        self, vae: Any, engine: Engine, latents: Tensor, traits: VaeTraits, device: torch.device
    ) -> None:
        """`latents`: `[B, C, T, h, w]`. `device`: where the VAE computes.

        The caller finds the device once, because that takes a walk through all modules.
        """
        self._vae = vae
        self._engine = engine
        self._latents = latents
        self._traits = traits
        self._device = device
        self._video_channels = family_of(vae).video_channels(vae.config)
        self._state: State = {}
        self._failed_pending = False
        self._idle_steps = 0
        self._idle_shapes: Any = None  # of the state after the last step without frames
        self._closed = False
        engine.open()
        self.latent_frames: int = latents.shape[2]
        self._video_frames = family_of(vae).video_frames(traits, self.latent_frames)
        self.position = 0
        self.video_frames_done = 0

    @property
    def video_frames(self) -> int:
        """Number of video frames of the whole stream."""
        return self._video_frames

    @property
    def finished(self) -> bool:
        """Whether every video frame has been returned."""
        return self.position == self.latent_frames and self.video_frames_done == self.video_frames

    @property
    def state_bytes(self) -> int:
        """Bytes of the tensors kept between steps.

        They grow with the length of the video if the decoder attends to all earlier frames (Cosmos,
        HunyuanVideo 1.5), and not otherwise.
        """
        distinct = {id(tensor): tensor.numel() * tensor.element_size() for tensor in tensors(self._state)}
        return sum(distinct.values())

    @property
    def waiting_bytes(self) -> int:
        """Bytes of `state_bytes` that belong to pending frames of a failed step."""
        return sum(tensor.nbytes for tensor in tensors(self._state.get(PENDING)))

    def step(self, latent_frames: int, strips: int = 1) -> Tensor:
        """Feed up to `latent_frames` more latent frames; once all are fed, drain frames at the same rate.

        With `strips` above 1, the later layers run on each frame in that many horizontal strips, with less
        memory and the same result. If such a step fails, completed strips remain valid and the next step
        resumes after them. Fewer frames are fed, or more for VAEs whose chunks are part of their arithmetic,
        if the family requires it.

        Returns the video frames that became final, `[B, C, f, H, W]` with f >= 0, in order, in the VAE's own
        range and on its device. After any exception of the decoder, the step may be repeated with as many
        frames or fewer. Raises `UnsupportedVae` if this VAE cannot decode in strips, `ValueError` if
        `latent_frames` is below 1, `RuntimeError` if the stream is closed.
        """
        if latent_frames < 1:
            raise ValueError(f"latent_frames must be at least 1, got {latent_frames}")
        if self._closed:
            raise RuntimeError("the stream is closed: open a new one with open_decode")
        if self.finished:
            return self._no_frames(self._latents[:, :, :0].to(self._device))
        run_offload_hook(self._vae)
        self.resume()
        with without_splitting(self._vae), dtype_explained(self._vae, "latents", self._latents):
            return self._step(latent_frames, strips)

    def _step(self, latent_frames: int, strips: int) -> Tensor:
        if PENDING in self._state:
            return self._step_pending(latent_frames, strips)
        if strips > 1 or UNFINISHED_CHUNK in self._state:
            return self._step_in_strips(latent_frames, strips)
        chunk, stop = self._next_chunk(latent_frames)
        ended = stop == self.latent_frames
        try:
            with computing(), convolutions_for(chunk.device):
                frames, self._state = self._engine.advance(
                    self._state, chunk, limit=latent_frames, ended=ended
                )
        except BaseException:
            if PENDING in self._state:
                self._count(stop, 0)
            raise
        if frames is None:
            frames = self._no_frames(chunk)
        self._count(stop, frames.shape[2])
        return frames

    def _step_pending(self, latent_frames: int, strips: int) -> Tensor:
        """Resume with the pending frames of a failed step; after a second failure, one frame at a time."""
        engine, blank = self._engine, self._latents[:, :, :1].to(self._device)
        assert isinstance(engine, StagedEngine)
        parts = strips * (_MOST_PARTS if self._failed_pending else 1)
        self._failed_pending = True
        with computing(), convolutions_for(blank.device):
            frames, self._state = engine.resume(self._state, blank, limit=latent_frames, parts=parts)
        self._failed_pending = False
        if frames is None:
            frames = self._no_frames(blank)
        self._count(self.position, frames.shape[2])
        return frames

    def _next_chunk(self, latent_frames: int) -> tuple[Tensor, int]:
        """Return the next latent frames on the VAE's device, and the position after them."""
        stop = self.position + self._engine.take(self.position, latent_frames, self.latent_frames)
        return self._latents[:, :, self.position : stop].to(self._device), stop

    def begin(self, latent_frames: int) -> None:
        """Feed a chunk through the earlier layers only, as the first part of a step in strips.

        The next `step` runs the later layers.
        """
        engine = self._stripwise_engine()
        chunk, stop = self._next_chunk(latent_frames)
        ended = stop == self.latent_frames
        with computing(), convolutions_for(chunk.device):
            state = moved(self._state, chunk.device)
            self._state = engine.begin(state, chunk, limit=latent_frames, ended=ended)
        self._count(stop, 0)

    def _step_in_strips(self, latent_frames: int, strips: int) -> Tensor:
        engine = self._stripwise_engine()
        if UNFINISHED_CHUNK not in self._state:
            self.begin(latent_frames)
        rows = -(-self._latents.shape[3] // strips)
        frames: Tensor | None = None
        with computing(), convolutions_for(self._device):
            for part, state in engine.finish(moved(self._state, self._device), rows):
                frames, self._state = part, state
                del part, state  # else these references would keep tensors that the engine has dropped
        if frames is None:
            return self._no_frames(self._latents[:, :, :0].to(self._device))
        self._count(self.position, frames.shape[2])
        return frames

    def _stripwise_engine(self) -> StripwiseEngine:
        if not isinstance(self._engine, StripwiseEngine):
            raise UnsupportedVae(type(self._vae).__name__, "exact decoding in strips of a frame")
        return self._engine

    def park(self, device: str | torch.device = "cpu") -> None:
        """Move the state to `device`; the next step (or `resume`) moves it back to the VAE's device."""
        self._state = moved(self._state, torch.device(device))

    def resume(self) -> None:
        """Move a parked state back to the VAE's device."""
        self._state = moved(self._state, self._device)

    def close(self) -> None:
        """Let go of the VAE's layers, and drop the references to the VAE, the latents and the state.

        Calling it again does nothing.
        """
        if not self._closed:
            self._engine.close()
        self._closed = True
        self._state = {}
        self._vae = self._engine = self._latents = None  # type: ignore[assignment]

    def __enter__(self) -> DecodeStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _no_frames(self, chunk: Tensor) -> Tensor:
        batch, _, _, height, width = chunk.shape
        ratio = self._traits.spatial_ratio
        shape = batch, self._video_channels, 0, height * ratio, width * ratio
        return chunk.new_empty(shape, dtype=convolved_dtype(chunk))

    def _count(self, position: int, new_frames: int) -> None:
        progress = new_frames > 0 or position > self.position
        shapes = None if progress else map_tensors(self._state, lambda tensor: tensor.shape)
        self._idle_steps = 0 if progress or shapes != self._idle_shapes else self._idle_steps + 1
        self._idle_shapes = shapes
        done = self.video_frames_done + new_frames
        if done > self.video_frames or self._idle_steps == _MOST_IDLE_STEPS:
            raise AssertionError(
                f"the stream gave {done} of {self.video_frames} video frames after {position} of "
                f"{self.latent_frames} latent frames, the last {self._idle_steps} steps without progress"
            )
        self.position = position
        self.video_frames_done = done
        if self.finished:
            self._engine.close()


def open_decode(vae: Any, latents: Tensor, **decode_kwargs: Any) -> DecodeStream:
    """Begin an exact streamed decode of `latents` (`[B, C, T, h, w]`, on any device).

    `decode_kwargs` are keyword arguments of `vae.decode`, such as `temb`. `vae` may be a `VaeView`, which has
    them already. Raises `UnsupportedVae` if this VAE cannot be streamed exactly.
    """
    view = as_view(vae, decode_kwargs)
    engine = view.streaming_engine()
    video = view.family.as_video(latents, view.kwargs)
    return DecodeStream(view.vae, engine, video, view.traits, view.device)


def join_chunks(chunks: Iterator[Tensor], total_frames: int | None) -> Tensor:
    """Join all chunks to one tensor `[B, C, F, H, W]`, with one chunk alive at a time.

    A single chunk is returned without a copy. If `total_frames` is None, there must be no other.
    """
    video: Tensor | None = None
    done = 0
    for frames in chunks:
        count = frames.shape[2]
        total_frames = count if total_frames is None else total_frames
        if count == total_frames:
            video = frames
        else:
            if video is None:
                video = frames.new_empty((*frames.shape[:2], total_frames, *frames.shape[3:]))
            video[:, :, done : done + count] = frames
        done += count
        del frames  # or it would stay alive through the next step
    if video is None or done != total_frames:
        raise AssertionError(f"decoding gave {done} of {total_frames} video frames")
    return video
