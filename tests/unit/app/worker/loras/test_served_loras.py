"""Jobs with LoRAs, from the request on: each gets its own, and those without get the model as it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines
import torch
from lora_files import write_lora
from served_model import ServedModel, _picture, served_model

from adaptive.pipelines.recorded_call import load_clip
from app.artifacts.local_folder import job_artifacts
from app.store import open_store
from app.worker.denoise.identity import checkpoint_identity, difference

LTX = "LTXImageToVideoPipeline"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipelines.save(LTX, tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def transformer() -> Any:
    return tiny_pipelines.build(LTX).transformer


@pytest.fixture
def served(tmp_path: Path, folder: Path, transformer: Any) -> Iterator[ServedModel]:
    for number, name in enumerate(("oil", "ink")):
        write_lora(tmp_path / "data" / "loras" / f"{name}.safetensors", transformer, seed=number)
    with served_model(tmp_path / "data", folder) as running:
        yield running


def asked(*loras: dict[str, Any]) -> str:
    return json.dumps(loras)


def latents(served: ServedModel, job_id: str) -> torch.Tensor:
    assert served.job(job_id)["status"] == "succeeded", served.job(job_id)["error"]
    return load_clip(job_artifacts(served.settings.jobs_dir, job_id).latents).calls[0].latents


def run(served: ServedModel, **fields: Any) -> str:
    job_id = served.submit(**fields)
    served.run_next()
    return job_id


def test_each_job_has_its_own_loras_and_the_model_is_loaded_once(served: ServedModel) -> None:
    plain = latents(served, run(served))
    oil = latents(served, run(served, loras=asked({"name": "oil"})))
    ink = latents(served, run(served, loras=asked({"name": "ink", "scale": 0.5})))
    both = latents(served, run(served, loras=asked({"name": "oil"}, {"name": "ink", "scale": 0.5})))
    again = latents(served, run(served, loras=asked({"name": "oil"})))
    plain_again = latents(served, run(served))

    assert torch.equal(plain, plain_again)
    assert torch.equal(oil, again)
    kinds = [plain, oil, ink, both]
    assert not any(torch.equal(one, other) for i, one in enumerate(kinds) for other in kinds[:i])
    assert len(served.events("loaded")) == 1


def test_the_job_tells_the_digest_and_a_request_that_repeats_it_is_the_same(served: ServedModel) -> None:
    job_id = run(served, loras=asked({"name": "oil", "scale": 0.5}))
    told = served.job(job_id)["request"]["loras"]
    assert (told[0]["name"], told[0]["scale"]) == ("oil", 0.5)
    assert len(told[0]["sha256"]) == 64

    repeated = run(served, loras=json.dumps(told))
    assert torch.equal(latents(served, repeated), latents(served, job_id))


def test_a_rerun_with_another_file_is_refused(served: ServedModel, transformer: Any) -> None:
    job_id = run(served, loras=asked({"name": "oil"}))
    told = served.job(job_id)["request"]["loras"]
    canceled = served.submit(loras=asked({"name": "oil"}))
    served.http.delete(f"/jobs/{canceled}")
    write_lora(served.settings.lora_folder / "oil.safetensors", transformer, seed=9)

    form = {"model": "mine", "prompt": "a bear", "loras": json.dumps(told)}
    repeated = served.http.post("/generate", data=form, files={"image": ("a.png", _picture())})
    remixed = served.http.post(f"/v1/videos/{job_id}/remix", json={"prompt": "again"})
    retried = served.http.post(f"/jobs/{canceled}/retry")
    redecoded = served.http.post(f"/jobs/{job_id}/redecode")  # its latents are on disk

    assert [repeated.status_code, remixed.status_code, retried.status_code] == [422] * 3
    assert retried.json()["code"] == "lora_changed"
    assert retried.json()["expected_sha256"] == told[0]["sha256"]
    assert remixed.json()["error"]["code"] == "lora_changed"
    assert redecoded.status_code == 202


def test_an_attempt_fails_if_the_file_has_changed_since_the_job_was_accepted(
    served: ServedModel, transformer: Any
) -> None:
    job_id = served.submit(loras=asked({"name": "oil"}))
    write_lora(served.settings.lora_folder / "oil.safetensors", transformer, seed=9)
    served.run_next()

    assert served.job(job_id)["error"]["code"] == "lora_changed"
    assert latents(served, run(served)) is not None  # the worker goes on, with the model as it is


def test_steps_of_other_loras_are_never_resumed(served: ServedModel) -> None:
    ids = [
        run(served, loras=asked(*loras))
        for loras in (
            ({"name": "oil"},),
            ({"name": "oil", "scale": 0.5},),
            ({"name": "ink"},),
            ({"name": "oil", "component": "transformer"},),
        )
    ]
    model = served.engine._model
    assert model is not None
    with closing(open_store(served.settings)) as store:
        specs = [store.get(job_id).spec for job_id in ids]
    made = [checkpoint_identity(model.pipe, model.entry, model.device, spec, b"") for spec in specs]

    assert difference(made[0], made[0]) is None
    assert [difference(made[0], other) for other in made[1:]] == ["request"] * 3


def test_the_placement_counts_the_bytes_of_the_loras() -> None:
    from adaptive.planning.weight_placement import ComponentSize, Stage
    from app.fields.loras import LoraChoice
    from app.models.requirements import ModelRequirements

    names = ("text_encoder", "transformer", "transformer_2")
    parts = tuple(ComponentSize(name, 1000, (Stage.DENOISE,)) for name in names)
    loras = (
        LoraChoice(name="both", size_bytes=10),
        LoraChoice(name="low", size_bytes=7, component="transformer_2"),
    )
    counted = ModelRequirements(parts, ()).with_loras(loras)

    assert [part.weight_bytes for part in counted.components] == [1000, 1010, 1017]
