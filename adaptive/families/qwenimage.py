"""Qwen-Image's VAE (also of its video relatives): Wan 2.1's layers, whose caches the networks can carry from
call to call.

diffusers sends one latent frame at a time. The caches are right for any number of frames a call once the
first frame has gone through alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adaptive.errors import UnsupportedVae
from adaptive.families.shared.family import Family
from adaptive.types import VaeTraits

if TYPE_CHECKING:
    from torch import Tensor

    from adaptive.stream.engines.engine import Engine, State

_PREFIX = "QwenImage"  # of its layers' names


class QwenImageFamily(Family):
    """AutoencoderKLQwenImage."""

    name = "qwenimage"

    def traits(self, vae_class: str, config: Mapping[str, Any]) -> VaeTraits:
        """Every block but the last doubles both sides; the configuration says which double time too."""
        temporal = config.get("temperal_downsample", (False, True, True))
        return VaeTraits(
            family=self.name,
            vae_class=vae_class,
            latent_channels=config.get("z_dim", 16),
            spatial_ratio=2 ** len(temporal),
            temporal_ratio=2 ** sum(temporal),
            first_frame_alone=True,
            exact_streaming=True,
            frames_independent=False,
        )

    def decode_engine(self, vae: Any, kwargs: Mapping[str, Any]) -> Engine:
        """The decoder with caches that belong to the stream."""
        if kwargs:
            raise UnsupportedVae(type(vae).__name__, f"decoding with {', '.join(kwargs)}")

        from adaptive.stream.engines.cached import CachedEngine
        from adaptive.stream.engines.stages import stages_of
        from adaptive.stream.layers.causal import CausalLayers

        def run(chunk: Tensor, caches: Any, place: list[int], *, first: bool) -> Tensor:  # noqa: ARG001 - alike
            hidden = vae.post_quant_conv(chunk)
            frames: Tensor = vae.decoder(hidden, feat_cache=caches, feat_idx=place)
            return frames.clamp_(-1.0, 1.0)

        layers = CausalLayers(vae.decoder, _PREFIX)
        return CachedEngine(run, stages=stages_of(vae.decoder), layers=layers)

    def encode_engine(self, vae: Any, kwargs: Mapping[str, Any]) -> Engine:
        """The encoder with caches that belong to the stream."""
        if kwargs:
            raise UnsupportedVae(type(vae).__name__, f"encoding with {', '.join(kwargs)}")

        def encode(frames: Tensor, caches: list[Any]) -> Tensor:
            parameters: Tensor = vae.quant_conv(vae.encoder(frames, feat_cache=caches, feat_idx=[0]))
            return parameters

        return _cached(vae.encoder, encode, self.traits(type(vae).__name__, vae.config).temporal_ratio)


def _cached(network: Any, run: Any, group: int) -> Engine:
    from adaptive.stream.engines.engine import CallEngine, whole_groups
    from adaptive.stream.layers.causal import CausalLayers

    layers = CausalLayers(network, _PREFIX)
    places = sum(type(module).__name__ == f"{_PREFIX}CausalConv3d" for module in network.modules())

    class Cached(CallEngine):
        """What diffusers does in its loops, with any number of latent frames a call."""

        def take(self, position: int, wanted: int, total: int) -> int:
            """The first frame goes alone, then whole latent frames."""
            return whole_groups(position, wanted, total, group)

        def call(self, state: State, chunk: Tensor) -> tuple[Tensor, State]:
            """The network replaces entries of the caches and never changes one."""
            caches = list(state.get("caches", [None] * places))
            with layers.lean():
                return run(chunk, caches), {"caches": caches}

    return Cached()


FAMILY = QwenImageFamily()
