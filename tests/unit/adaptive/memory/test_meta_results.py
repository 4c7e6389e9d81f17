"""A traced call that was made before is answered from memory, with the tensors that it would give."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from stream_vaes import kwargs_of, latents_of, shared
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from adaptive.memory import meta_results
from adaptive.memory.live_bytes import trace_peak
from adaptive.stream import decode_whole


class Remembered(TorchDispatchMode):
    """Answers calls from memory; `made` names the operators that were called."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[str] = []

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return meta_results.call(_Counted(func, self.made), args, kwargs or {})


class _Counted:
    """An operator that notes its calls and is equal to itself in another call."""

    def __init__(self, func: Any, made: list[str]) -> None:
        self._func, self._made, self._schema = func, made, func._schema

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._made.append(str(self._func))
        return self._func(*args, **kwargs)

    def __hash__(self) -> int:
        return hash(self._func)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Counted) and self._func is other._func


def meta(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


CALLS: dict[str, tuple[Callable[[], list[Tensor]], bool]] = {
    "a new tensor": (lambda: [x := meta(2, 3), x + 1], True),
    "a scalar of another kind": (lambda: [x := meta(2, 3).int(), x * 2, x * 2.0], True),
    "several tensors": (lambda: [x := meta(2, 4, 3), *torch.var_mean(x, -1)], True),
    "written in place": (lambda: [x := meta(2, 3), x.mul_(2)], True),
    "written to out": (lambda: [x := meta(2, 3), torch.mul(x, 2, out=x)], True),
    "a view": (lambda: [x := meta(4, 3), x[1:], x.t()], False),
    "a view of a part": (lambda: [x := meta(4, 3), x[:, :1].clone()], False),
    "resized": (lambda: [x := meta(4), x.resize_(2)], False),
    "emptied": (lambda: [x := meta(4)[:0], x.set_()], False),  # type: ignore[call-overload]
    "on the CPU": (lambda: [x := torch.ones(2), x + 1], False),
    "of a parameter": (lambda: [nn.Parameter(meta(3)).detach().exp()], True),
}


def described(tensors: list[Tensor]) -> list[Any]:
    """Everything that counts bytes: shapes, layouts, and which of the tensors share memory."""
    storages = [each.untyped_storage() for each in tensors]
    owners = [[other._cdata for other in storages].index(each._cdata) for each in storages]
    return [
        (each.shape, each.stride(), each.dtype, each.device, each.storage_offset(), storage.nbytes(), owner)
        for each, storage, owner in zip(tensors, storages, owners, strict=True)
    ]


@pytest.mark.parametrize("case", CALLS)
@torch.no_grad()
def test_a_call_that_is_made_again_gives_what_it_gave(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meta_results, "_calls", {})
    run, is_remembered = CALLS[case]
    expected = described(run())
    with Remembered() as first:
        assert described(run()) == expected
    with Remembered() as second:
        assert described(run()) == expected
    assert first.made
    if is_remembered:
        assert len(second.made) < len(first.made)


@pytest.mark.parametrize("name", ["ltx-0.9.1", "wan-2.1", "cogvideox", "svd", "hunyuanvideo-1.5"])
def test_a_decode_that_is_traced_again_needs_the_same_bytes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = shared(name)
    traced = type(vae).from_config(vae.config).to("meta").eval()
    latents = latents_of(vae, 3).to("meta")
    kwargs = {key: value.to("meta") for key, value in kwargs_of(vae).items()}

    def decode() -> Tensor:
        return decode_whole(traced, latents, **kwargs)

    with monkeypatch.context() as without:
        without.setattr(meta_results, "call", lambda func, args, named: func(*args, **named))
        expected = trace_peak(decode)
    monkeypatch.setattr(meta_results, "_calls", {})
    assert [trace_peak(decode) for _ in range(2)] == [expected] * 2
