"""Decoding latents in steps of any size, with the result of one call.

Owns positions, devices, atomicity and parking of one decode. How frames come about is the engine's business
(see `engine`), which engine is the family's (see `adaptive.families`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from adaptive.errors import UnsupportedVae
from adaptive.families import family_of
from adaptive.stream.engines.engine import PICTURE, Engine, StagedEngine, State, StripwiseEngine
from adaptive.stream.engines.stages import PENDING
from adaptive.stream.layers.convolution import convolutions_for
from adaptive.stream.offload import execution_device, run_offload_hook, splitting_off
from adaptive.stream.state import moved, tensors
from adaptive.types import VaeTraits

_FINEST = 4096  # parts of a chunk, more than it ever has frames
_MAX_IDLE_STEPS = 4096  # far beyond the delay of any decoder: a stream that idles longer is a bug of ours


class DecodeStream:
    """One decode in progress: feed latent frames, get finished video frames.

    All state is in the stream, so several may take turns on one VAE, and a step may be as large as memory
    allows just then. A step that raises leaves the stream as it was or, where the VAE's decoder is a row of
    stages, behind the last stage that was done: then the next steps take its frames on from there, as many at
    a time as they are told, before they feed more. So no second state is held, and nothing is done twice but
    one stage. Not for two threads at once on the same VAE.
    """

    def __init__(
        self, vae: Any, engine: Engine, latents: Tensor, traits: VaeTraits, device: torch.device
    ) -> None:
        """`device`: where the VAE computes; looked for once, for that takes a walk through all modules."""
        self._vae = vae
        self._engine = engine
        self._latents = latents
        self._traits = traits
        self._device = device
        self._video_channels = family_of(vae).video_channels(vae.config)
        self._state: State = {}
        self._failed_pending = False
        self._idle_steps = 0
        self._closed = False
        self.latent_frames: int = latents.shape[2]
        self._video_frames = family_of(vae).video_frames(traits, self.latent_frames)
        self.position = 0
        self.video_frames_done = 0

    @property
    def video_frames(self) -> int:
        """Video frames that the whole stream gives."""
        return self._video_frames

    @property
    def finished(self) -> bool:
        """Whether every video frame has been handed out."""
        return self.position == self.latent_frames and self.video_frames_done == self.video_frames

    @property
    def state_bytes(self) -> int:
        """Bytes of the tensors kept between steps; they do not grow with the length of the video."""
        distinct = {id(tensor): tensor.numel() * tensor.element_size() for tensor in tensors(self._state)}
        return sum(distinct.values())

    @property
    def waiting_bytes(self) -> int:
        """Of those, bytes of frames that a failed step has left waiting."""
        return sum(tensor.nbytes for tensor in tensors(self._state.get(PENDING)))

    def step(self, latent_frames: int, strips: int = 1) -> Tensor:
        """Feed up to `latent_frames` more latent frames; once all are fed, drain at the same rate.

        With more than one of `strips`, the later layers see each picture in that many parts, for less memory
        and the same result; a step that then fails has kept the strips that were done, and the next one goes
        on from there. Fewer frames (or, for VAEs whose chunks are part of their arithmetic, more) are fed
        where the family says so.
        Returns the video frames that became final, `[B, C, f, H, W]` with f >= 0, in order, in the VAE's own
        range and on its device. Raises whatever the decoder raises, after which the step may be repeated with
        as many frames or fewer; `UnsupportedVae` where this VAE has no strips.
        """
        if latent_frames < 1:
            raise ValueError(f"latent_frames must be at least 1, got {latent_frames}")
        if self._closed:
            raise RuntimeError("the stream is closed")
        if self.finished:
            return self._no_frames(self._latents[:, :, :0].to(self._device))
        run_offload_hook(self._vae)
        self.resume()
        if PENDING in self._state:
            return self._step_pending(latent_frames, strips)
        if strips > 1 or PICTURE in self._state:
            return self._step_in_strips(latent_frames, strips)
        chunk, stop = self._next_chunk(latent_frames)
        ended = stop == self.latent_frames
        try:
            with torch.no_grad(), convolutions_for(chunk.device):
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
        """Take on what a failed step has left waiting; one that fails again is taken frame by frame."""
        engine, blank = self._engine, self._latents[:, :, :1].to(self._device)
        assert isinstance(engine, StagedEngine)
        parts = strips * (_FINEST if self._failed_pending else 1)
        self._failed_pending = True
        with torch.no_grad(), convolutions_for(blank.device):
            frames, self._state = engine.resume(self._state, blank, limit=latent_frames, parts=parts)
        self._failed_pending = False
        if frames is None:
            frames = self._no_frames(blank)
        self._count(self.position, frames.shape[2])
        return frames

    def _next_chunk(self, latent_frames: int) -> tuple[Tensor, int]:
        """The next latent frames on the VAE's device, and where they stop."""
        stop = self.position + self._engine.take(self.position, latent_frames, self.latent_frames)
        return self._latents[:, :, self.position : stop].to(self._device), stop

    def begin(self, latent_frames: int) -> None:
        """First part of a step in strips: feed, through the earlier layers only. The next step ends it."""
        engine = self._stripwise_engine()
        chunk, stop = self._next_chunk(latent_frames)
        ended = stop == self.latent_frames
        with torch.no_grad(), convolutions_for(chunk.device):
            state = moved(self._state, chunk.device)
            self._state = engine.begin(state, chunk, limit=latent_frames, ended=ended)
        self._count(stop, 0)

    def _step_in_strips(self, latent_frames: int, strips: int) -> Tensor:
        engine = self._stripwise_engine()
        if PICTURE not in self._state:
            self.begin(latent_frames)
        rows = -(-self._latents.shape[3] // strips)
        frames: Tensor | None = None
        with torch.no_grad(), convolutions_for(self._device):
            for part, state in engine.finish(moved(self._state, self._device), rows):
                frames, self._state = part, state
                del part, state  # what the engine lets go of must not be kept here
        if frames is None:
            return self._no_frames(self._latents[:, :, :0].to(self._device))
        self._count(self.position, frames.shape[2])
        return frames

    def _stripwise_engine(self) -> StripwiseEngine:
        if not isinstance(self._engine, StripwiseEngine):
            raise UnsupportedVae(type(self._vae).__name__, "exact decoding in strips of a picture")
        return self._engine

    def park(self, device: str | torch.device = "cpu") -> None:
        """Move the state off the VAE's device; the next step (or `resume`) brings it back."""
        self._state = moved(self._state, torch.device(device))

    def resume(self) -> None:
        """Bring a parked state back to the VAE's device."""
        self._state = moved(self._state, self._device)

    def close(self) -> None:
        """Let go of the VAE, the latents and the state. Calling it again does nothing."""
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
        return chunk.new_empty(batch, self._video_channels, 0, height * ratio, width * ratio)

    def _count(self, position: int, new_frames: int) -> None:
        moved = new_frames > 0 or position > self.position
        self._idle_steps = 0 if moved else self._idle_steps + 1
        done = self.video_frames_done + new_frames
        if done > self.video_frames or (self._idle_steps > _MAX_IDLE_STEPS and not self.finished):
            raise AssertionError(
                f"stream of {self.video_frames} frames stands at {done}, latents at {position}"
            )
        self.position = position
        self.video_frames_done = done


def open_decode(vae: Any, latents: Tensor, **decode_kwargs: Any) -> DecodeStream:
    """Begin an exact streamed decode of `latents` (`[B, C, T, h, w]`, on any device).

    `decode_kwargs` are the VAE's own (`temb`, ...). Raises `UnsupportedVae` where this VAE cannot be streamed
    exactly.
    """
    family = family_of(vae)
    device = execution_device(vae)
    kwargs = _kwargs(decode_kwargs, device)
    video = family.as_video(latents, kwargs)
    engine = family.decode_engine(vae, kwargs)
    return DecodeStream(vae, engine, video, family.traits(type(vae).__name__, vae.config), device)


def decode_whole(vae: Any, latents: Tensor, **decode_kwargs: Any) -> Tensor:
    """Batched decode: diffusers' own one call, with slicing, tiling and framewise decoding held off for its
    length, and convolutions chosen as in a stream.

    Returns `[B, C, F, H, W]` in the VAE's own range. Takes and raises what `vae.decode` does.
    """
    device = execution_device(vae)
    with torch.no_grad(), splitting_off(vae), convolutions_for(device):
        return family_of(vae).decode_whole(vae, latents.to(device), _kwargs(decode_kwargs, device))


def gathered(chunks: Iterator[Tensor], total_frames: int) -> Tensor:
    """One tensor `[B, C, F, H, W]` of all chunks, each let go of once copied; a single one is not copied."""
    video: Tensor | None = None
    done = 0
    for frames in chunks:
        count = frames.shape[2]
        if count == total_frames:
            video = frames
        else:
            if video is None:
                video = frames.new_empty((*frames.shape[:2], total_frames, *frames.shape[3:]))
            video[:, :, done : done + count] = frames
        done += count
        del frames  # or it would stay alive through the next step
    if video is None or done != total_frames:
        raise AssertionError(f"decoding gave {done} of {total_frames} frames")
    return video


def _kwargs(kwargs: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Keyword arguments of the decode on its device; `return_dict` is not the caller's to choose here."""
    moved = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in kwargs.items()}
    moved.pop("return_dict", None)
    return moved
