"""What makes the pretended card a card: it fails where a program that is wrong on a real one would fail."""

import gc
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pretended import AS_CUDA, MIB, Card
from pretended.start import late_copies

from adaptive.device.nvml import Nvml, NvmlState

accelerator = torch.accelerator


@pytest.fixture
def empty(device: str) -> None:
    """Nothing of an earlier test is on the card."""
    gc.collect()
    accelerator.empty_cache()
    assert accelerator.memory_allocated(torch.device(device)) == 0


@pytest.fixture
def copies(device: str) -> Any:
    """A second stream of the card, as a context manager."""
    stream = torch.Stream(torch.device(device))
    return torch.cuda.stream(stream) if os.environ["PRETENDED_DEVICE"] == AS_CUDA else stream


def _stream(copies: Any) -> Any:
    return getattr(copies, "stream", copies)


@pytest.mark.parametrize(
    "mixed",
    [
        lambda card, host: card + host,
        lambda card, host: torch.cat([card, host]),
        lambda card, host: torch.where(card > 0, card, host),
        lambda card, host: card.view(2, 2) @ host.view(2, 2),
        lambda card, host: F.conv1d(card.view(1, 1, 4), host.view(1, 1, 4)),
        lambda card, host: F.layer_norm(card, (4,), host),
        lambda card, host: F.linear(card, host.view(1, 4)),
        lambda card, host: host.index_select(0, card.long()),
    ],
)
def test_tensors_of_card_and_host_do_not_mix(
    device: str, mixed: Callable[[torch.Tensor, torch.Tensor], Any]
) -> None:
    with pytest.raises(RuntimeError, match="same device"):
        mixed(torch.ones(4, device=device), torch.ones(4))


def test_a_tensor_of_the_card_is_no_array(device: str) -> None:
    with pytest.raises(TypeError, match="device type tensor"):
        torch.ones(4, device=device).numpy()


def test_a_generator_of_the_host_draws_nothing_on_the_card(device: str) -> None:
    with pytest.raises(RuntimeError, match="generator"):
        torch.randn(4, device=device, generator=torch.Generator())


def test_the_cards_random_numbers_are_its_own(device: str) -> None:
    torch.manual_seed(1)
    first = torch.rand(3, device=device)
    torch.rand(9)  # the host's
    second = torch.rand(3, device=device)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3, device=device), first)
    assert torch.equal(torch.rand(3, device=device), second)
    before = torch.get_rng_state()
    F.dropout(torch.ones(50, device=device))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_copy_that_nobody_waits_for_has_not_happened(device: str, copies: Any) -> None:
    source, target = torch.arange(1000.0, device=device), torch.zeros(1000, pin_memory=True)
    with copies:
        target.copy_(source, non_blocking=True)
    assert target.sum() == 0
    assert late_copies() == 1
    _stream(copies).synchronize()
    assert torch.equal(target, source.cpu())


@pytest.mark.parametrize("recorded", [True, False])
def test_memory_that_a_late_copy_reads_must_be_recorded_on_its_stream(
    device: str, copies: Any, recorded: bool
) -> None:
    source, target = torch.arange(1000.0, device=device), torch.zeros(1000, pin_memory=True)
    with copies:
        target.copy_(source, non_blocking=True)
    if recorded:
        source.record_stream(_stream(copies))
    del source
    torch.full((1000,), -1.0, device=device)  # takes the freed block
    _stream(copies).synchronize()
    assert target.sum().item() == (499500 if recorded else -1000)


def test_a_stream_that_waits_for_another_sees_its_copies(device: str, copies: Any) -> None:
    pinned = torch.arange(1000.0).pin_memory()
    target = torch.zeros(1000, device=device)
    with copies:
        target.copy_(pinned, non_blocking=True)
    accelerator.current_stream().wait_stream(_stream(copies))
    assert (target + 1).sum() == 500500


