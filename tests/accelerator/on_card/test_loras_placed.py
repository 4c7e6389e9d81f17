"""LoRAs on a card: each placement computes the same with them, and the same as before without."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from lora_files import write_lora
from model_parts import Base, frames_of, keep_profile, loaded, make_base
from weight_files import names_for, write_gguf, write_safetensors

from app.jobs import JobSpec
from app.worker.denoise.resumes import small_request
from app.worker.engine import Engine
from app.worker.loras.switch import AppliedLoras

WRITERS: dict[str, Callable[..., object]] = {
    "q8.gguf": partial(write_gguf, kind=Kind.Q8_0),
    "float32.safetensors": write_safetensors,
}
CLOSE = 1e-4
CASES = [
    ("q8.gguf", "group_offload"),
    ("float32.safetensors", "model_offload"),
    ("float32.safetensors", "resident"),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return make_base("LTXImageToVideoPipeline", tmp_path_factory.mktemp("base") / "model")


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_jobs_with_and_without_loras_take_turns_in_every_placement(
    name: str, kind: str, base: Base, device: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    WRITERS[name](path, base.transformer.state_dict(), named=names_for(base.transformer_class, "comfyui"))
    settings, entry = base.entry(tmp_path, {"transformer": path, "placement": kind})
    keep_profile(settings, entry)
    for number in range(2):
        write_lora(settings.lora_folder / f"{number}.safetensors", base.transformer, "kohya", seed=number)
    plain = small_request(entry)
    jobs = [plain, with_loras(plain, "0"), with_loras(plain, "0", "1"), plain, with_loras(plain, "1")]
    expected = on_host(base, tmp_path / "host", path, settings.lora_folder, jobs)
    engine = Engine(settings, device)
    model = engine.load(entry, lambda *_: None, spec=plain)
    stored = {key: each.detach().cpu().clone() for key, each in model.pipe.transformer.named_parameters()}

    for spec, frames in zip(jobs, expected, strict=True):
        model.fit_denoise(spec, lambda *_: None)
        for _ in range(2):
            assert (frames_of(model.pipe).cpu() - frames).abs().max() <= CLOSE
            model._placed.return_to_host()
        if model._context.idle is not None:  # as a decode that needs the memory
            model._context.idle.drop()
    model.fit_denoise(plain, lambda *_: None)

    after = dict(model.pipe.transformer.named_parameters())
    assert after.keys() == stored.keys()
    for key, each in stored.items():
        assert torch.equal(after[key].detach().cpu().view(torch.uint8), each.view(torch.uint8)), key


def with_loras(spec: JobSpec, *names: str) -> JobSpec:
    loras = [{"name": name, "scale": 0.7, "size_bytes": 1000} for name in names]
    return JobSpec.model_validate({**spec.model_dump(), "loras": loras})


def on_host(base: Base, folder: Path, path: Path, loras_dir: Path, jobs: list[JobSpec]) -> list[torch.Tensor]:
    """The frames of each job on the CPU."""
    pipe = loaded(*base.entry(folder, {"transformer": path})).pipe
    loras = AppliedLoras(pipe, loras_dir)
    frames = []
    for spec in jobs:
        loras.apply(spec.loras)
        frames.append(frames_of(pipe))
    return frames
