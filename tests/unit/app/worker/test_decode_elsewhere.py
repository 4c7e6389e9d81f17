"""What a loaded model does around a decode: times itself once, and hands a decode to the CPU."""

from pathlib import Path
from typing import Any

import pytest
import torch

from adaptive.errors import DoesNotFit, NonFiniteValues
from adaptive.pipelines.recorded_call import RecordedDecode
from adaptive.testing import ScriptedProbe
from adaptive.types import LatentShape, VideoShape
from app.config import Settings
from app.jobs import JobSpec
from app.models import profiles
from app.models.entries import load_models
from app.models.loading import load_pipeline
from app.worker.decoding import DecodeContext, load_learned_costs
from app.worker.job.failures import JobFailure
from app.worker.job.float32_retry import Decoder, decode_or_repeat
from app.worker.loaded_model import LoadedModel

CPU = torch.device("cpu")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path)


@pytest.fixture
def full(settings: Settings) -> LoadedModel:
    """The built-in model on a device that has no memory left."""
    entry = load_models(settings)["tiny"]
    probe = ScriptedProbe([0])
    placed = load_pipeline(entry, settings, CPU, probe.read())
    around = DecodeContext(probe, profiles.load(settings, entry), load_learned_costs(settings, CPU))
    return LoadedModel(entry, placed, settings, CPU, around)


def spec(**changes: Any) -> JobSpec:
    sizes = {"width": 64, "height": 64, "num_frames": 17, "fps": 8}
    steps = {"num_inference_steps": 1, "guidance_scale": 1.0, "seed": 1}
    return JobSpec(prompt="a boat", model="tiny", **sizes, **steps, **changes)


def test_what_the_device_cannot_hold_is_decoded_on_the_cpu_with_the_same_pixels(full: LoadedModel) -> None:
    vae = full._pipe.vae
    latents = torch.randn(1, vae.config.latent_channels, 3, 2, 2)
    recorded = RecordedDecode(latents.to(torch.bfloat16), keep=(1, 16))
    with pytest.raises(DoesNotFit):
        full.open_decode(recorded, spec(), lambda _kind, _data: None)
    decoding = full.open_decode_on_host(recorded, spec(), lambda _kind, _data: None)
    frames = torch.cat(list(decoding.frames()), 2)
    with torch.no_grad():
        expected = vae.decode(latents.to(torch.bfloat16).float(), return_dict=False)[0][:, :, 1:16]
    assert torch.allclose(frames, expected, atol=1e-4)
    report = decoding.report()
    assert (report["device"], report["exact"]) == ("cpu", True)
    assert full.host_learned_costs is not None
    assert full.host_learned_costs.speeds.summary(), "the next one is predicted"


def test_half_precision_that_the_device_cannot_hold_in_float32_fails_with_both_reasons(
    full: LoadedModel,
) -> None:
    events: list[tuple[str, Any]] = []
    recorded = RecordedDecode(torch.zeros(1, 8, 3, 2, 2))

    def decode(model: Decoder) -> None:
        if model is full:
            raise NonFiniteValues("decoding", "the decoded frames 1 to 9", values=3, of=100, dtype="float16")
        model.open_decode(recorded, spec(), lambda _kind, _data: None)

    with pytest.raises(JobFailure, match="could not be repeated in float32: a copy of the VAE") as caught:
        decode_or_repeat(decode, full, lambda kind, data: events.append((kind, data)))
    assert caught.value.error.code == "nonfinite_values"
    assert [kind for kind, _ in events] == ["nonfinite", "decode_retry"]


def test_a_call_as_short_as_the_job_s_chunks_is_decoded_as_one_of_them(full: LoadedModel) -> None:
    latents = torch.randn(1, full._pipe.vae.config.latent_channels, 2, 2, 2)
    asked = spec(decode_strategy="chunked", frames_per_chunk=2)
    decoding = full.open_decode_on_host(RecordedDecode(latents), asked, lambda _kind, _data: None)
    assert torch.cat(list(decoding.frames()), 2).shape[2] == 9
    assert decoding.report()["frames_per_chunk"] == 2


def test_previews_that_would_take_as_long_as_the_decode_are_not_made(full: LoadedModel) -> None:
    vae = full._pipe.vae
    recorded = RecordedDecode(torch.randn(1, vae.config.latent_channels, 4, 8, 8))
    first = full.open_decode_on_host(recorded, spec(), lambda _kind, _data: None)
    assert list(first.previews()), "before anything was timed, as many as half a second allows"
    assert full.host_learned_costs is not None
    profile = first._decoder.profile
    for frames, sides in ((1, 4), (3, 4), (3, 8)):
        shape = LatentShape(1, vae.config.latent_channels, frames, sides, sides)
        full.host_learned_costs.speeds.observe(profile, shape, frames, 5.0)  # only the pass costs
    second = full.open_decode_on_host(recorded, spec(), lambda _kind, _data: None)
    assert list(second.previews()) == []


def test_a_device_that_knows_how_fast_it_is_is_not_measured_again(
    full: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[float] = []

    def measured(*args: Any, limit_seconds: float, **_options: Any) -> list[Any]:
        calls.append(limit_seconds)
        _, profile, _, learned_costs = args
        shape = profile.traits.latent_shape(VideoShape(17, 64, 64))
        learned_costs.speeds.observe(profile, shape, 1, 1.0)
        return []

    monkeypatch.setattr("app.worker.roles.loaded_vae.calibrate", measured)
    for limit in (0, 2, 3):
        full.calibrate(limit)
    assert calls == [2], "0 turns it off, and what is known is not measured"
