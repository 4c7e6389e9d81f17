"""Transformers in int8: their bytes as predicted, chosen by memory, told wherever a result is looked at."""

from __future__ import annotations

import bisect
import io
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny_pipelines
import torch
from PIL import Image
from scraped import total
from starlette.testclient import TestClient
from waiting import wait_for

from adaptive.errors import DoesNotFit
from adaptive.families import traits_of
from adaptive.memory.learned_costs import LearnedCosts
from adaptive.memory.profile import Curve, MemoryProfile
from adaptive.memory.traced_vae import config_digest
from adaptive.pipelines.recorded_call import load_clip
from adaptive.planning.weight_placement import Placement
from adaptive.testing import ScriptedProbe
from adaptive.types import VideoShape
from app.api import create_app
from app.config import ConfigError, Settings
from app.jobs import JobStatus, Json
from app.models import profiles
from app.models.components import ModelUnavailable, components_of
from app.models.entries import ModelEntry, load_models
from app.models.loading import int8_configuration, load_pipeline
from app.models.requirements import ModelRequirements, choose_placement
from app.models.weight_sizes import component_sizes, stored_requirements
from app.service.processes import open_store
from app.worker.engine import Engine
from app.worker.job.control import JobControl
from app.worker.job.run import JobRun

CPU = torch.device("cpu")
# PhotoPanPipeline's transformer has no matrices.
WITHOUT = ("I2VGenXLPipeline", "LTXConditionPipeline", "PhotoPanPipeline", "StableVideoDiffusionPipeline")
WITH_TRANSFORMER = [name for name in tiny_pipelines.names() if name not in WITHOUT]
ENTRY = """
[models.small]
pipeline = "{pipeline}"
source = "{source}"
dtype = "bfloat16"
vae_class = "AutoencoderKLLTXVideo"
size_multiple = 32
temporal_ratio = 8
first_frame_alone = true
{quantize}

[models.small.defaults]
width = 64
height = 64
num_frames = 9
fps = 8
num_inference_steps = 2
guidance_scale = 1.0

[models.small.limits]
max_pixels = 65536
max_frames = 64
max_steps = 10
"""


def offered(folder: Path, pipeline: str, quantize: str = 'quantize = "int8"') -> tuple[Settings, ModelEntry]:
    """Settings and the entry of a tiny pipeline of random weights."""
    source = tiny_pipelines.save(pipeline, folder / pipeline)
    (folder / "models.toml").write_text(ENTRY.format(pipeline=pipeline, source=source, quantize=quantize))
    settings = Settings(
        data_dir=folder / "data", models_file=folder / "models.toml", reserve_bytes=0, calibrate_seconds=0
    )
    return settings, load_models(settings)["small"]


def tight(settings: Settings, entry: ModelEntry) -> int:
    """Bytes that hold the model with its transformer in int8, and not as it is. Its demand is stored, with a
    profile of round numbers: bytes a latent pixel.
    """
    components = components_of(entry, settings)
    vae = components["vae"]
    streamed = {1: Curve((1,), (1024.0,)), 2: Curve((1,), (2048.0,))}
    batched = Curve((1, 5), (1024.0, 5120.0))
    traits = traits_of(vae.class_name, vae.config)
    profile = MemoryProfile(traits, entry.dtype, config_digest(vae.config), batched, streamed)
    settings.data_dir.mkdir(exist_ok=True)
    profiles.save(settings, entry, profile)
    requirements = stored_requirements(settings, entry, components, traits.latent_channels)
    return bisect.bisect_left(range(2**32), True, key=lambda few: fits(entry, requirements, profile, few)) - 1


def fits(entry: ModelEntry, requirements: ModelRequirements, profile: MemoryProfile, few_bytes: int) -> bool:
    """Whether the model as it is fits into memory that is the host's own."""
    try:
        place(entry, requirements, profile, few_bytes)
    except DoesNotFit:
        return False
    return True


