"""A LoRA gives the frames of weights to which it was added by hand, and is gone without a trace."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import denoise_cases
import psutil
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from lora_files import STYLES, merged, write_lora
from model_parts import Base, frames_of, loaded, make_base
from torch import Tensor
from weight_files import write_fp8, write_gguf

from app.fields.loras import LoraChoice
from app.worker.loras.not_applied import LoraNotApplied
from app.worker.loras.switch import AppliedLoras, lora_modules

LTX, WAN = "LTXImageToVideoPipeline", "WanImageToVideoPipeline"
CLOSE = 1e-5
Bases = Callable[[str], Base]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    return cache(lambda pipeline: make_base(pipeline, tmp_path_factory.mktemp("base") / "model"))


def state(module: Any) -> dict[str, Tensor]:
    """The module's weights, without what is no tensor: scales of fp8 layers."""
    weights = module.state_dict().items()
    return {name: each.clone() for name, each in weights if isinstance(each, torch.Tensor)}


def assert_same(module: Any, before: dict[str, Tensor]) -> None:
    after = state(module)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def choice(name: str, scale: float = 1.0, component: str | None = None) -> LoraChoice:
    return LoraChoice.model_validate({"name": name, "scale": scale, "component": component})


@pytest.mark.parametrize("pipeline", [LTX, WAN])
@pytest.mark.parametrize("style", STYLES)
def test_frames_are_those_of_merged_weights(bases: Bases, pipeline: str, style: str, tmp_path: Path) -> None:
    base = bases(pipeline)
    transformer = base.transformer
    one = write_lora(tmp_path / "one.safetensors", transformer, style, seed=1)
    two = write_lora(tmp_path / "two.safetensors", transformer, "peft", seed=2, only="to_q")
    weights = merged(state(transformer), (0.7, one), (-0.5, two))
    with base.with_weights("transformer", weights) as reference:
        expected = frames_of(reference)
    pipe = loaded(*base.entry(tmp_path / "service", {})).pipe
    before, plain = state(pipe.transformer), frames_of(pipe)
    loras = AppliedLoras(pipe, tmp_path)

    loras.apply((choice("one", 0.7), choice("two", -0.5)))
    frames = frames_of(pipe)
    loras.remove()

    assert (frames - expected).abs().max() <= CLOSE
    assert (frames - plain).abs().max() > 100 * CLOSE
    assert_same(pipe.transformer, before)
    assert torch.equal(frames_of(pipe), plain)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("Q8_0.gguf", partial(write_gguf, kind=Kind.Q8_0)),
        ("Q4_K.gguf", partial(write_gguf, kind=Kind.Q4_K)),
        ("scaled.safetensors", partial(write_fp8, scale_name="scale_weight")),
    ],
)
def test_a_quantized_transformer_takes_it_without_being_dequantized(
    bases: Bases, name: str, write: Callable[..., dict[str, Tensor]], tmp_path: Path
) -> None:
    base = bases(LTX)
    transformer = base.transformer
    weights = write(tmp_path / name, transformer.state_dict(), named=lambda name: name)
    change = write_lora(tmp_path / "one.safetensors", transformer, "kohya")
    with base.with_weights("transformer", merged(weights, (0.8, change))) as reference:
        expected = frames_of(reference)
    pipe = loaded(*base.entry(tmp_path / "service", {"transformer": str(tmp_path / name)})).pipe
    before = state(pipe.transformer)
    loras = AppliedLoras(pipe, tmp_path)

    loras.apply((choice("one", 0.8),))
    frames = frames_of(pipe)
    loras.remove()

    assert (frames - expected).abs().max() <= CLOSE
    assert_same(pipe.transformer, before)


def test_each_expert_of_wan_22_gets_its_own(tmp_path: Path) -> None:
    pipe = denoise_cases._wan22()
    high = write_lora(tmp_path / "high.safetensors", pipe.transformer, "kohya", seed=1)
    low = write_lora(tmp_path / "low.safetensors", pipe.transformer_2, "comfyui", seed=2)
    both = write_lora(tmp_path / "both.safetensors", pipe.transformer, "peft", seed=3)
    before = [state(pipe.transformer), state(pipe.transformer_2)]
    pipe.transformer.load_state_dict(merged(before[0], (1.0, high), (0.5, both)))
    pipe.transformer_2.load_state_dict(merged(before[1], (0.6, low), (0.5, both)))
    expected = frames_of(pipe)
    pipe.transformer.load_state_dict(before[0])
    pipe.transformer_2.load_state_dict(before[1])
    loras = AppliedLoras(pipe, tmp_path)

    loras.apply(
        (choice("high", 1.0, "transformer"), choice("low", 0.6, "transformer_2"), choice("both", 0.5))
    )
    frames = frames_of(pipe)
    loras.remove()

    assert (frames - expected).abs().max() <= CLOSE
    assert_same(pipe.transformer, before[0])
    assert_same(pipe.transformer_2, before[1])


def test_two_hundred_switches_leave_the_weights_and_the_memory_as_they_were(
    bases: Bases, tmp_path: Path
) -> None:
    pipe = loaded(*bases(LTX).entry(tmp_path / "service", {})).pipe
    for number in range(5):
        write_lora(tmp_path / f"{number}.safetensors", pipe.transformer, STYLES[number % 3], seed=number)
    before = state(pipe.transformer)
    hooks = [len(each._forward_hooks) + len(each._forward_pre_hooks) for each in pipe.transformer.modules()]
    loras = AppliedLoras(pipe, tmp_path)

    def switches(count: int) -> tuple[int, int]:
        for number in range(count):
            wanted = (choice(str(number % 6), 0.5),) if number % 6 < 5 else ()
            loras.apply(wanted)
        loras.remove()
        gc.collect()
        tensors = sum(isinstance(each, torch.Tensor) for each in gc.get_objects())
        return tensors, psutil.Process(os.getpid()).memory_info().rss

    tensors, rss = switches(20)
    tensors_then, rss_then = switches(180)

    assert tensors_then == tensors
    assert rss_then - rss < 32 * 2**20
    assert_same(pipe.transformer, before)
    assert not lora_modules(pipe)
    assert hooks == [
        len(each._forward_hooks) + len(each._forward_pre_hooks) for each in pipe.transformer.modules()
    ]


def test_a_lora_of_other_layers_is_refused_and_leaves_nothing_behind(bases: Bases, tmp_path: Path) -> None:
    pipe = loaded(*bases(LTX).entry(tmp_path / "service", {})).pipe
    write_lora(tmp_path / "fits.safetensors", pipe.transformer)
    write_lora(tmp_path / "other.safetensors", bases(WAN).transformer, "kohya")
    before = state(pipe.transformer)
    loras = AppliedLoras(pipe, tmp_path)

    with pytest.raises(LoraNotApplied, match="changes layers such as") as refused:
        loras.apply((choice("fits"), choice("other")))

    assert refused.value.code == "lora_not_for_model"
    assert_same(pipe.transformer, before)
    assert loras.applied == ()


def test_a_file_that_is_not_the_one_of_the_job_is_refused(bases: Bases, tmp_path: Path) -> None:
    pipe = loaded(*bases(LTX).entry(tmp_path / "service", {})).pipe
    write_lora(tmp_path / "one.safetensors", pipe.transformer)
    asked = LoraChoice(name="one", sha256="0" * 64)

    with pytest.raises(LoraNotApplied, match="has changed since the job was accepted") as refused:
        AppliedLoras(pipe, tmp_path).apply((asked,))

    assert refused.value.code == "lora_changed"
