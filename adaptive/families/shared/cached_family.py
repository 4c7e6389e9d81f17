"""Base of families whose networks carry the caches of their causal convolutions from call to call.

diffusers calls these networks with one latent frame at a time. The caches are right for any number of frames
a call, once the first frame has gone through alone. Here the caches belong to the stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from adaptive.errors import UnsupportedVae
from adaptive.families.shared.family import Family, refuse_arguments

if TYPE_CHECKING:
    from torch import Tensor

    from adaptive.stream.engines.cached import CachedForward
    from adaptive.stream.engines.engine import Engine


class CachedFamily(Family):
    """A subclass sets `layer_prefix` and overrides a chunk method if its VAE does more around the network."""

    batched_by_frame = True
    layer_prefix: str  # the class names of the layers begin with it, as in `WanCausalConv3d`

    def decode_engine(self, vae: Any, kwargs: Mapping[str, Any]) -> Engine:
        """The unmodified `vae.decoder`, with caches that belong to the stream."""
        from adaptive.stream.engines.stages import stages_of

        refuse_arguments(vae, kwargs, "decoding")
        self._check_class(vae, vae.decoder, "Decoder3d")
        return self._engine(vae.decoder, partial(self.decode_chunk, vae), stages=stages_of(vae.decoder))

    def encode_engine(self, vae: Any, kwargs: Mapping[str, Any]) -> Engine:
        """The unmodified `vae.encoder`, with caches that belong to the stream."""
        refuse_arguments(vae, kwargs, "encoding")
        self._check_class(vae, vae.encoder, "Encoder3d")
        group = self.traits_of(vae).temporal_ratio
        return self._engine(vae.encoder, partial(self.encode_chunk, vae), group=group)

    def decode_chunk(self, vae: Any, chunk: Tensor, caches: Any, place: list[int], *, first: bool) -> Tensor:  # noqa: ARG002 - for families
        """Frames of a chunk of latents, as the loop of diffusers' `decode` makes them; see
        `CachedForward`."""
        frames: Tensor = vae.decoder(vae.post_quant_conv(chunk), feat_cache=caches, feat_idx=place)
        return frames.clamp_(-1.0, 1.0)

    def encode_chunk(self, vae: Any, chunk: Tensor, caches: Any, place: list[int], *, first: bool) -> Tensor:  # noqa: ARG002 - for families
        """Parameters of the posterior of a chunk of frames, as the loop of diffusers' `encode` makes them."""
        parameters: Tensor = vae.quant_conv(vae.encoder(chunk, feat_cache=caches, feat_idx=place))
        return parameters

    def _check_class(self, vae: Any, network: Any, suffix: str) -> None:
        from adaptive.stream.layer_checks import is_known

        found = type(network).__name__
        if found != self.layer_prefix + suffix or not is_known(network, vae):
            raise UnsupportedVae(type(vae).__name__, f"streaming through a network of class {found}")

    def _engine(self, network: Any, run: CachedForward, *, stages: Any = (), group: int = 1) -> Engine:
        from adaptive.stream.engines.cached import CachedEngine
        from adaptive.stream.layers.causal import CausalLayers

        layers = CausalLayers(network, self.layer_prefix)
        return CachedEngine(network, run, stages=stages, layers=layers, group=group)
