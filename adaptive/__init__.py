"""Decodes video latents in the memory that is free now, with the same pixels at every chunk size.

Owns the public names. Each is imported on first use, so that `import adaptive` and planning work in processes
without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from adaptive.version import __version__ as __version__

if TYPE_CHECKING:
    from adaptive.decoding.decoder import AdaptiveDecoder as AdaptiveDecoder
    from adaptive.decoding.decoder import DecodeEvent as DecodeEvent
    from adaptive.decoding.encoder import AdaptiveEncoder as AdaptiveEncoder
    from adaptive.decoding.encoder import EncodePlan as EncodePlan
    from adaptive.decoding.encoder import encode as encode
    from adaptive.decoding.encoder import stream_encode as stream_encode
    from adaptive.errors import AdaptiveError as AdaptiveError
    from adaptive.errors import DecodeOutOfMemory as DecodeOutOfMemory
    from adaptive.errors import DoesNotFit as DoesNotFit
    from adaptive.errors import DtypeMismatch as DtypeMismatch
    from adaptive.errors import NoDevice as NoDevice
    from adaptive.errors import NonFiniteValues as NonFiniteValues
    from adaptive.errors import UnsupportedVae as UnsupportedVae
    from adaptive.functions import decode as decode
    from adaptive.functions import plan as plan
    from adaptive.functions import stream_decode as stream_decode
    from adaptive.memory.profile import MemoryProfile as MemoryProfile
    from adaptive.memory.profile_trace import predict_peak as predict_peak
    from adaptive.memory.profile_trace import trace_profile as trace_profile
    from adaptive.pipelines.enable import capture as capture
    from adaptive.pipelines.enable import enable as enable
    from adaptive.planning.planner import Policy as Policy
    from adaptive.types import DecodePlan as DecodePlan
    from adaptive.types import DecodeReport as DecodeReport
    from adaptive.types import LatentShape as LatentShape
    from adaptive.types import MemoryReading as MemoryReading
    from adaptive.types import PeakEstimate as PeakEstimate
    from adaptive.types import VaeTraits as VaeTraits
    from adaptive.types import VideoShape as VideoShape

_MODULE_OF = {
    "AdaptiveDecoder": "adaptive.decoding.decoder",
    "AdaptiveEncoder": "adaptive.decoding.encoder",
    "AdaptiveError": "adaptive.errors",
    "DecodeEvent": "adaptive.decoding.decoder",
    "DecodeOutOfMemory": "adaptive.errors",
    "DecodePlan": "adaptive.types",
    "DecodeReport": "adaptive.types",
    "DoesNotFit": "adaptive.errors",
    "DtypeMismatch": "adaptive.errors",
    "EncodePlan": "adaptive.decoding.encoder",
    "LatentShape": "adaptive.types",
    "MemoryProfile": "adaptive.memory.profile",
    "MemoryReading": "adaptive.types",
    "NoDevice": "adaptive.errors",
    "NonFiniteValues": "adaptive.errors",
    "PeakEstimate": "adaptive.types",
    "Policy": "adaptive.planning.planner",
    "UnsupportedVae": "adaptive.errors",
    "VaeTraits": "adaptive.types",
    "VideoShape": "adaptive.types",
    "capture": "adaptive.pipelines.enable",
    "decode": "adaptive.functions",
    "enable": "adaptive.pipelines.enable",
    "encode": "adaptive.decoding.encoder",
    "plan": "adaptive.functions",
    "predict_peak": "adaptive.memory.profile_trace",
    "stream_decode": "adaptive.functions",
    "stream_encode": "adaptive.decoding.encoder",
    "trace_profile": "adaptive.memory.profile_trace",
}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'adaptive' has no attribute {name!r}")
    return getattr(import_module(module), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
