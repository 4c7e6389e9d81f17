"""Base of families whose decoder and encoder are causal in time and keep no state of their own.

The unmodified networks run under layer rules: the stream keeps, for each causal convolution, the last frames
of its input, and for each attention its key-value cache. The chunk schedule is: the first frame alone, then
whole groups of frames. A network that holds a layer class on neither list of the family is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adaptive.errors import UnsupportedVae
from adaptive.families.shared.family import Family, refuse_arguments

if TYPE_CHECKING:
    from adaptive.stream.engines.engine import Engine, Rule

# Layers of torch that treat each frame on its own in every network.
ALWAYS_FRAMEWISE = frozenset({"Dropout", "Identity", "Linear", "ModuleList"})


class CausalFamily(Family):
    """`rules` give the rule of each temporal layer, by class name.

    `framewise` names the classes that treat each frame on its own, or only call layers listed here.
    """

    last_layer = "conv_out"  # the last layer of decoder and encoder, by attribute
    inexact_with = "this configuration"  # for the error text where `exact_streaming` is false

    def __init__(self, rules: Mapping[str, Rule], framewise: frozenset[str]) -> None:
        self.rules = rules
        self.framewise = framewise | ALWAYS_FRAMEWISE

    def decode_engine(self, vae: Any, kwargs: Mapping[str, Any]) -> Engine:
        """The unmodified `vae.decoder` under this family's rules."""
        refuse_arguments(vae, kwargs, "decoding")
        return self._engine(vae, vae.decoder, self.decoder_options(vae))

    def encode_engine(self, vae: Any, kwargs: Mapping[str, Any]) -> Engine:
        """The unmodified `vae.encoder` under this family's rules."""
        refuse_arguments(vae, kwargs, "encoding")
        return self._engine(vae, vae.encoder, self.encoder_options(vae))

    def decoder_options(self, vae: Any) -> dict[str, Any]:
        """Options of `RuledEngine` for the decoder."""
        from adaptive.stream.engines.stages import stages_of

        return {"begin": getattr(vae, "post_quant_conv", None), "stages": stages_of(vae.decoder)}

    def encoder_options(self, vae: Any) -> dict[str, Any]:
        """Options of `RuledEngine` for the encoder."""
        return {"finish": getattr(vae, "quant_conv", None), "group": self.traits_of(vae).temporal_ratio}

    def check_layers(self, network: Any) -> None:
        """Raise `UnsupportedVae` if a rule could not do what its layer in `network` does."""

    def _engine(self, vae: Any, network: Any, options: Mapping[str, Any]) -> Engine:
        from adaptive.stream.engines.engine import RuledEngine

        if not self.traits_of(vae).exact_streaming:
            raise UnsupportedVae(type(vae).__name__, f"streaming with {self.inexact_with}")
        self.check_layers(network)
        last = getattr(network, self.last_layer)
        return RuledEngine(
            network, rules=self.rules, pointwise=self.framewise, sink=last, kwargs={}, **options
        )
