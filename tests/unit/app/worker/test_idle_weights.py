"""Weights that leave the device while decoding, and prompts that are not encoded twice."""

import weakref
from typing import Any

import pytest
import torch

from adaptive.errors import DoesNotFit
from app.models.prompt_cache import PromptCache
from app.worker.idle_weights import IdleWeights

CPU = torch.device("cpu")


def test_dropped_weights_free_their_memory_and_come_back_the_same() -> None:
    layer = torch.nn.Linear(64, 64)
    before, parameter = layer.weight.detach().clone(), layer.weight
    idle = IdleWeights([layer, layer], CPU)
    assert idle.size_bytes == (64 * 64 + 64) * 4, "shared tensors count once"
    memory = weakref.ref(layer.weight.untyped_storage())
    idle.drop()
    assert memory() is None, "nothing holds the device's copy"
    assert idle.droppable_bytes == 0
    idle.restore(idle.size_bytes)
    assert layer.weight is parameter
    assert torch.equal(layer.weight, before)
    assert idle.droppable_bytes == idle.size_bytes
    assert idle.reload_seconds > 0


def test_weights_stay_away_while_there_is_no_room_for_them() -> None:
    idle = IdleWeights([torch.nn.Linear(8, 8)], CPU)
    idle.drop()
    with pytest.raises(DoesNotFit) as refused:
        idle.restore(10)
    assert refused.value.needed_bytes == idle.size_bytes
    assert not idle.on_device


class Encoder:
    """As a pipeline: embeddings, and nothing for the negative prompt."""

    def __init__(self) -> None:
        self.calls = 0

    def encode_prompt(
        self, prompt: str | list[str], negative: str = "", image: Any = None, device: Any = None
    ) -> Any:
        assert negative is not None or image is None or device
        self.calls += 1
        return torch.full((1, 8), float(len(prompt))), [torch.zeros(2), None]


def test_a_prompt_is_encoded_once_and_each_caller_gets_its_own_tensors() -> None:
    pipe = Encoder()
    cache = PromptCache()
    cache.attach(pipe)
    first, (rest, nothing) = pipe.encode_prompt("a boat", device=CPU)
    first.add_(100.0)  # pipelines scale embeddings in place
    again, _ = pipe.encode_prompt(prompt="a boat", device=CPU)
    assert torch.equal(again, torch.full((1, 8), 6.0))
    assert (rest.shape, nothing) == ((2,), None)
    assert (pipe.calls, cache.hits) == (1, 1)
    pipe.encode_prompt("a boat", "blurry", device=CPU)
    pipe.encode_prompt("a ship", device=CPU)
    assert pipe.calls == 3


def test_a_call_that_text_does_not_identify_is_never_answered_from_the_cache() -> None:
    pipe = Encoder()
    PromptCache().attach(pipe)
    for _ in range(2):
        pipe.encode_prompt("a boat", image=torch.zeros(3))
    assert pipe.calls == 2


def test_the_cache_forgets_the_oldest_beyond_its_bytes_and_leaves_other_pipelines_alone() -> None:
    pipe = Encoder()
    PromptCache(kept_bytes=100).attach(pipe)  # two results of 40 bytes
    for prompt in ("a", "b", "c", "c", "b", "a"):
        pipe.encode_prompt(prompt)
    assert pipe.calls == 4
    PromptCache().attach(object())