@pytest.mark.usefixtures("empty")
def test_memory_is_rounded_cached_and_split_as_torch_does(card: Card, device: str) -> None:
    small, large = torch.empty(1000, dtype=torch.uint8, device=device), torch.empty(3 * MIB, device=device)
    stats = accelerator.memory_stats()
    assert stats["allocated_bytes.all.current"] == 1024 + 12 * MIB
    assert stats["reserved_bytes.all.current"] == 2 * MIB + 12 * MIB
    assert stats["inactive_split_bytes.all.current"] == 2 * MIB - 1024
    del large
    torch.empty(8 * MIB, dtype=torch.uint8, device=device)
    assert accelerator.memory_stats()["reserved_bytes.all.current"] == 14 * MIB  # the freed segment served
    del small
    assert card.free_bytes == card.capacity_bytes - card.context_bytes - 14 * MIB
    accelerator.empty_cache()
    assert card.free_bytes == card.capacity_bytes - card.context_bytes


@pytest.mark.usefixtures("empty")
def test_memory_that_a_neighbour_holds_cannot_be_allocated(card: Card, device: str) -> None:
    card.leave(64 * MIB)
    kept = torch.empty(32 * MIB, dtype=torch.uint8, device=device)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        torch.empty(64 * MIB, dtype=torch.uint8, device=device)
    card.ballast_bytes = 0
    torch.empty(64 * MIB, dtype=torch.uint8, device=device)
    assert kept.nbytes == accelerator.memory_allocated()


def test_the_chosen_allocation_fails_once(card: Card, device: str) -> None:
    card.fail_in = 2
    kept = [torch.empty(1, device=device) for _ in range(2)]
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(1, device=device)
    kept.append(torch.empty(1, device=device))
    assert len(kept) == 3


@pytest.mark.parametrize(
    "call",
    [
        lambda tensor: tensor + 1,
        lambda tensor: tensor.cpu(),
        lambda tensor: torch.empty(1, device=tensor.device),
        lambda _tensor: accelerator.synchronize(),
        lambda _tensor: accelerator.empty_cache(),
        lambda _tensor: accelerator.get_memory_info(),
    ],
)
def test_after_a_fault_of_the_card_every_call_fails(
    card: Card, device: str, call: Callable[[torch.Tensor], Any]
) -> None:
    tensor = torch.ones(4, device=device)
    card.fault = 1
    with pytest.raises(torch.AcceleratorError, match="illegal memory access"):
        call(tensor)


@pytest.mark.usefixtures("empty")
def test_cards_are_apart(cards: list[Card], device: str) -> None:
    other = torch.ones(10 * MIB, device=torch.device(torch.device(device).type, 1))
    assert accelerator.memory_allocated(1) == other.nbytes
    assert accelerator.memory_allocated(0) == 0
    assert (other + 1).device.index == 1
    with pytest.raises(RuntimeError, match="same device"):
        other + torch.ones(10 * MIB, device=device)
    cards[0].fault = 1
    assert (other + 1)[0] == 2


@pytest.mark.usefixtures("empty")
def test_the_driver_says_what_the_cards_hold(cards: list[Card], device: str) -> None:
    kept = torch.empty(30 * MIB, dtype=torch.uint8, device=device)
    cards[1].ballast_bytes = 100 * MIB
    with Nvml() as nvml:
        first, second = nvml.devices()
        assert (first.free_bytes, second.free_bytes) == (cards[0].free_bytes, cards[1].free_bytes)
        (mine,) = [each for each in first.processes if each.pid == os.getpid()]
        assert mine.used_bytes == kept.nbytes + cards[0].context_bytes
        cards[0].hides_processes = 1
        (mine,) = [each for each in nvml.devices()[0].processes if each.pid == os.getpid()]
        assert mine.used_bytes is None


class Counted:
    """The driver's library; notes the functions that are called."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self.called: list[str] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._library, name)
        if not callable(found):
            return found

        def call(*args: Any) -> Any:
            self.called.append(name)
            return found(*args)

        return call


def test_free_memory_is_one_question_to_the_driver(cards: list[Card]) -> None:
    with Nvml() as nvml:
        uuid = nvml.devices()[0].uuid
        nvml.memory(uuid)
        library = Counted(nvml._library)
        nvml._library = library
        cards[0].ballast_bytes = 100 * MIB
        found = nvml.memory(uuid)
        assert library.called == ["nvmlDeviceGetMemoryInfo"]
        assert (found.total_bytes, found.free_bytes) == (cards[0].capacity_bytes, cards[0].free_bytes)
        cards[0].lost = 1
        assert nvml.memory(uuid).state is NvmlState.GPU_LOST
        cards[0].lost = 0
        assert nvml.memory(uuid).state is NvmlState.OK
