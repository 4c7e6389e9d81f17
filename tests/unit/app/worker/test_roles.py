"""One worker denoises, another decodes with the VAE alone: the pixels of one worker, and nothing twice."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines
from scraped import total
from served_model import ENTRY, ServedModel, served_model

from app.artifacts.local_folder import job_artifacts
from app.config import Settings
from app.fields.roles import Role
from app.jobs import JobStatus, Stage
from app.models.entries import load_models
from app.scheduling.eta import RunTimes
from app.store import JobStore, open_store
from app.worker.engine import Engine
from app.worker.loop import Worker
from app.worker.roles.loaded_vae import LoadedVae

LTX = "LTXImageToVideoPipeline"
STEPS = 3
HOURS = 3600.0  # between heartbeats: no worker of these tests is silent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipelines.save(LTX, tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def served(tmp_path: Path, folder: Path) -> Iterator[ServedModel]:
    with served_model(tmp_path / "data", folder, heartbeat_seconds=HOURS) as running:
        yield running


@pytest.fixture(scope="module")
def engines() -> dict[str, Engine]:
    """By worker; the tests share them, so that each loads the model once."""
    return {}


class Team:
    """Workers of some roles over one job table; each has an engine of its own."""

    def __init__(self, served: ServedModel, store: JobStore, engines: dict[str, Engine]) -> None:
        self.served = served
        self.store = store
        self.engines = dict(engines)
        self._shared = engines
        self._models: dict[str, Any] = {}

    def join(self, worker_id: str, role: Role, settings: Settings | None = None) -> None:
        """Add a worker, with model files of its own if `settings` name such."""
        self._models[worker_id] = self.served.models if settings is None else load_models(settings)
        if settings is not None:
            self.engines[worker_id] = Engine(settings, "cpu", role)
        elif worker_id not in self.engines:
            self.engines[worker_id] = self._shared[worker_id] = Engine(self.served.settings, "cpu", role)
        assert self.engines[worker_id].role is role
        self.store.register_worker(worker_id, self._worker(worker_id)._device())

    def work(self, worker_id: str) -> list[str]:
        """Run jobs on that worker until none is queued for it; returns the outcomes."""
        worker, outcomes = self._worker(worker_id), []
        while (claim := worker._claim()) is not None:
            worker._run_job(claim)
            outcomes.append(str(self.store.get(claim.job.id).stage))
        return outcomes

    def _worker(self, worker_id: str) -> Worker:
        engine, models = self.engines[worker_id], self._models[worker_id]
        return Worker(self.served.settings, models, self.store, engine, worker_id)


@pytest.fixture
def team(served: ServedModel, engines: dict[str, Engine]) -> Iterator[Team]:
    with closing(open_store(served.settings)) as store:
        yield Team(served, store, engines)


@contextmanager
def without(folder: Path, tmp_path: Path, *parts: str) -> Iterator[Settings]:
    """Settings of a worker whose copy of the model lacks the weights of these components."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for part in parts:
        weights = [each for each in (copy / part).iterdir() if each.suffix in (".safetensors", ".bin")]
        assert weights
        for each in weights:
            each.unlink()
    file = tmp_path / "copy.toml"
    file.write_text(ENTRY.format(source=copy, dtype="float32"))
    yield Settings(
        data_dir=tmp_path / "data",
        models_file=file,
        reserve_bytes=0,
        calibrate_seconds=0,
        heartbeat_seconds=HOURS,
    )


def video(served: ServedModel, job_id: str) -> bytes:
    return job_artifacts(served.settings.jobs_dir, job_id).video.read_bytes()


def test_a_decoder_reads_the_vae_alone_and_makes_the_pixels_of_one_worker(
    team: Team, folder: Path, tmp_path: Path
) -> None:
    served, plan = team.served, {"decode_strategy": "per_frame", "num_inference_steps": STEPS}
    alone = served.submit(**plan)
    served.run_next()
    with without(folder, tmp_path, "text_encoder", "transformer") as settings:
        team.join("denoiser", Role.DENOISE)
        team.join("decoder", Role.DECODE, settings)
        jobs = [served.submit(**plan), served.submit(**plan, seed=6)]
        assert team.work("decoder") == [], "it denoises nothing"
        assert team.work("denoiser") == ["denoised", "denoised"]
        waiting = served.job(jobs[0])
        told = (waiting["status"], waiting["stage"], waiting["progress"], waiting["queue_position"])
        assert told == ("queued", "denoised", 0.8, 1)
        assert team.work("decoder") == ["finished", "finished"]
    assert video(served, jobs[0]) == video(served, alone)
    engine = team.engines["decoder"]
    loaded = engine._model
    assert type(loaded) is LoadedVae
    loads = [event["placement"]["kind"] for event in served.events("loaded")]
    assert loads.count("vae_alone") == 1, "it keeps it between jobs"
    weights = tiny_pipelines.build(LTX).vae.state_dict().values()
    assert loaded.vae_weight_bytes == sum(each.nbytes for each in weights)
    assert engine.most_bytes - engine.capacity_bytes == loaded.vae_weight_bytes
    handed = served.events("handed_over")
    assert [(each["from"], each["to"], each["reason"]) for each in handed] == [
        ("denoiser", "decoder", "role")
    ] * 2
    job = served.job(jobs[0])
    assert (job["status"], job["attempts"], job["decode"]["strategy"]) == ("succeeded", 1, "per_frame")
    counted = served.counted()
    assert total(counted, "framefit_denoise_steps_total", how="computed") == 3 * STEPS
    assert total(counted, "framefit_decode_handovers_total", outcome="handed_over") == 2
    assert total(counted, "framefit_stage_duration_seconds_count", stage="denoising") == 3


