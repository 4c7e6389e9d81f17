"""A last image and key frames through the service: the frames of the untouched pipeline come out.

A request goes in over HTTP; what a worker does with it runs in this process. The pipelines are those of
`tests/tiny_pipelines/`, called in their own words for what is expected.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny_pipelines
import torch
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition
from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition
from PIL import Image
from starlette.testclient import TestClient

from adaptive.memory.profile import MemoryProfile
from adaptive.memory.profile_trace import profile_of
from adaptive.pipelines.recorded_call import load_clip
from adaptive.planning.weight_placement import Stage
from adaptive.types import VideoShape
from app.api import create_app
from app.artifacts.local_folder import job_artifacts
from app.config import Settings
from app.jobs import Json
from app.models.entries import ModelEntry, load_models
from app.models.requirements import DenoiseCurve, ModelRequirements
from app.pipelines.frames import added_latent_frames
from app.store import open_store
from app.worker.engine import Engine
from app.worker.loop import Worker
from app.worker.pipeline_call import UnsuitablePipeline, check_call, check_last_image

SEED = 5
ENTRY = """
[models.{name}]
pipeline = "{pipeline}"
source = "{source}"
dtype = "float32"
vae_class = "{vae_class}"
size_multiple = {multiple}
temporal_ratio = {ratio}
first_frame_alone = true
{more}
[models.{name}.defaults]
width = {side}
height = {side}
num_frames = 17
fps = 8
num_inference_steps = 3
guidance_scale = 2.0

[models.{name}.limits]
max_pixels = 65536
max_frames = 64
max_steps = 10
"""
LTX2_CALL = "[models.ltx2.call]\nstg_scale = 0.0\naudio_stg_scale = 0.0\n"


@dataclass(frozen=True)
class Case:
    """A model: the tiny pipeline that it is, its class, and the rest of its entry."""

    pipeline: str
    class_name: str
    vae_class: str
    ratio: int
    side: int
    more: str = ""
    tables: str = ""


CASES = {
    "ltx": Case("LTXConditionPipeline", "LTXConditionPipeline", "AutoencoderKLLTXVideo", 8, 64),
    "ltx2": Case(
        "LTX2ConditionPipeline", "LTX2ConditionPipeline", "AutoencoderKLLTX2Video", 8, 64, tables=LTX2_CALL
    ),
    "first-last": Case(
        "Wan first and last",
        "WanImageToVideoPipeline",
        "AutoencoderKLWan",
        4,
        32,
        'inputs = ["last_image"]\nrequires = ["last_image"]\n',
    ),
    "wan22": Case(
        "Wan without CLIP",
        "WanImageToVideoPipeline",
        "AutoencoderKLWan",
        4,
        32,
        'inputs = ["last_image"]\n',
    ),
}


@dataclass(frozen=True)
class Served:
    """The service in this process: its API, its job table, a device."""

    settings: Settings
    models: dict[str, ModelEntry]
    http: TestClient
    engine: Engine

    def submit(self, model: str, pictures: dict[str, int], **fields: Any) -> str:
        """Queue a job with these pictures; returns its id."""
        files = {name: (f"{name}.png", photo(number)) for name, number in pictures.items()}
        form = {"model": model, "prompt": "a bear", "seed": SEED, **fields}
        answer = self.http.post("/generate", data=form, files=files)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def run_next(self) -> None:
        """What a worker does with the next job."""
        with closing(open_store(self.settings)) as store:
            claim = store.claim("here", models=list(self.models), loaded_model=None, lease_seconds=600)
            assert claim is not None
            Worker(self.settings, self.models, store, self.engine, "here")._run_job(claim)

    def job(self, job_id: str) -> Json:
        job: Json = self.http.get(f"/jobs/{job_id}").json()
        return job

    def frames(self, job_id: str) -> torch.Tensor:
        """The decoded frames of a finished job, `[F, 3, H, W]` in 0..1."""
        job = self.job(job_id)
        assert job["status"] == "succeeded", job["error"]
        clip = load_clip(self.settings.jobs_dir / job_id / "latents.safetensors")
        model = self.engine.load(self.models[job["model"]], lambda *_: None)
        assert model.not_resumable is None
        with closing(open_store(self.settings)) as store:
            spec = store.get(job_id).spec
        parts = [
            chunk for call in clip.calls for chunk in model.open_decode(call, spec, lambda *_: None).frames()
        ]
        return (torch.cat(parts, dim=2)[0].transpose(0, 1) / 2 + 0.5).clamp(0, 1)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("service")
    text = ""
    for name, case in CASES.items():
        text += case.tables + ENTRY.format(
            name=name,
            pipeline=case.class_name,
            source=tiny_pipelines.save(case.pipeline, folder / name),
            vae_class=case.vae_class,
            multiple=case.side // 2,
            ratio=case.ratio,
            side=case.side,
            more=case.more,
        )
    (folder / "models.toml").write_text(text)
    settings = Settings(
        data_dir=folder / "data",
        models_file=folder / "models.toml",
        reserve_bytes=0,
        calibrate_seconds=0,
        checkpoint_seconds=0,
    )
    models = load_models(settings)

    def profile(entry: ModelEntry) -> MemoryProfile | None:
        return profile_of(untouched(entry.name).vae) if entry.name in CASES else None

    with TestClient(create_app(settings, load_profile=profile)) as http:
        yield Served(settings, models, http, Engine(settings, "cpu"))


@cache
def photo(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC).save(file, "png")
    return file.getvalue()


def opened(number: int, side: int) -> Image.Image:
    image = Image.open(io.BytesIO(photo(number)))
    return image.resize((side, side), Image.Resampling.LANCZOS) if side != 64 else image


@cache
def untouched(name: str) -> Any:
    """The pipeline as diffusers makes it, with the weights that the service loads."""
    pipe = tiny_pipelines.build(CASES[name].pipeline)
    assert type(pipe) is getattr(diffusers, CASES[name].class_name)
    return pipe


def expected(name: str, **pictures: Any) -> torch.Tensor:
    """The pipeline's own frames for the request."""
    side = CASES[name].side
    asked = {"stg_scale": 0.0, "audio_stg_scale": 0.0} if name == "ltx2" else {}
    asked |= {"frame_rate": 8} if name.startswith("ltx") else {}
    torch.manual_seed(SEED)
    output = untouched(name)(
        prompt="a bear",
        width=side,
        height=side,
        num_frames=17,
        num_inference_steps=3,
        guidance_scale=2.0,
        generator=torch.Generator().manual_seed(SEED),
        output_type="pt",
        **asked,
        **pictures,
    )
    frames: torch.Tensor = output.frames[0]
    return frames