def place(
    entry: ModelEntry, requirements: ModelRequirements, profile: MemoryProfile, few_bytes: int
) -> Placement:
    given = entry.defaults
    return choose_placement(
        requirements,
        entry,
        profile,
        VideoShape(given.num_frames, given.height, given.width),
        device_budget_bytes=few_bytes,
        host_budget_bytes=0,
        on_host=True,
        costs=LearnedCosts.none("cpu", ""),
    )


def held_bytes(tensor: torch.Tensor) -> int:
    """What the tensor takes, looking into those that are made of others."""
    if type(tensor) in (torch.Tensor, torch.nn.Parameter):
        return tensor.nbytes
    parts, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    return sum(held_bytes(getattr(tensor, part)) for part in parts)


def picture() -> bytes:
    pixels = np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


@pytest.mark.filterwarnings("ignore:.*deprecated", "ignore:__array__ implementation")
@pytest.mark.parametrize("pipeline", WITH_TRANSFORMER)
def test_a_transformer_in_int8_takes_the_predicted_bytes(pipeline: str, tmp_path: Path) -> None:
    settings, entry = offered(tmp_path, pipeline)
    sizes = {size.name: size for size in component_sizes(components_of(entry, settings), entry.dtype)}
    assert [name for name, size in sizes.items() if size.quantized_bytes is not None] == ["transformer"]
    pipe = getattr(diffusers, pipeline).from_pretrained(
        entry.source, dtype=torch.bfloat16, quantization_config=int8_configuration(["transformer"])
    )
    held = sum(held_bytes(each) for each in [*pipe.transformer.parameters(), *pipe.transformer.buffers()])
    assert held == sizes["transformer"].quantized_bytes
    for name in ("vae", "text_encoder"):
        assert all(type(each) is torch.nn.Parameter for each in getattr(pipe, name).parameters())


PUBLISHED = [entry for entry in load_models(Settings()).values() if not entry.is_builtin]


@pytest.mark.parametrize("entry", [one for one in PUBLISHED if one.dtype == "bfloat16"], ids=lambda e: e.name)
def test_published_transformers_shrink_by_half(entry: ModelEntry, tmp_path: Path) -> None:
    requirements = profiles.load_requirements(Settings(data_dir=tmp_path), entry)
    assert requirements is not None
    shares = {
        each.name: each.quantized_bytes / each.weight_bytes
        for each in requirements.components
        if each.quantized_bytes is not None
    }
    assert "transformer" in shares
    assert all(0.5 < share < 0.51 for share in shares.values()), shares


class Served:
    """The service in this process, its model on a device that holds it only with rounded weights."""

    def __init__(self, settings: Settings, entry: ModelEntry, http: TestClient, engine: Engine) -> None:
        self.settings, self.entry, self.http, self.engine = settings, entry, http, engine

    def post(self, path: str, **fields: Any) -> Json:
        form = {"model": "small", "prompt": "a bear", "seed": 5, **fields}
        answer = self.http.post(path, data=form, files={"image": ("photo.png", picture())})
        assert answer.status_code in (200, 202), answer.text
        found: Json = answer.json()
        return found

    def made(self, **fields: Any) -> Json:
        """A job, from its submission to its video."""
        job = self.post("/generate", **fields)
        with closing(open_store(self.settings)) as store:
            claim = store.claim("here", models=["small"], loaded_model=None, lease_seconds=600)
            assert claim is not None
            run = JobRun(self.settings, store, self.engine, self.entry, claim, JobControl())
            result = run.run()
            done: Json = {"result": result, "decode": run.decode, "durations": run.durations}
            store.finish(claim.job.id, claim.token, status=JobStatus.SUCCEEDED, **done)
            store.register_worker("here", {**self.engine.device_report(), "models": ["small"]})
        found: Json = self.http.get(f"/jobs/{job['id']}").json()
        return found

    def latents(self, job: Json) -> torch.Tensor:
        clip = load_clip(self.settings.jobs_dir / job["id"] / "latents.safetensors")
        return clip.calls[0].latents.float()


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    settings, entry = offered(tmp_path, "LTXImageToVideoPipeline")
    probe = ScriptedProbe([tight(settings, entry)])
    monkeypatch.setattr("app.worker.engine.open_probe", lambda _device: probe)
    engine = Engine(settings, "cpu")
    with TestClient(create_app(settings)) as http, closing(open_store(settings)) as store:
        store.register_worker("here", {**engine.device_report(), "models": ["small"]})
        yield Served(settings, entry, http, engine)


