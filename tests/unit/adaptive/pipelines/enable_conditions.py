"""The conditions of the matrix of `test_enable_matrix`: changes of a live VAE, contexts and calls.

A condition acts on a `LiveVae` before `enable`, after it, or around each call. The same condition acts on a
VAE that is never enabled, whose results and errors are the expected ones.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import enable_changes as changes
import torch
from enable_changes import LiveVae
from enable_families import CAUSAL_LAYERS, ENGINES, FAMILIES, USUAL
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

CONVOLUTIONS_BETWEEN = 9  # of one thread, before each plain decode of the other
MOST_DECODES_BETWEEN = 1

Result = tuple[Tensor, ...]


def decode(live: LiveVae) -> Result:
    with torch.no_grad():
        vaes = (live.vae, *live.more)
        return tuple(vae.decode(live.latents, **live.arguments, return_dict=False)[0] for vae in vaes)


def encode(live: LiveVae) -> Result:
    with torch.no_grad():
        return (_parameters(live.vae.encode(live.clip, return_dict=False)),)


def _parameters(output: tuple[Any, ...]) -> Tensor:
    parameters: Tensor = output[0].parameters
    return parameters


def _nothing(live: LiveVae) -> None:
    pass


@contextmanager
def _plainly(live: LiveVae) -> Iterator[list[Result]]:  # noqa: ARG001 - the others need it
    yield []


@dataclass(frozen=True, slots=True)
class Condition:
    """What is done before and after `enable` and around each call, and the calls themselves.

    `around` yields a list that another thread fills with results of its own. `or_plain`: the VAE may as well
    give what it gives under no condition. `disturbs`: another thread comes between; where even the untouched
    VAE then gives something else than alone, one call is compared with nothing. `strips`: whether strips must
    still be possible; otherwise a decode that fits in no other way may be refused. `changes_pixels`: the
    untouched VAE gives something else than under no condition. `tolerance` is relative.
    `vaes` are names of `enable_families.FAMILIES`.
    """

    before: Callable[[LiveVae], None] = _nothing
    after: Callable[[LiveVae], None] = _nothing
    around: Callable[[LiveVae], AbstractContextManager[list[Result]]] = _plainly
    decode: Callable[[LiveVae], Result] = decode
    encode: Callable[[LiveVae], Result] = encode
    tolerance: float = 2e-5
    or_plain: bool = False
    disturbs: bool = False
    strips: bool = True
    changes_pixels: bool = False
    vaes: tuple[str, ...] = USUAL


@contextmanager
def after_denoising(live: LiveVae) -> Iterator[list[Result]]:
    assert live.denoiser is not None
    live.denoiser.loaded = True
    yield []


@contextmanager
def eagerly(live: LiveVae) -> Iterator[list[Result]]:  # noqa: ARG001
    """What is compiled runs as it is: what matters is who calls it."""
    torch.compiler.set_stance("force_eager")
    try:
        yield []
    finally:
        torch.compiler.set_stance("default")


class _Interrupted(TorchDispatchMode):
    """Runs `work` in another thread, to its end, between convolutions of this thread."""

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__()
        self._work = work
        self._convolutions = 0

    def __torch_dispatch__(self, operator: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "convolution" in str(operator):
            self._convolutions += 1
            turn, rest = divmod(self._convolutions, CONVOLUTIONS_BETWEEN)
            if not rest and turn <= MOST_DECODES_BETWEEN:
                thread = threading.Thread(target=self._work)
                thread.start()
                thread.join()
        return operator(*args, **(kwargs or {}))


def other_decode(live: LiveVae) -> Result:
    """What the other thread does: the class's own decode of other latents."""
    plain = getattr(type(live.vae), "decode")  # noqa: B009 - not the instance's
    # Threads share torch's random numbers; some decoders draw noise.
    with torch.random.fork_rng([]), torch.no_grad():
        torch.manual_seed(4)
        return (plain(live.vae, live.latents.flip(-1).contiguous(), **live.arguments, return_dict=False)[0],)


@contextmanager
def beside_another_thread(live: LiveVae) -> Iterator[list[Result]]:
    """Another thread decodes while this thread is in the middle of its call."""
    found: list[Result] = []
    with _Interrupted(lambda: found.append(other_decode(live))):
        yield found


@contextmanager
def autocast(live: LiveVae) -> Iterator[list[Result]]:  # noqa: ARG001
    with torch.autocast("cpu", dtype=torch.bfloat16):
        yield []


def decode_with_gradient(live: LiveVae) -> Result:
    latents = live.latents.clone().requires_grad_()
    video = live.vae.decode(latents, **live.arguments, return_dict=False)[0]
    return _with_gradient(video, latents)


def encode_with_gradient(live: LiveVae) -> Result:
    assert live.clip is not None
    clip = live.clip.clone().requires_grad_()
    return _with_gradient(_parameters(live.vae.encode(clip, return_dict=False)), clip)


