"""Models from files of their own through the service: requests, plans, videos, and the command that plans."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from model_parts import Base, keep_profile, loaded, make_base, picture
from starlette.testclient import TestClient
from torch import Tensor
from typer.testing import CliRunner
from weight_files import names_for, write_fp8, write_gguf, write_safetensors

from adaptive.memory.live_bytes import LiveBytes
from adaptive.pipelines.recorded_call import load_clip
from adaptive.types import LatentShape
from app.api import create_app
from app.cli import app as command
from app.config import Settings
from app.jobs import JobStatus, Json
from app.models import profiles
from app.models.components import components_of
from app.models.entries import ModelEntry
from app.models.profile_tracer import Tracing
from app.models.requirements import denoise_key
from app.models.weight_sizes import stored_requirements
from app.service.processes import open_store
from app.worker.engine import Engine
from app.worker.job.control import JobControl
from app.worker.job.run import JobRun

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated", "ignore:__array__ implementation")
WRITERS: dict[str, Callable[..., dict[str, Tensor]]] = {
    "Q4_K.gguf": partial(write_gguf, kind=Kind.Q4_K),
    "scaled.safetensors": partial(write_fp8, scale_name="scale_weight"),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return make_base("LTXImageToVideoPipeline", tmp_path_factory.mktemp("base") / "model")


def served(settings: Settings, entry: ModelEntry) -> tuple[Tensor, bytes, Json]:
    """Latents, video and job of one request, from `POST /generate` on; what a worker does runs here."""
    keep_profile(settings, entry)
    with TestClient(create_app(settings)) as http, closing(open_store(settings)) as store:
        form = {"model": "small", "prompt": "a bear", "seed": 5}
        answer = http.post("/generate", data=form, files={"image": ("photo.png", picture())})
        assert answer.status_code == 202, answer.text
        claim = store.claim("here", models=["small"], loaded_model=None, lease_seconds=600)
        assert claim is not None
        run = JobRun(settings, store, Engine(settings, "cpu"), entry, claim, JobControl())
        result = run.run()
        done: Json = {"result": result, "decode": run.decode, "durations": run.durations}
        store.finish(claim.job.id, claim.token, status=JobStatus.SUCCEEDED, **done)
        job: Json = http.get(f"/jobs/{claim.job.id}").json()
        video = http.get(f"/jobs/{claim.job.id}/video")
        assert video.status_code == 200
        clip = load_clip(settings.jobs_dir / claim.job.id / "latents.safetensors")
        return clip.calls[0].latents, video.content, job


def pictures(video: bytes) -> np.ndarray:
    with av.open(io.BytesIO(video)) as container:
        return np.stack([each.to_ndarray(format="rgb24") for each in container.decode(video=0)]).astype(int)


def test_a_request_gives_the_video_of_the_weights_dequantized(base: Base, tmp_path: Path) -> None:
    path, plain = tmp_path / "q4.gguf", tmp_path / "plain.safetensors"
    weights = base.transformer.state_dict()
    held = WRITERS["Q4_K.gguf"](path, weights, named=names_for(base.transformer_class, "comfyui"))
    write_safetensors(plain, held, names_for(base.transformer_class, "diffusers"))
    latents, video, job = served(*base.entry(tmp_path / "one", {"transformer": path}))
    expected, expected_video, _ = served(*base.entry(tmp_path / "other", {"transformer": plain}))
    assert (latents - expected).abs().max() <= 1e-5
    assert len(pictures(video)) == 9
    assert (
        np.abs(pictures(video) - pictures(expected_video)).max() <= 2
    )  # of 255: what an encoder makes of 1e-5
    assert (job["status"], job["result"]["frames"]) == ("succeeded", 9)


@pytest.mark.parametrize("name", WRITERS)
def test_a_step_takes_the_bytes_that_the_header_predicts(base: Base, name: str, tmp_path: Path) -> None:
    """Counted on the loaded transformer with real weights; what it dequantizes is a part of them."""
    from app.models.denoiser_memory import CALLS

    path = tmp_path / name
    WRITERS[name](path, base.transformer.state_dict(), named=names_for(base.transformer_class, "original"))
    settings, entry = base.entry(tmp_path, {"transformer": path})
    profile = keep_profile(settings, entry)
    components = components_of(entry, settings)
    requirements = stored_requirements(settings, entry, components, profile.traits.latent_channels)
    curve = requirements.denoise[0]
    assert curve is not None
    transformer = loaded(settings, entry).pipe.transformer
    shape = LatentShape(1, profile.traits.latent_channels, 9, 16, 24)
    arguments = CALLS["LTXVideoTransformer3DModel"].inputs(transformer.config, shape, torch.float32)
    arguments = {
        key: torch.zeros_like(each, device="cpu") if isinstance(each, Tensor) else each
        for key, each in arguments.items()
    }
    counted = LiveBytes()
    with counted.active():
        transformer(**arguments, return_dict=False)
    assert curve.live_bytes(shape, guided=False) == pytest.approx(counted.peak_bytes, rel=0.02)


def test_the_command_plans_from_headers_and_lists_what_each_component_takes(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.gguf"
    weights = base.transformer.state_dict()
    WRITERS["Q4_K.gguf"](path, weights, named=names_for(base.transformer_class, "original"))
    settings, entry = base.entry(tmp_path, {"transformer": path})
    keep_profile(settings, entry)
    monkeypatch.setenv("FRAMEFIT_MODELS_FILE", str(settings.models_file))
    arguments = ["plan", "--model", "small", "--gpu", "12GB", "--data-dir", str(settings.data_dir)]
    told = CliRunner().invoke(command, [*arguments, "--json"])
    assert told.exit_code == 0, told.output
    parts = {part["name"]: part for part in json.loads(told.stdout)["components"]}
    assert parts["transformer"]["format"] == "GGUF Q4_K"
    assert parts["transformer"]["weight_bytes"] < sum(each.nbytes for each in weights.values()) / 2
    assert parts["transformer"]["working_bytes"] >= 256 * 1024 * 4  # its largest matrix in float32
    assert (parts["vae"]["format"], parts["vae"]["working_bytes"]) == ("float32", 0)
    shown = CliRunner().invoke(command, arguments)
    assert "transformer: " in shown.output
    assert "(GGUF Q4_K" in shown.output
    assert profiles.load_requirements(settings, entry) is not None


def test_what_was_learned_of_a_transformer_in_another_format_is_not_used(base: Base, tmp_path: Path) -> None:
    path = tmp_path / "t"
    weights = base.transformer.state_dict()
    _, entry = base.entry(tmp_path, {"transformer": path})
    write_safetensors(path, weights, names_for(base.transformer_class, "diffusers"))
    assert denoise_key(entry) == "small/float32/safetensors F32"
    path.unlink()
    write_gguf(path, weights, kind=Kind.Q8_0, named=names_for(base.transformer_class, "original"))
    assert denoise_key(entry, "resident") == "small/float32/GGUF Q8_0/resident"
    path.unlink()
    assert denoise_key(entry) == "small/float32"
    assert denoise_key(base.entry(tmp_path, {})[1], "resident") == "small/float32/resident"


def test_a_file_that_is_replaced_is_planned_and_loaded_anew(base: Base, tmp_path: Path) -> None:
    path, new = tmp_path / "t.gguf", tmp_path / "new.gguf"
    weights = base.transformer.state_dict()
    named = names_for(base.transformer_class, "original")
    write_gguf(path, weights, kind=Kind.Q4_0, named=named)
    settings, entry = base.entry(tmp_path, {"transformer": path})
    settings = settings.model_copy(update={"calibrate_seconds": 0})
    keep_profile(settings, entry)
    tracing, engine = Tracing(settings, {"small": entry}, watch=True), Engine(settings, "cpu")

    def transformer_bytes() -> int | None:
        known = profiles.load_requirements(settings, entry)
        return known and next(each.weight_bytes for each in known.components if each.name == "transformer")

    tracing.step()
    before, held = transformer_bytes(), engine.load(entry, lambda *_: None)
    assert before is not None
    assert engine.load(entry, lambda *_: None) is held
    assert not tracing.done
    write_gguf(new, weights, kind=Kind.Q8_0, named=named)
    new.replace(path)
    assert transformer_bytes() is None
    tracing.step()
    after = transformer_bytes()
    assert after is not None
    assert after > before
    loaded_anew = engine.load(entry, lambda *_: None)
    assert loaded_anew is not held
    kinds = {getattr(each, "quant_type", None) for each in loaded_anew.pipe.transformer.parameters()}
    assert kinds == {None, Kind.Q8_0}


def test_the_command_tells_what_is_wrong_with_a_file(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, _ = base.entry(tmp_path, {"transformer": tmp_path / "absent.gguf"})
    monkeypatch.setenv("FRAMEFIT_MODELS_FILE", str(settings.models_file))
    told = CliRunner().invoke(command, ["plan", "--model", "small", "--data-dir", str(settings.data_dir)])
    assert told.exit_code == 1
    assert told.stderr.startswith("framefit: small cannot be planned: its transformer ")


def test_a_request_is_planned_with_the_bytes_of_the_file(base: Base, tmp_path: Path) -> None:
    """The same card holds the file's transformer whole and not the base's: the header decides."""
    path = tmp_path / "t.gguf"
    WRITERS["Q4_K.gguf"](
        path, base.transformer.state_dict(), named=names_for(base.transformer_class, "original")
    )
    placed = {}
    for name, lines in (("base", {}), ("file", {"transformer": path})):
        settings, entry = base.entry(tmp_path / name, lines)
        profile = keep_profile(settings, entry)
        requirements = stored_requirements(
            settings, entry, components_of(entry, settings), profile.traits.latent_channels
        )
        with TestClient(create_app(settings)) as http, closing(open_store(settings)) as store:
            report = {"name": "cuda:0", "kind": "cuda", "total_bytes": 2**40, "free_bytes": 2**40}
            store.register_worker("here", {**report, "state": "ok", "models": ["small"]})
            form = {"model": "small", "prompt": "a bear"}
            answer = http.post("/plan", data=form, files={"image": ("photo.png", picture())})
            assert answer.status_code == 200, answer.text
            placed[name] = answer.json()["plan"]["placement"]["device_bytes"]
        placed[f"{name} weights"] = sum(each.weight_bytes for each in requirements.components)
    saved = placed["base weights"] - placed["file weights"]
    assert saved > 0
    assert placed["base"] - placed["file"] == pytest.approx(saved, rel=0.02)
