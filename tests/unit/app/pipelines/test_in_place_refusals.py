"""What a job that decodes in place refuses or skips, and Cosmos' safety checker, which is never left out."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny_pipelines
import torch
from in_place_served import CASES, finished, history, served_in_place, stand_in_checker
from PIL import Image
from served_model import ServedModel, served_model
from tiny_pipelines.in_place import BUILDERS

from adaptive.errors import NonFiniteValues
from adaptive.pipelines.real_frames import NEEDS_REAL_FRAMES
from adaptive.types import VideoShape
from app.jobs import Stage
from app.models.checks.faults import find_fault
from app.models.checks.pipelines import NEEDS_MORE
from app.pipelines.rounds import DEFAULTS, Rounds
from app.worker.decoding import Decoding
from app.worker.job.in_place import RoundsDone
from app.worker.job.own_frames import OwnFrames
from app.worker.loaded_model import LoadedModel

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated", "ignore:__array__ implementation")
HELIOS, COSMOS = "HeliosPipeline", "CosmosVideoToWorldPipeline"


@pytest.fixture
def checker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with stand_in_checker(monkeypatch) as found:
        yield found


@pytest.fixture(scope="module")
def helios(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedModel]:
    with served_in_place(tmp_path_factory.mktemp("helios"), HELIOS) as served:
        yield served


def test_what_needs_a_record_of_the_latents_is_refused_with_the_reason(helios: ServedModel) -> None:
    job_id = helios.submit()
    early = helios.http.post(f"/jobs/{job_id}/finish-early")
    assert (early.status_code, early.json()["code"]) == (409, "not_resumable")
    helios.run_next()
    job = helios.job(job_id)
    assert job["status"] == "succeeded", job["error"]
    again = helios.http.post(f"/jobs/{job_id}/redecode", json={"decode_strategy": "per_frame"})
    assert (again.status_code, again.json()["code"]) == (409, "not_resumable")
    assert f"{HELIOS} joins and trims decoded sections" in again.json()["detail"]
    assert not (helios.settings.jobs_dir / job_id / "latents.safetensors").exists()
    (mine,) = [one for one in helios.http.get("/models").json()["models"] if one["name"] == "mine"]
    assert mine["resumable"] is False
    assert mine["not_resumable_because"] == job["not_resumable_because"]


def test_a_job_that_failed_is_run_again_from_its_start(
    helios: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames, decodes = Decoding.frames, iter(range(10))

    def failing(decoding: Decoding) -> Iterator[torch.Tensor]:
        if next(decodes) == 1:
            raise NonFiniteValues("decoding", "the decoded frames 1 to 4", values=1, of=2)
        yield from frames(decoding)

    with monkeypatch.context() as patched:
        patched.setattr(Decoding, "frames", failing)
        job = finished(helios)
    assert job["error"]["code"] == "nonfinite_values"
    helios.http.post(job["links"]["retry"]).raise_for_status()
    helios.run_next()
    job = helios.job(job["id"])
    assert job["status"] == "succeeded"
    assert job["denoise"]["steps_computed"] == 6
    assert job["decode"]["decodes"] == 2


def test_a_decode_in_half_precision_that_is_not_finite_is_repeated_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pipeline goes on with the frames of the second decode."""
    frames = Decoding.frames

    def failing(decoding: Decoding) -> Iterator[torch.Tensor]:
        if decoding._vae.dtype != torch.float32:
            raise NonFiniteValues("decoding", "the decoded frames 1 to 4", values=1, of=2, dtype="bfloat16")
        yield from frames(decoding)

    monkeypatch.setattr(Decoding, "frames", failing)
    with served_in_place(tmp_path, HELIOS, dtype="bfloat16") as served:
        job = finished(served)
        assert job["status"] == "succeeded", job["error"]
        assert job["decode"]["dtype"] == "float32"
        assert job["decode"]["retry"]["from_dtype"] == "bfloat16"
        assert len(served.events("decode_retry")) == 2