def _with_gradient(output: Tensor, leaf: Tensor) -> Result:
    (gradient,) = torch.autograd.grad(output.square().sum(), leaf)
    return output.detach(), gradient


def within_and_after_inference_mode(call: Callable[[LiveVae], Result]) -> Callable[[LiveVae], Result]:
    def both(live: LiveVae) -> Result:
        with torch.inference_mode():
            within = call(live)
        return (*within, *call(live))

    return both


def decode_with_nones(live: LiveVae) -> Result:
    """Arguments that are None are no arguments."""
    signature = inspect.signature(type(live.vae).decode).parameters.values()
    nones = {each.name: None for each in signature if each.default is None}
    with torch.no_grad():
        return (live.vae.decode(live.latents, **(nones | live.arguments), return_dict=False)[0],)


def decode_by_position(live: LiveVae) -> Result:
    values = {"return_dict": False} | live.arguments
    parameters = list(inspect.signature(type(live.vae).decode).parameters.values())[2:]
    arguments = [values.get(each.name, each.default) for each in parameters]
    with torch.no_grad():
        return (live.vae.decode(live.latents, *arguments)[0],)


def encode_by_position(live: LiveVae) -> Result:
    with torch.no_grad():
        return (_parameters(live.vae.encode(live.clip, False)),)


ALL = tuple(FAMILIES)
CONDITIONS: dict[str, Condition] = {
    "plain": Condition(vaes=ALL),
    "model offload": Condition(before=changes.model_offload, around=after_denoising, vaes=ALL),
    "sequential offload": Condition(before=changes.sequential_offload, strips=False),
    "group offload": Condition(before=changes.group_offload, strips=False),
    "layerwise casting": Condition(before=changes.layerwise_casting, strips=False),
    "lora": Condition(before=changes.lora, strips=False, changes_pixels=True, vaes=ALL),
    "lora after enable": Condition(after=changes.lora, strips=False, changes_pixels=True, vaes=ENGINES),
    "adapted causal layers": Condition(
        before=changes.adapted_causal_layers, strips=False, changes_pixels=True, vaes=CAUSAL_LAYERS
    ),
    "compiled decoder": Condition(before=changes.compile_decoder, strips=False, around=eagerly),
    "compiled after enable": Condition(
        after=changes.compile_decoder, strips=False, around=eagerly, vaes=ENGINES
    ),
    "compiled methods": Condition(before=changes.compile_methods, around=eagerly, vaes=ENGINES),
    "slicing and tiling": Condition(before=changes.slicing_and_tiling, or_plain=True),
    "double": Condition(before=changes.cast_to(torch.float64), vaes=ENGINES),
    "cast to double": Condition(after=changes.cast_to(torch.float64), vaes=ENGINES),
    "upcast": Condition(
        before=changes.cast_to(torch.bfloat16), after=changes.cast_to(torch.float32), vaes=ALL
    ),
    "moved": Condition(after=changes.move_to_meta, vaes=ENGINES),
    "moved back and forth": Condition(after=changes.moved_back_and_forth, vaes=ENGINES),
    "moved by its parent": Condition(after=changes.moved_by_its_parent, vaes=ENGINES),
    "weights assigned": Condition(after=changes.weights_assigned, changes_pixels=True, vaes=ENGINES),
    "other networks": Condition(after=changes.other_networks, changes_pixels=True, vaes=ENGINES),
    "two threads": Condition(around=beside_another_thread, or_plain=True, disturbs=True, vaes=ALL),
    "autocast": Condition(around=autocast, tolerance=0.03, vaes=ALL),
    "grad": Condition(decode=decode_with_gradient, encode=encode_with_gradient),
    "inference mode": Condition(
        decode=within_and_after_inference_mode(decode), encode=within_and_after_inference_mode(encode)
    ),
    "pickle": Condition(after=changes.pickled),
    "deepcopy": Condition(after=changes.copied),
    "hook on the decoder": Condition(before=changes.hook_on_decoder, strips=False, vaes=ENGINES),
    "hook after enable": Condition(after=changes.hook_on_decoder, strips=False, vaes=ENGINES),
    "hooks on norms": Condition(before=changes.hooks_on_norms, strips=False, vaes=ENGINES),
    "patched decoder": Condition(before=changes.patched_forward, strips=False, vaes=ENGINES),
    "replaced norm": Condition(before=changes.replaced_norm, strips=False, vaes=ENGINES),
    "arguments that are None": Condition(decode=decode_with_nones, vaes=ENGINES),
    "arguments by position": Condition(decode=decode_by_position, encode=encode_by_position, vaes=ENGINES),
    "latents of another dtype": Condition(after=changes.other_latents, vaes=ENGINES),
}