def ltx_conditions(*pictures: tuple[int, int, float]) -> Json:
    return {
        "conditions": [
            LTXVideoCondition(image=opened(number, 64), frame_index=frame, strength=strength)
            for number, frame, strength in pictures
        ]
    }


def ltx2_conditions(*pictures: tuple[int, int, float]) -> Json:
    """As `ltx_conditions`, with indices of latent frames."""
    return {
        "conditions": [
            LTX2VideoCondition(frames=opened(number, 64), index=index, strength=strength)
            for number, index, strength in pictures
        ]
    }


def wan_images() -> Json:
    return {"image": opened(1, 32), "last_image": opened(2, 32)}


BOTH = {"image": 1, "last_image": 2}
MIDDLE = {"image": 1, "keyframe_0": 3, "keyframe_1": 4}
REQUESTS: dict[str, tuple[str, dict[str, int], Json, Callable[[], Json]]] = {
    "LTX, last image": ("ltx", BOTH, {}, lambda: ltx_conditions((1, 0, 1.0), (2, 16, 1.0))),
    "LTX, key frames": (
        "ltx",
        MIDDLE,
        {"keyframes": json.dumps([{"frame": -1, "strength": 0.5}, {"frame": 5}])},
        lambda: ltx_conditions((1, 0, 1.0), (4, 5, 1.0), (3, 16, 0.5)),
    ),
    "LTX, all of them": (
        "ltx",
        {**BOTH, "keyframe_0": 3},
        {"keyframes": json.dumps([{"frame": 8, "strength": 0.75}])},
        lambda: ltx_conditions((1, 0, 1.0), (3, 8, 0.75), (2, 16, 1.0)),
    ),
    "LTX-2, last image": ("ltx2", BOTH, {}, lambda: ltx2_conditions((1, 0, 1.0), (2, -1, 1.0))),
    "LTX-2, key frames": (
        "ltx2",
        {"image": 1, "keyframe_0": 3},
        {"keyframes": json.dumps([{"frame": 1, "strength": 0.5}])},
        lambda: ltx2_conditions((1, 0, 1.0), (3, 1, 0.5)),
    ),
    "Wan 2.1, first and last": ("first-last", BOTH, {}, wan_images),
    "Wan 2.2, first and last": ("wan22", BOTH, {}, wan_images),
}