def test_memory_that_is_missing_in_a_decode_fails_the_job_with_what_it_needs(
    helios: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is denoised a second time for it."""
    made = LoadedModel.make
    calls: list[int] = []

    def counted(model: LoadedModel, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return made(model, *args, **kwargs)

    monkeypatch.setattr(LoadedModel, "make", counted)
    refused = finished(helios, memory_budget_bytes=1)
    job = finished(helios, memory_budget_bytes=refused["needed"])
    while job["status"] == "failed":  # what was learned since the first answer asks for more
        assert job["error"]["code"] == "does_not_fit"
        assert job["error"]["data"]["needed_bytes"] > job["error"]["data"]["budget_bytes"]
        assert len(calls) == 1
        calls.clear()
        job = finished(helios, memory_budget_bytes=job["error"]["data"]["needed_bytes"])
    assert job["status"] == "succeeded"


def test_steps_and_decodes_are_counted_over_all_sections(helios: ServedModel) -> None:
    job = finished(helios)
    told = history(helios, job)
    steps = [event.data["step"] for event in told if event.kind == "progress" and "step" in event.data]
    assert steps == sorted(steps)
    assert {event.data["steps"] for event in told if "steps" in event.data and "step" in event.data} <= {6}
    stages = [event.data["stage"] for event in told if event.kind == "stage"]
    assert stages == ["loading", "denoising", "decoding", "decoding", "encoding"]
    assert job["denoise"]["steps_computed"] == 6


def test_progress_goes_on_evenly_and_never_back() -> None:
    shape = VideoShape(9, 32, 32)
    done = RoundsDone(Rounds(shape, steps=2, sections=2, decodes=2))
    reached = []
    for _section in range(3):  # one more than foreseen
        for _step in range(2):
            done.steps += 1
            reached.append(done.progress(Stage.DENOISING, done.step_share))
        for _decode in range(2):
            for share in (0.0, 0.5, 1.0):
                reached.append(done.progress(Stage.DECODING, done.decode_share(share)))
            done.decodes += 1
    assert reached == sorted(reached)
    assert reached[1] == pytest.approx(0.02 + 0.78 / 2)
    assert reached[7] == pytest.approx(0.02 + 0.95 / 2)
    assert reached[-1] == pytest.approx(0.97)


@pytest.mark.parametrize("pipeline", sorted(set(NEEDS_REAL_FRAMES) - set(NEEDS_MORE)))
def test_rounds_are_counted_with_the_pipelines_own_defaults(pipeline: str) -> None:
    assert pipeline in BUILDERS
    assert pipeline in CASES
    parameters = inspect.signature(getattr(diffusers, pipeline).__call__).parameters
    for name, value in DEFAULTS.items():
        if name in parameters:
            assert parameters[name].default == value


@pytest.mark.parametrize("pipeline", sorted(NEEDS_MORE))
def test_a_pipeline_that_needs_more_than_a_request_has_says_what(helios: ServedModel, pipeline: str) -> None:
    entry = helios.models["mine"].model_copy(update={"pipeline": pipeline})
    fault = find_fault(entry, helios.settings)
    assert fault is not None
    assert fault.reason.startswith(f"{pipeline} cannot be served: it ")
    required = {"WanAnimatePipeline": "pose_video", "Cosmos2_5_TransferPipeline": "controls"}.get(pipeline)
    if required is not None:
        assert required in fault.reason
        signature = inspect.signature(getattr(diffusers, pipeline).__call__)
        assert signature.parameters[required].default is inspect.Parameter.empty


def test_cosmos_without_its_checker_is_refused_and_the_package_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stand_in_checker(monkeypatch), served_in_place(tmp_path, COSMOS) as served:
        pass
    monkeypatch.undo()
    fault = find_fault(served.models["mine"], served.settings)
    assert fault is not None
    assert "pip install cosmos_guardrail torchvision" in fault.reason
    assert COSMOS in fault.reason


def test_the_checker_ends_a_job_and_is_never_left_out(tmp_path: Path, checker: Any) -> None:
    with served_in_place(tmp_path, COSMOS) as served:
        job = finished(served, prompt="a weapon")
        assert job["error"]["code"] == "content_refused"
        assert "prompt" in job["error"]["message"]
        checker.shows_nothing = True
        try:
            job = finished(served)
        finally:
            checker.shows_nothing = False
        assert job["error"]["code"] == "content_refused"
        assert "video" in job["error"]["message"]
        assert "video" not in job["links"]
        pipe = served.engine.load(served.models["mine"], lambda *_: None).pipe
        kept = pipe.safety_checker
        pipe.safety_checker = None
        job = finished(served)
        assert job["error"]["code"] == "unsupported"
        assert "no safety checker" in job["error"]["message"]
        pipe.safety_checker = kept
        job = finished(served)
        assert job["status"] == "succeeded"
        assert "check_text_safety" not in vars(kept)


def test_a_pipeline_that_does_not_ask_its_checker_shows_nothing(tmp_path: Path, checker: Any) -> None:
    """Cosmos 2.5 asks only an object of the package's own class."""

    class Other(checker):  # type: ignore[misc]
        pass

    pipeline = "Cosmos2_5_PredictBasePipeline"
    with served_in_place(tmp_path, pipeline) as served:
        pipe = served.engine.load(served.models["mine"], lambda *_: None).pipe
        other = Other()
        other.__class__ = type("Unrelated", (torch.nn.Module,), dict(vars(checker)))
        pipe.safety_checker = other
        job = finished(served)
        assert job["error"]["code"] == "unsupported"
        assert "did not show its safety checker the video" in job["error"]["message"]


def test_an_entry_lets_a_pipeline_that_changes_its_frames_decode_in_place(tmp_path: Path) -> None:
    folder = tiny_pipelines.save("LTXImageToVideoPipeline", tmp_path / "model")
    with served_model(tmp_path / "data", folder) as served:
        entry = served.models["mine"]
        video_processor = served.engine.load(entry, lambda *_: None).pipe.video_processor
        job = _reversed(served, video_processor)
        assert job["error"]["code"] == "unsupported"
        assert "decode_in_place = true" in job["error"]["message"]
        served.models["mine"] = changed = entry.model_copy(update={"decode_in_place": True})
        video_processor = served.engine.load(changed, lambda *_: None).pipe.video_processor
        job = _reversed(served, video_processor)
        assert job["status"] == "succeeded", job["error"]
        assert job["decode"]["decodes"] == 1
        plain = served.job(served.submit())
        served.models["mine"] = entry
        served.run_next()
        plain = served.job(plain["id"])
        first, last = (
            served.http.get(plain["links"][f"{which}_frame"]).content for which in ("first", "last")
        )
        assert served.http.get(job["links"]["first_frame"]).content == last
        assert served.http.get(job["links"]["last_frame"]).content == first


def _reversed(served: ServedModel, video_processor: Any) -> dict[str, Any]:
    """The job of a pipeline that turns its frames round."""
    made = video_processor.postprocess_video
    video_processor.postprocess_video = lambda *args, **kwargs: made(*args, **kwargs).flip(1)
    job_id = served.submit()
    served.run_next()
    del video_processor.postprocess_video
    return served.job(job_id)


@pytest.mark.parametrize("form", ["pt", "np", "pil", "one video", "a list of tensors"])
def test_frames_of_every_form_become_the_same_pixels(form: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (11, 6, 8, 3), dtype=np.uint8)
    floats = pixels.astype(np.float32) / 255
    tensor = torch.from_numpy(floats).permute(0, 3, 1, 2)
    given: dict[str, Any] = {
        "pt": tensor[None],
        "np": floats[None],
        "pil": [[Image.fromarray(frame) for frame in pixels]],
        "one video": floats,
        "a list of tensors": [tensor],
    }
    frames = OwnFrames(given[form])
    assert frames.shape == VideoShape(11, 6, 8)
    assert np.array_equal(np.concatenate(list(frames.parts())), pixels)
    assert np.array_equal(frames.frame(-1), pixels[-1])


@pytest.mark.parametrize("frames", [[], None, torch.zeros(2, 3, 4), torch.zeros(1, 2, 4, 6, 8)])
def test_frames_of_no_known_form_are_refused(frames: Any) -> None:
    with pytest.raises(ValueError, match="the pipeline returned"):
        OwnFrames(frames)