def test_a_video_is_made_in_int8_where_only_that_fits_and_says_so_everywhere(served: Served) -> None:
    plan = served.post("/plan", exact_only="false")["plan"]
    assert (plan["weights"]["quantized"], plan["weights"]["exact"]) == (["transformer"], False)
    assert "approximate" in plan["weights"]["reason"]

    rounded = served.made(exact_only="false")
    assert rounded["status"] == "succeeded"
    assert rounded["plan"]["weights"]["exact"] is False
    assert rounded["denoise"]["exact"] is False
    assert (rounded["denoise"]["quantized"], rounded["denoise"]["weights"]) == (["transformer"], "int8")
    assert rounded["result"]["frames"] == 9
    assert served.http.get(f"/jobs/{rounded['id']}/video").status_code == 200
    loaded = served.http.get("/devices").json()["devices"][0]["loaded_placement"]
    assert (loaded["quantized"], loaded["exact"]) == (["transformer"], False)

    exact = served.made()  # the same device, and the request's default
    assert exact["denoise"]["exact"] is True
    assert "weights" not in exact["plan"]
    assert served.post("/plan", exact_only="false")["plan"]["weights"]["exact"] is True  # as it is loaded now
    again = served.made(exact_only="false")
    assert again["denoise"]["exact"] is True

    # Rounded, not another video: int8 keeps a weight to 1 in 256 of its row's range.
    before, after = served.latents(exact), served.latents(rounded)
    off = (before - after).abs().max() / before.abs().max()
    assert 0 < off < 0.1
    assert torch.equal(served.latents(again), before)

    def runs(pixels: str) -> float:
        text = served.http.get("/metrics").text
        return total(text, "framefit_jobs_denoised_total", model="small", pixels=pixels)

    wait_for(lambda: (runs("approximate"), runs("exact")) == (1, 2), 120)  # counted at a poll's distance


def test_without_the_library_it_is_refused_by_the_name_of_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, entry = offered(tmp_path, "LTXImageToVideoPipeline")
    reading = ScriptedProbe([2**40]).read()
    monkeypatch.setattr("app.models.loading.importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ModelUnavailable, match=r"torchao is missing: pip install 'framefit\[quantize\]'"):
        load_pipeline(entry, settings, CPU, reading, exact_only=False)
    assert load_pipeline(entry, settings, CPU, reading).quantized == ()


def test_an_entry_that_does_not_say_so_is_never_rounded(tmp_path: Path) -> None:
    settings, entry = offered(tmp_path, "LTXImageToVideoPipeline", quantize="")
    reading = ScriptedProbe([tight(settings, entry)]).read()
    assert load_pipeline(entry, settings, CPU, reading, exact_only=False).quantized == ()


def test_int8_is_for_bfloat16(tmp_path: Path) -> None:
    settings, _ = offered(tmp_path, "LTXImageToVideoPipeline")
    path = tmp_path / "models.toml"
    path.write_text(path.read_text().replace("bfloat16", "float32"))
    with pytest.raises(ConfigError, match=r"models\.small\.quantize: int8 needs dtype bfloat16"):
        load_models(settings)


def test_the_refusal_of_an_exact_job_says_that_quantizing_would_help(tmp_path: Path) -> None:
    settings, entry = offered(tmp_path, "LTXImageToVideoPipeline")
    few = tight(settings, entry)
    profile, requirements = profiles.load(settings, entry), profiles.load_requirements(settings, entry)
    assert profile is not None
    assert requirements is not None
    with pytest.raises(DoesNotFit, match="exact_only=false and int8 weights"):
        place(entry, requirements, profile, few)
