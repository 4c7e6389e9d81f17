"""Every family of image-to-video pipelines through the service: the pipeline's own frames come out.

Each pipeline is built tiny, saved, and loaded by the service's own path from a models file. A request goes in
over HTTP; what a worker does with it runs in this process, which saves starting one. The memory profiles are
real, and traced only as far as the plans ask.
"""

import io
import tomllib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import av
import diffusers
import numpy as np
import pytest
import tiny_pipelines
import torch
from PIL import Image
from starlette.testclient import TestClient

from adaptive import enable
from adaptive.memory.profile import MemoryProfile
from adaptive.memory.profile_trace import profile_of
from adaptive.pipelines.recorded_call import load_clip
from app.api import create_app
from app.config import Settings
from app.jobs import JobStatus, Json
from app.models.components import ModelUnavailable, components_of
from app.models.entries import ModelEntry, load_models
from app.models.weight_sizes import component_sizes
from app.pipelines.calls import call_form
from app.service.processes import open_store
from app.worker.engine import Engine
from app.worker.job.control import JobControl
from app.worker.job.run import JobRun
from app.worker.pipeline_call import UnsuitablePipeline

SEED = 5
COMMON: Json = {"num_inference_steps": 2, "output_type": "pt"}
# What each pipeline is asked, in its own words. Nothing here is taken from the code that is tested.
CALLS: dict[str, Json] = {
    "CogVideoXImageToVideoPipeline": {"height": 32, "width": 32, "num_frames": 9, "guidance_scale": 2.0},
    "HunyuanVideo15ImageToVideoPipeline": {"num_frames": 9},
    "HunyuanVideoImageToVideoPipeline": {"height": 32, "width": 32, "num_frames": 13, "guidance_scale": 2.0},
    "I2VGenXLPipeline": {"height": 64, "width": 64, "num_frames": 4, "guidance_scale": 2.0, "target_fps": 8},
    "LTX2ImageToVideoPipeline": {
        "height": 64,
        "width": 64,
        "num_frames": 17,
        "guidance_scale": 2.0,
        "frame_rate": 8,
        "stg_scale": 0.0,
        "audio_stg_scale": 0.0,
    },
    "LTXConditionPipeline": {
        "height": 64,
        "width": 64,
        "num_frames": 17,
        "guidance_scale": 2.0,
        "frame_rate": 8,
    },
    "LTXImageToVideoPipeline": {
        "height": 64,
        "width": 64,
        "num_frames": 17,
        "guidance_scale": 2.0,
        "frame_rate": 8,
    },
    "StableVideoDiffusionPipeline": {
        "height": 64,
        "width": 64,
        "num_frames": 4,
        "max_guidance_scale": 2.0,
        "fps": 8,
    },
    "WanImageToVideoPipeline": {"height": 32, "width": 32, "num_frames": 9, "guidance_scale": 2.0},
}
# Frames that come out, where they are not those asked for: the pipeline drops the first four.
KEPT = {"HunyuanVideoImageToVideoPipeline": 9}


def models_file() -> str:
    """The tables of the models, without where they are."""
    return (Path(__file__).with_name("tiny_models.toml")).read_text()


@dataclass(frozen=True)
class Served:
    """The service in this process: its API, its job table, a device."""

    settings: Settings
    models: dict[str, ModelEntry]
    http: TestClient
    engine: Engine

    def submit(self, picture: bytes, **fields: Any) -> Json:
        answer = self.http.post("/generate", data=fields, files={"image": ("photo.png", picture)})
        assert answer.status_code == 202, answer.text
        job: Json = answer.json()
        return job

    def run_next(self) -> None:
        """What a worker does with the next job."""
        with closing(open_store(self.settings)) as store:
            claim = store.claim("here", models=list(self.models), loaded_model=None, lease_seconds=600)
            assert claim is not None
            entry = self.models[claim.job.spec.model]
            run = JobRun(self.settings, store, self.engine, entry, claim, JobControl())
            result = run.run()
            store.finish(
                claim.job.id,
                claim.token,
                status=JobStatus.SUCCEEDED,
                result=result,
                decode=run.decode,
                durations=run.durations,
            )

    def job(self, job_id: str) -> Json:
        job: Json = self.http.get(f"/jobs/{job_id}").json()
        return job


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("service")
    text = models_file()
    for name, table in tomllib.loads(text)["models"].items():
        text = text.replace(
            f"[models.{name}]\n", f'[models.{name}]\nsource = "{folder / table["pipeline"]}"\n'
        )
    (folder / "models.toml").write_text(text)
    settings = Settings(data_dir=folder / "data", models_file=folder / "models.toml", reserve_bytes=0)
    models = load_models(settings)

    def profile(entry: ModelEntry) -> MemoryProfile:
        return profile_of(vae_of(entry.pipeline))

    with TestClient(create_app(settings, load_profile=profile)) as http:
        yield Served(settings, models, http, Engine(settings, "cpu"))


