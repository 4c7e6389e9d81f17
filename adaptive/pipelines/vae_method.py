"""How a VAE's `decode` and `encode` are replaced on the object: their arguments, and copies of the object.

Owns what a replacement must leave as it was: every way to pass the arguments, and that a copied or pickled
VAE is a VAE of its own, with its own methods. It does not know what the replacements do.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from adaptive.pipelines.recorded_call import RecordedDecode


@dataclass(frozen=True, slots=True)
class BoundCall:
    """Arguments of a call: its tensor, whether it returns a dictionary, and the others by name."""

    tensor: Tensor
    return_dict: bool
    named: dict[str, Any]


def bind(vae_class: type, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> BoundCall | None:
    """The arguments of `vae.decode` or `vae.encode`, however they were passed; None if they are not valid."""
    try:
        bound = inspect.signature(getattr(vae_class, method)).bind(None, *args, **kwargs)
    except TypeError:
        return None
    _, tensor, *rest = bound.args
    names = list(bound.signature.parameters)[2:]
    named = dict(zip(names, rest, strict=False)) | bound.kwargs
    if not isinstance(tensor, Tensor):
        return None
    return BoundCall(tensor, named.pop("return_dict", True), named)


def recorded_arguments(vae_class: type, recorded: RecordedDecode) -> dict[str, Any]:
    """Arguments of a recorded `vae.decode` by name, positional ones included, without `return_dict`.

    Raises `TypeError` for a call that a VAE of this class does not take.
    """
    call = bind(vae_class, "decode", (recorded.latents, *recorded.args), recorded.kwargs)
    if call is None:
        raise TypeError(f"{vae_class.__name__}.decode does not take the arguments of the recorded call")
    return call.named


class ReplacedMethods:
    """Replaces methods on a VAE object until `restore`.

    A copied or pickled VAE has none of the replacements, because they hold the original's weights.
    """

    def __init__(self, vae: Any, **methods: Any) -> None:
        self._vae = vae
        # `restore` puts back attributes that were set on the object itself, such as a compiled method.
        names = (*methods, "__getstate__")
        self._before = {name: vars(vae)[name] for name in names if name in vars(vae)}
        self._installed = {**methods, "__getstate__": self._state}
        vars(vae).update(self._installed)

    def restore(self) -> None:
        """Put back what was there before; does nothing if the methods were replaced again since."""
        own = vars(self._vae)
        if all(own.get(name) == method for name, method in self._installed.items()):
            for name in self._installed:
                del own[name]
            own.update(self._before)

    def _state(self) -> dict[str, Any]:
        """The object's state without the replacements: what `copy` and `pickle` read."""
        others = {name: value for name, value in vars(self._vae).items() if name not in self._installed}
        return others | self._before
