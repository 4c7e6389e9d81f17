"""fp8 weights and their scales: a tensor that keeps its scale, and a linear layer that computes with both.

diffusers casts the layers of a model to fp8 and back (layerwise casting), which rounds biases and every other
tensor of a layer, too, and it knows no scales. This layer keeps what the file holds.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional


class ScaledTensor(torch.Tensor):
    """An fp8 tensor whose values are multiplied by `scale`. Pieces of it have its scale."""

    scale: float

    @staticmethod
    def of(tensor: torch.Tensor, scale: float) -> "ScaledTensor":
        """The tensor's data with a scale."""
        scaled = tensor.as_subclass(ScaledTensor)
        scaled.scale = scale
        return scaled

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Give the scale of the arguments to the results. Raises `ValueError` if they have different ones."""
        result = super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        scales = {each.scale for each in _scaled(args) if hasattr(each, "scale")}
        made = _scaled([result])
        if len(scales) > 1 and made:
            raise ValueError("tensors of different scales were joined")
        for each in made:
            if scales:
                each.scale = next(iter(scales))
        return result


def scale_of(tensor: torch.Tensor) -> float | None:
    """The tensor's scale; None if it has none."""
    return getattr(tensor, "scale", None)


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's stored values without its scale."""
    return tensor.as_subclass(torch.Tensor)


def dequantized(tensor: torch.Tensor, scale: float | None, dtype: torch.dtype) -> torch.Tensor:
    """The fp8 tensor's values in `dtype`, each rounded once."""
    # Half precision holds every fp8 value, and torch multiplies by a number in float32.
    values = plain(tensor).to(dtype)
    return values if scale is None else values.mul_(scale)


class Fp8Linear(torch.nn.Linear):
    """A linear layer that stores its weight in fp8 and dequantizes it in each call.

    The weight is held as bytes (`stored`, uint8): casts of the module do not reach it, and code that asks a
    model for its dtype finds the others'. Reading `weight` dequantizes. `scale` is None for plain fp8; it is
    in the state dict.
    """

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype, scale: float | None = None
    ) -> None:
        torch.nn.Module.__init__(self)  # Linear would allocate a weight
        self.out_features, self.in_features = weight.shape
        self.fp8_dtype = weight.dtype
        self.compute_dtype = dtype
        self.scale = scale
        # The bias comes first: diffusers takes the dtype of a module's first parameter for the module's.
        self.register_parameter("bias", None if bias is None else torch.nn.Parameter(bias.to(dtype), False))
        self.stored = torch.nn.Parameter(plain(weight).view(torch.uint8), requires_grad=False)

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """The dequantized weight in the dtype that the layer computes in."""
        return self._dequantized(self.compute_dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As `torch.nn.Linear`, in the input's dtype."""
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return functional.linear(input, self._dequantized(input.dtype), bias)

    def get_extra_state(self) -> dict[str, float | None]:
        """The scale, for the state dict."""
        return {"scale": self.scale}

    def set_extra_state(self, state: dict[str, float | None]) -> None:
        """The inverse of `get_extra_state`."""
        self.scale = state["scale"]

    def extra_repr(self) -> str:
        """As `torch.nn.Linear`, with the format."""
        return f"{super().extra_repr()}, {self.fp8_dtype}, scale={self.scale}"

    def _dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        return dequantized(self.stored.view(self.fp8_dtype), self.scale, dtype)


def _scaled(values: Any) -> list[ScaledTensor]:
    found = []
    for each in values:
        if isinstance(each, ScaledTensor):
            found.append(each)
        elif isinstance(each, list | tuple):
            found += _scaled(each)
    return found
