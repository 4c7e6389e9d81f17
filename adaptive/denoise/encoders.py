"""What a pipeline's encoders gave before its loop began: recorded, and given again without running them.

Encoders are the pipeline's `encode_prompt`, `encode_image` and their like, `vae.encode`, and every network
that is neither VAE nor denoiser. Only outermost calls count: a text encoder that runs inside `encode_prompt`
is part of its result. A call that draws random numbers moves the generators as it did when it was recorded.
Must not know files, jobs or how the loop is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adaptive.denoise.randomness import Randomness, RandomState
from adaptive.denoise.record import ReplayDiverged
from adaptive.denoise.values import Json, NotStorable, flatten, restore
from adaptive.denoise.watch import CallNext, around_module, denoisers_of

_METHODS = (
    "encode_prompt",
    "_encode_prompt",
    "encode_image",
    "_encode_image",
    "encode_latents",
    "_encode_vae_image",
)


@dataclass(frozen=True, slots=True)
class EncoderCall:
    """One call: the encoder's name, its result as `values.flatten` makes it, and the generators after it.

    A call whose result cannot be stored is made again (`is_stored` is False). `random` is None for a call
    that draws no random numbers.
    """

    name: str
    result: Json
    random: RandomState | None = None
    is_stored: bool = True


@dataclass(frozen=True, slots=True)
class EncoderRecord:
    """The calls in their order, with the tensors of their results; and the generators before the pipeline."""

    calls: tuple[EncoderCall, ...]
    tensors: Mapping[str, Tensor]
    start: RandomState


class Encoders:
    """Records the encoder calls of one run, or answers them from the record of an earlier one."""

    def __init__(
        self,
        randomness: Randomness,
        device: torch.device,
        has_begun: Callable[[], bool],
        record: EncoderRecord | None = None,
    ) -> None:
        self.calls_computed = 0
        self._randomness = randomness
        self._device = device
        self._has_begun = has_begun  # after the first call of a denoiser, decoders follow
        self._given = record
        self._calls: list[EncoderCall] = [] if record is None else list(record.calls)
        self._tensors: dict[str, Tensor] = {} if record is None else dict(record.tensors)
        self._start = randomness.state() if record is None else record.start
        self._answered = 0
        self._depth = 0

    def record(self) -> EncoderRecord:
        """The calls of this run so far."""
        return EncoderRecord(tuple(self._calls), self._tensors, self._start)

    @contextmanager
    def watching(self, pipe: Any) -> Iterator[None]:
        """See the encoder calls of the pipeline in the block. Nothing stays behind.

        With a record, the generators are first set to what they were before the recorded call.
        """
        if self._given is not None:
            self._randomness.set(self._start)
        with ExitStack() as installed:
            for name in _METHODS:
                if callable(getattr(pipe, name, None)):
                    installed.enter_context(_method_around(pipe, name, partial(self._around, name)))
            installed.enter_context(_method_around(pipe.vae, "encode", partial(self._around, "vae.encode")))
            skipped = {id(module) for module in denoisers_of(pipe).values()} | {id(pipe.vae)}
            for name, module in pipe.components.items():
                if isinstance(module, nn.Module) and id(module) not in skipped:
                    installed.enter_context(around_module(module, partial(self._around, name)))
            yield

    def _around(
        self, name: str, call_next: CallNext, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        if self._depth or self._has_begun():
            return call_next(*args, **kwargs)
        if self._given is not None:
            return self._answer(self._given, name, partial(call_next, *args, **kwargs))
        before = self._randomness.state()
        result = self._run(partial(call_next, *args, **kwargs))
        after = self._randomness.state()
        random = None if after.equals(before) else after
        try:
            self._calls.append(EncoderCall(name, flatten(result, self._tensors), random))
        except NotStorable:
            self._calls.append(EncoderCall(name, None, random, is_stored=False))
        return result

    def _run(self, call: Callable[[], Any]) -> Any:
        self.calls_computed += 1
        self._depth += 1
        try:
            return call()
        finally:
            self._depth -= 1

    def _answer(self, given: EncoderRecord, name: str, call: Callable[[], Any]) -> Any:
        number = self._answered
        if number >= len(given.calls) or given.calls[number].name != name:
            raise ReplayDiverged(f"encoder call {number} is one of {name}, which was not recorded there")
        self._answered += 1
        recorded = given.calls[number]
        if not recorded.is_stored:
            return self._run(call)
        if recorded.random is not None:
            self._randomness.set(recorded.random)
        return restore(recorded.result, given.tensors, self._device)


@contextmanager
def _method_around(
    owner: Any, name: str, around: Callable[[CallNext, tuple[Any, ...], Mapping[str, Any]], Any]
) -> Iterator[None]:
    """Run `around` in place of the object's method within the block."""
    own = vars(owner)
    absent = object()
    before = own.get(name, absent)
    method = getattr(owner, name)
    own[name] = lambda *args, **kwargs: around(method, args, kwargs)
    try:
        yield
    finally:
        if before is absent:
            del own[name]
        else:
            own[name] = before