@pytest.mark.filterwarnings("ignore:.*deprecated", "ignore:__array__ implementation")
@pytest.mark.parametrize("request_name", sorted(REQUESTS))
def test_pictures_of_several_frames_give_the_frames_of_the_untouched_pipeline(
    served: Served, request_name: str
) -> None:
    model, pictures, fields, call = REQUESTS[request_name]
    wanted = expected(model, **call())
    job_id = served.submit(model, pictures, **fields)
    served.run_next()
    frames = served.frames(job_id)
    assert frames.shape == wanted.shape
    assert (frames - wanted).abs().max() <= 1e-5
    first_alone = {"image": opened(1, CASES[model].side)}
    if model == "wan22":  # the pictures beyond the first are no decoration
        assert (expected(model, **first_alone) - wanted).abs().max() > 1e-3


class Killed(BaseException):
    """Stands for the end of the process: nothing of the service handles it."""


@pytest.mark.filterwarnings("ignore:.*deprecated", "ignore:__array__ implementation")
def test_a_killed_job_goes_on_with_its_pictures_at_its_last_step(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = {**BOTH, "keyframe_0": 3}
    fields = {"keyframes": json.dumps([{"frame": 8, "strength": 0.75}])}
    whole = served.submit("ltx", pictures, **fields)
    served.run_next()
    transformer = served.engine.load(served.models["ltx"], lambda *_: None).pipe.transformer
    forward, calls = transformer.forward, []

    def dies(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise Killed
        return forward(*args, **kwargs)

    job_id = served.submit("ltx", pictures, **fields)
    with monkeypatch.context() as patched:
        patched.setattr(transformer, "forward", dies)
        with pytest.raises(Killed):
            served.run_next()
    with closing(open_store(served.settings)) as store:
        assert store.release(job_id, store.get(job_id).token, "worker_crashed")
        assert len(store.keyframes(job_id)) == 1
    replace(served, engine=Engine(served.settings, "cpu")).run_next()
    assert served.job(job_id)["denoise"]["resumed_from_step"] == 2
    latents = [load_clip(job_artifacts(served.settings.jobs_dir, each).latents) for each in (whole, job_id)]
    assert torch.equal(*(each.calls[0].latents for each in latents))


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("first-last", {"inputs": frozenset(), "requires": frozenset()}, "for a first and a last image"),
        ("wan21", {"inputs": frozenset({"last_image"})}, "for one image"),
        ("wan22-5b", {"inputs": frozenset({"last_image"})}, "ignores a last image"),
        ("ltx-first", {"inputs": frozenset({"last_image"})}, "takes no last_image"),
    ],
)
def test_an_entry_that_is_wrong_about_a_last_image_is_refused_when_the_model_is_loaded(
    name: str, change: Json, reason: str
) -> None:
    pipelines = {
        "first-last": "Wan first and last",
        "wan21": "WanImageToVideoPipeline",
        "wan22-5b": "Wan without CLIP",
        "ltx-first": "LTXImageToVideoPipeline",
    }
    pipe = tiny_pipelines.build(pipelines[name])
    if name == "wan22-5b":
        pipe.register_to_config(expand_timesteps=True)
    shipped = next(iter(load_models(Settings()).values()))
    entry = shipped.model_copy(update={"name": name, **change})
    check = check_call if name == "ltx-first" else check_last_image
    with pytest.raises(UnsuitablePipeline, match=reason):
        check(pipe, entry)


@pytest.mark.filterwarnings("ignore:.*deprecated", "ignore:__array__ implementation")
def test_each_picture_counts_as_a_latent_frame_where_the_pipeline_adds_one(served: Served) -> None:
    job_id = served.submit("ltx", MIDDLE, keyframes=json.dumps([{"frame": 4}, {"frame": 9}]))
    with closing(open_store(served.settings)) as store:
        spec = store.get(job_id).spec
        store.delete(job_id)
    plain = spec.model_copy(update={"keyframes": ()})
    model = served.engine.load(served.models["ltx"], lambda *_: None)
    requirements = ModelRequirements((), (DenoiseCurve(0, 1, 0, guidance_in_batch=False),))
    latent = profile_of(model.pipe.vae).traits.latent_shape(VideoShape(17, 64, 64))
    needs = {
        number: requirements.with_frames(added_latent_frames("LTXConditionPipeline", each)).least_bytes(
            latent, 0, guided=False
        )[Stage.DENOISE]
        for number, each in ((0, plain), (2, spec))
    }
    assert needs == {0: 3 * 4, 2: 5 * 4}
    assert added_latent_frames("WanImageToVideoPipeline", spec) == 0