@cache
def vae_of(pipeline: str) -> Any:
    return tiny_pipelines.build(pipeline).vae


@cache
def picture() -> bytes:
    pixels = np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((64, 64)).save(file, "png")
    return file.getvalue()


def untouched(served: Served, pipeline: str) -> Any:
    """The pipeline as diffusers loads it, from the folder that the service loads it from."""
    folder = served.settings.data_dir.parent / pipeline
    if not folder.exists():
        tiny_pipelines.save(pipeline, folder)
    pipe = getattr(diffusers, pipeline).from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    call_form(pipe).prepare(pipe)
    return pipe


def called(pipe: Any) -> Any:
    """The pipeline's own output for the request."""
    name = type(pipe).__name__
    image = Image.open(io.BytesIO(picture()))
    asked = CALLS[name]
    image = image.resize((asked.get("width", 64), asked.get("height", 64)), Image.Resampling.LANCZOS)
    prompt = {} if name == "StableVideoDiffusionPipeline" else {"prompt": "a bear"}
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    return pipe(image=image, generator=generator, **prompt, **COMMON, **asked)


@pytest.mark.filterwarnings("ignore:.*deprecated", "ignore:__array__ implementation")
@pytest.mark.parametrize("pipeline", sorted(CALLS))
def test_a_pipeline_makes_its_own_frames_through_the_service_and_enabled(
    served: Served, pipeline: str
) -> None:
    pipe = untouched(served, pipeline)
    output = called(pipe)
    expected = output.frames[0]
    asked = CALLS[pipeline]
    frames_made = KEPT.get(pipeline, asked["num_frames"])
    assert expected.shape[0] == frames_made

    streams = profile_of(pipe.vae).can_stream
    strategy = "per_frame" if streams else "auto"
    fields = {"model": pipeline, "prompt": "a bear", "seed": SEED, "decode_strategy": strategy}
    job = served.submit(picture(), **fields)
    served.run_next()
    job = served.job(job["id"])
    assert job["status"] == "succeeded"
    assert job["decode"]["exact"] is True
    assert job["result"]["frames"] == frames_made

    entry = served.models[pipeline]
    clip = load_clip(served.settings.jobs_dir / job["id"] / "latents.safetensors")
    model = served.engine.load(entry, lambda *_: None)
    assert model.not_resumable is None
    with closing(open_store(served.settings)) as store:
        found = store.get(job["id"])
    parts = [
        chunk
        for call in clip.calls
        for chunk in model.open_decode(call, found.spec, lambda *_: None).frames()
    ]
    frames = torch.cat(parts, dim=2)[0].transpose(0, 1) / 2 + 0.5
    assert (frames.clamp(0, 1) - expected).abs().max() < 1e-4

    video = served.http.get(f"/jobs/{job['id']}/video").content
    check_video(video, expected)
    attachment = enable(pipe, strategy=strategy)
    again = called(pipe).frames[0]
    assert (again - expected).abs().max() < 1e-4
    assert attachment.report.exact
    # Nothing of the model is left out when its weights are placed.
    sizes = component_sizes(components_of(entry, served.settings), "float32")
    modules = {name for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    assert {size.name for size in sizes} == modules


def check_video(data: bytes, expected: torch.Tensor) -> None:
    """The file shows those frames (`[F, 3, H, W]` in 0..1), in that order, as well as H.264 can."""
    with av.open(io.BytesIO(data)) as file:
        shown = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    assert len(shown) == expected.shape[0]
    weights = np.array([0.2126, 0.7152, 0.0722])  # BT.709: colour is kept at half the resolution, luma is not
    wanted = expected.permute(0, 2, 3, 1).numpy() @ weights * 255
    for number, frame in enumerate(shown):
        away = np.abs(frame @ weights - wanted).mean((1, 2))
        assert away[number] < 8
        assert away[number] <= away.min() + 0.5


def test_sound_is_in_the_file_and_in_the_job(served: Served) -> None:
    pipeline = "LTX2ImageToVideoPipeline"
    expected = called(untouched(served, pipeline)).audio[0].float()
    job = served.submit(picture(), model=pipeline, prompt="a bear", seed=SEED)
    served.run_next()
    job = served.job(job["id"])
    assert job["result"]["audio"] == {"channels": 2, "sample_rate": 8000}
    clip = load_clip(served.settings.jobs_dir / job["id"] / "latents.safetensors")
    assert clip.sound is not None
    assert torch.equal(clip.sound.waveform, expected)
    video = served.http.get(f"/jobs/{job['id']}/video").content
    with av.open(io.BytesIO(video)) as file:
        assert file.streams.audio[0].sample_rate == 8000
        heard = sum(frame.samples for frame in file.decode(audio=0))
    assert abs(heard / 8000 - 17 / 8) < 0.15


@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_several_decode_calls_become_one_video(served: Served) -> None:
    """As if a pipeline cut the video itself: each cut is decoded as the pipeline would have."""
    pipeline = "StableVideoDiffusionPipeline"
    pipe = untouched(served, pipeline)
    asked = CALLS[pipeline]
    CALLS[pipeline] = {**asked, "decode_chunk_size": 2}
    try:
        expected = called(pipe).frames[0]
    finally:
        CALLS[pipeline] = asked
    entry = served.models[pipeline]
    cutting = entry.model_copy(update={"call": {"decode_chunk_size": 2}})
    job = served.submit(picture(), model=pipeline, seed=SEED)
    served.models[pipeline] = cutting
    try:
        served.run_next()
    finally:
        served.models[pipeline] = entry
    job = served.job(job["id"])
    assert job["decode"]["chunks"] == [2, 2]
    clip = load_clip(served.settings.jobs_dir / job["id"] / "latents.safetensors")
    assert len(clip.calls) == 2
    check_video(served.http.get(f"/jobs/{job['id']}/video").content, expected)


def test_a_pipeline_that_cannot_be_served_is_refused_by_name_when_it_is_loaded(served: Served) -> None:
    entry = served.models["WanImageToVideoPipeline"]
    animate = entry.model_copy(update={"pipeline": "WanAnimatePipeline"})
    with pytest.raises(ModelUnavailable, match=r"WanAnimatePipeline cannot be served.*pose_video"):
        served.engine.load(animate, lambda *_: None)
    picture_alone = served.models["LTXImageToVideoPipeline"].model_copy(update={"uses_prompt": False})
    untouched(served, "LTXImageToVideoPipeline")
    with pytest.raises(UnsuitablePipeline, match="LTXImageToVideoPipeline takes a prompt"):
        served.engine.load(picture_alone, lambda *_: None)


def test_a_prompt_is_asked_for_where_the_model_uses_one(served: Served) -> None:
    files = {"image": ("photo.png", picture())}
    answer = served.http.post("/generate", data={"model": "WanImageToVideoPipeline"}, files=files)
    assert (answer.status_code, answer.json()["code"]) == (422, "empty_prompt")
    answer = served.http.post(
        "/generate",
        data={"model": "CogVideoXImageToVideoPipeline", "prompt": "x", "num_frames": 13},
        files=files,
    )
    assert (answer.status_code, answer.json()["code"]) == (422, "bad_frame_count")
    assert answer.json()["rule"] == "8k+1"
