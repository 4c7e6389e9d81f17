"""Where the library meets a diffusers pipeline: its VAE's `decode` is caught, or replaced.

`capture(pipe)` records what the pipeline asks of its VAE and decodes nothing: every pipeline's own
de-normalisation, timestep and noise handling stays in force, and the memory-hungry part can run later,
elsewhere, or again after a crash. `enable(pipe)` makes the pipeline decode through `AdaptiveDecoder` in
place. Both set one attribute on the VAE object and take it off again; modules, their `forward` and
accelerate's hooks are not touched. Knows nothing of jobs or files.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from adaptive.errors import UnsupportedVae
from adaptive.families import traits_of
from adaptive.recording import RecordedDecode, load_calls, rng_states, save_calls
from adaptive.types import DecodeReport

if TYPE_CHECKING:
    from adaptive.decoder import AdaptiveDecoder

__all__ = ["Attachment", "RecordedDecode", "capture", "enable", "load_calls", "save_calls"]

# Pipelines that need the decoded frames themselves before they end; what each does with them is the reason it
# is refused.
_NEEDS_REAL_FRAMES = {
    "ChronoEditPipeline": "selects among decoded frames",
    "Cosmos2VideoToWorldPipeline": "runs a safety checker on the decoded frames",
    "Cosmos2_5_PredictBasePipeline": "runs a safety checker on the decoded frames",
    "Cosmos2_5_TransferPipeline": "runs a safety checker on the decoded frames",
    "CosmosVideoToWorldPipeline": "runs a safety checker on the decoded frames",
    "HeliosPipeline": "joins and trims decoded sections",
    "HeliosPyramidPipeline": "joins and trims decoded sections",
    "HunyuanVideoFramepackPipeline": "joins decoded sections inside its denoising loop",
    "LTX2ConditionPipeline": "makes audio beside the video",
    "LTX2ImageToVideoPipeline": "makes audio beside the video",
    "LTX2InContextPipeline": "makes audio beside the video",
    "LTXI2VLongMultiPromptPipeline": "blends decoded tiles itself",
    "WanAnimatePipeline": "feeds decoded frames back into its denoising loop",
}


@contextmanager
def capture(pipe: Any) -> Iterator[list[RecordedDecode]]:
    """Record the pipeline's decode calls instead of running them.

    Yields the list that fills up while the pipeline runs inside the block. The pipeline gets a placeholder
    `[B, C, F, 1, 1]` of zeros on the CPU per call (`[N, C, 1, 1]` for VAEs that decode single frames), with
    the right number of frames, which its post-processing accepts; the pipeline's own output is meaningless.
    The recorded latents stay where they are. Raises `UnsupportedVae`, naming the pipeline, where frames are
    needed before the pipeline ends.
    """
    name = type(pipe).__name__
    if name in _NEEDS_REAL_FRAMES:
        raise UnsupportedVae(name, f"captured decoding: it {_NEEDS_REAL_FRAMES[name]}")
    vae = pipe.vae
    calls: list[RecordedDecode] = []

    def record(z: Tensor, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        calls.append(RecordedDecode(z.detach(), args, kwargs, rng_states(z.device)))
        return _output(_placeholder(vae, z), return_dict)

    with _decode_replaced(vae, record):
        yield calls


class Attachment:
    """What `enable` left on a pipeline: the last decode's report, and the way back."""

    def __init__(self, vae: Any, decoder: "AdaptiveDecoder") -> None:
        self._vae = vae
        self._decoder = decoder
        self._original = vae.decode
        self._inside = False
        vae.decode = self._decode

    @property
    def report(self) -> DecodeReport:
        """What the last decode did. `RuntimeError` before the first."""
        return self._decoder.report

    def detach(self) -> None:
        """Give the VAE its own `decode` back."""
        if self._vae.__dict__.get("decode") == self._decode:
            del self._vae.decode

    def _decode(self, z: Tensor, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        # The batched rung calls the VAE's own decode; single frames `[N, C, h, w]` are no video to cut.
        if self._inside or z.ndim != 5:
            return self._original(z, *args, return_dict=return_dict, **kwargs)
        self._inside = True
        try:
            kwargs = decode_kwargs(type(self._vae), args, kwargs)
            chunks = self._decoder.frames(z, **kwargs)
            return _output(_joined(chunks, _video_frames(self._vae, z)), return_dict)
        finally:
            self._inside = False


def enable(pipe: Any, **policy: Any) -> Attachment:
    """Make any diffusers pipeline decode in the memory that is free: `adaptive.enable(pipe)`.

    `policy` are the fields of `adaptive.planner.Policy` (`strategy`, `frames_per_chunk`, `exact_only`,
    `budget_bytes`, `reserve_bytes`, ...); an unknown one raises `TypeError`. Enabling again replaces the
    policy. diffusers' slicing and tiling flags of the VAE no longer matter: the plan decides.
    """
    from adaptive.decoder import AdaptiveDecoder
    from adaptive.planner import Policy

    previous = getattr(pipe.vae.__dict__.get("decode"), "__self__", None)
    if isinstance(previous, Attachment):
        previous.detach()
    return Attachment(pipe.vae, AdaptiveDecoder(pipe.vae, policy=Policy(**policy), keeps_output=True))


def decode_kwargs(vae_class: type, args: tuple[Any, ...], kwargs: Any) -> dict[str, Any]:
    """A decode call's positional arguments under their names, beside its keyword arguments; `return_dict`
    dropped.
    """
    parameters = inspect.signature(getattr(vae_class, "decode")).parameters  # noqa: B009 - unknown to mypy
    names = [name for name in parameters if name != "self"]
    named = dict(zip(names[1:], args, strict=False)) | dict(kwargs)
    named.pop("return_dict", None)
    return named


def _joined(chunks: Iterator[Tensor], total_frames: int) -> Tensor:
    """One tensor `[B, C, F, H, W]` of all chunks, each let go of once copied; a single one is not copied."""
    first = next(chunks)
    second = next(chunks, None)
    if second is None:
        return first
    batch, channels, _, height, width = first.shape
    whole = first.new_empty(batch, channels, total_frames, height, width)
    done = 0
    for chunk in chain((first, second), chunks):
        whole[:, :, done : done + chunk.shape[2]] = chunk
        done += chunk.shape[2]
    assert done == total_frames, f"{done} frames decoded, {total_frames} expected"
    return whole


@contextmanager
def _decode_replaced(vae: Any, decode: Callable[..., Any]) -> Iterator[None]:
    absent = object()
    before = vae.__dict__.get("decode", absent)
    vae.decode = decode
    try:
        yield
    finally:
        if before is absent:
            del vae.decode
        else:
            vae.decode = before


def _placeholder(vae: Any, z: Tensor) -> Tensor:
    channels = getattr(vae.config, "out_channels", 3)
    if z.ndim == 4:
        return torch.zeros(z.shape[0], channels, 1, 1)
    return torch.zeros(z.shape[0], channels, _video_frames(vae, z), 1, 1)


def _video_frames(vae: Any, z: Tensor) -> int:
    return traits_of(type(vae).__name__, vae.config).video_frames(z.shape[2])


def _output(sample: Tensor, return_dict: bool) -> Any:
    from diffusers.models.autoencoders.vae import DecoderOutput

    return DecoderOutput(sample=sample) if return_dict else (sample,)