def test_estimates_count_the_whole_of_a_job_that_two_workers_did(team: Team) -> None:
    team.join("denoiser", Role.DENOISE)
    team.join("decoder", Role.DECODE)
    team.served.submit(num_inference_steps=STEPS)
    team.work("denoiser")
    team.work("decoder")
    times = RunTimes()
    times.apply(team.store.events_after(0, 10_000))
    (taken,) = times.taken("mine")
    assert taken.is_whole
    assert (taken.steps, taken.steps_computed) == (STEPS, STEPS)
    assert taken.seconds > taken.denoise_seconds + taken.decode_seconds > taken.denoise_seconds > 0


@pytest.mark.parametrize("gone", ["paused", "left", "silent"])
def test_a_denoiser_decodes_where_the_decoder_is_gone_and_says_why(
    team: Team, gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = team.served
    team.join("denoiser", Role.DENOISE)
    team.join("decoder", Role.DECODE)
    handed = served.submit()
    assert team.work("denoiser") == ["denoised"]
    if gone == "paused":
        team.store.pause_worker("decoder", paused=True)
    elif gone == "left":
        team.store.forget_worker("decoder", "worker_stopped")
    else:
        monkeypatch.setattr("app.worker.roles.helpers.MISSED_HEARTBEATS", -1)
    later = served.submit()
    assert team.work("denoiser") == ["finished", "finished"], "nothing waits for ever"
    assert {served.job(each)["status"] for each in (handed, later)} == {"succeeded"}
    assert served.events("decode_kept") == [{"stage": "denoising", "reason": "no_worker_decodes"}]
    assert len(served.events("denoised")) == 2, "nothing is denoised twice"


def test_a_decoder_that_cannot_load_the_vae_gives_the_job_to_one_that_denoises(
    team: Team, folder: Path, tmp_path: Path
) -> None:
    served = team.served
    with without(folder, tmp_path, "vae") as settings:
        team.join("denoiser", Role.DENOISE)
        team.join("decoder", Role.DECODE, settings)
        job = served.submit()
        team.work("denoiser")
        assert team.work("decoder") == ["queued"], "and does not take it again"
        (event,) = served.events("decode_given_back")
        assert (event["from"], event["reason"]) == ("decoder", "model_unavailable")
        assert team.work("denoiser") == ["finished"]
    assert served.job(job)["status"] == "succeeded"
    assert len(served.events("denoised")) == 1


def test_a_decoder_never_denoises_what_was_damaged_on_the_disk(team: Team) -> None:
    served = team.served
    team.join("denoiser", Role.DENOISE)
    team.join("decoder", Role.DECODE)
    job = served.submit()
    team.work("denoiser")
    latents = job_artifacts(served.settings.jobs_dir, job).latents
    latents.write_bytes(latents.read_bytes()[:-8])
    assert team.work("decoder") == ["queued"]
    assert team.store.get(job).latents_path is None
    assert team.work("denoiser") == ["finished"], "and keeps the decode: the decoder had its turn"
    assert [each["reason"] for each in served.events("decode_kept")] == ["given_back"]
    assert served.job(job)["status"] == "succeeded"


def test_a_job_that_is_too_large_for_the_decoder_is_decoded_where_it_was_denoised(team: Team) -> None:
    served = team.served
    team.join("denoiser", Role.DENOISE)
    team.join("decoder", Role.DECODE)
    report = {**team.engines["decoder"].device_report(), "models": ["mine"], "capacity_bytes": 1}
    team.store.register_worker("decoder", report)
    served.submit()
    assert team.work("denoiser") == ["finished"]
    assert [each["reason"] for each in served.events("decode_kept")] == ["fits_no_other_worker"]


def test_a_handed_over_job_is_canceled_deleted_and_decoded_again_as_any_other(team: Team) -> None:
    served = team.served
    team.join("denoiser", Role.DENOISE)
    team.join("decoder", Role.DECODE)
    canceled, kept = served.submit(), served.submit(seed=6)
    team.work("denoiser")
    assert served.http.delete(f"/jobs/{canceled}").json()["status"] == "canceled"
    assert team.work("decoder") == ["finished"]
    assert served.http.post(f"/jobs/{kept}/redecode", json={}).status_code == 202
    assert served.http.post(f"/jobs/{canceled}/retry").status_code == 202
    assert team.work("denoiser") == [], "both have latents"
    assert team.work("decoder") == ["finished", "finished"]
    assert {served.job(each)["status"] for each in (kept, canceled)} == {"succeeded"}
    assert len(served.events("denoised")) == 2


def test_a_worker_that_does_both_leaves_decodes_while_another_job_waits_and_decodes_the_last(
    team: Team,
) -> None:
    served = team.served
    team.join("both", Role.BOTH)
    team.join("decoder", Role.DECODE)
    for seed in range(2):
        served.submit(seed=seed, num_inference_steps=STEPS)
    assert team.work("both")[0] == "denoised"
    outcomes = [each["reason"] for each in (*served.events("handed_over"), *served.events("decode_kept"))]
    assert outcomes == ["ends_earlier", "ends_earlier_here"]
    team.work("decoder")
    assert team.store.counts()[JobStatus.SUCCEEDED] == 2


def test_a_host_without_roles_asks_nobody_and_tells_nothing_new(team: Team) -> None:
    served = team.served
    team.join("both", Role.BOTH)
    team.store.register_worker("two", team.engines["both"].device_report())
    job = served.submit()
    assert team.work("both") == ["finished"]
    told = {event.kind for event in team.store.events_after(0, 1000)}
    assert not told & {"handed_over", "decode_kept", "decode_given_back"}
    assert served.job(job)["stage"] == Stage.FINISHED
