"""A model's recipe gives the steps, the guidance and the LoRAs; a job changes only what it opens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import served_model as served_models
import tiny_pipelines
import torch
from lora_files import write_lora
from served_model import ServedModel, _picture, served_model

from adaptive.pipelines.recorded_call import load_clip
from app.artifacts.local_folder import job_artifacts
from app.config import ConfigError, Settings
from app.models.entries import load_models

LTX = "LTXImageToVideoPipeline"
ENTRY = served_models.ENTRY
RECIPE = """
[models.mine.recipe]
timesteps = [1000, 993, 725]
shift = 1.0
guidance_scale = 1.0
loras = [{{ name = "oil", scale = 0.5 }}]
open = ["guidance_scale"]
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedModel]:
    source = tiny_pipelines.save(LTX, tmp_path_factory.mktemp("model") / "model")
    data = tmp_path_factory.mktemp("data")
    write_lora(data / "loras" / "oil.safetensors", tiny_pipelines.build(LTX).transformer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(served_models, "ENTRY", ENTRY + RECIPE)
        with served_model(data, source) as running:
            yield running


def test_a_job_that_names_none_of_it_is_made_by_the_recipe(served: ServedModel) -> None:
    job_id = served.submit()
    served.run_next()
    job = served.job(job_id)

    assert job["status"] == "succeeded", job["error"]
    assert (job["request"]["num_inference_steps"], job["request"]["guidance_scale"]) == (3, 1.0)
    assert [(each["name"], each["scale"]) for each in job["request"]["loras"]] == [("oil", 0.5)]
    assert job["denoise"]["steps_computed"] == 3
    model = served.engine._model
    assert model is not None
    clip = load_clip(job_artifacts(served.settings.jobs_dir, job_id).latents)
    assert torch.isfinite(clip.calls[0].latents).all()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_inference_steps", "4"),
        ("negative_prompt", "blur"),
        ("loras", "[]"),
        ("loras", '[{"name": "oil", "scale": 0.6}]'),
    ],
)
def test_a_field_that_the_recipe_fixes_is_refused_by_name(
    served: ServedModel, field: str, value: str
) -> None:
    form = {"model": "mine", "prompt": "a bear", field: value}
    answer = served.http.post("/generate", data=form, files={"image": ("a.png", _picture())})
    assert answer.status_code == 422
    assert (answer.json()["code"], answer.json()["field"]) == ("fixed_by_model", field)


def test_an_open_field_and_the_fixed_values_themselves_are_taken(served: ServedModel) -> None:
    told = served.job(served.submit(guidance_scale=2.0))["request"]
    assert told["guidance_scale"] == 2.0
    served.submit(num_inference_steps=3, loras=json.dumps(told["loras"]))


def test_the_list_of_models_tells_what_is_fixed(served: ServedModel) -> None:
    mine = next(each for each in served.http.get("/models").json()["models"] if each["name"] == "mine")
    assert mine["fixed"] == {
        "num_inference_steps": 3,
        "negative_prompt": "",
        "loras": [{"name": "oil", "scale": 0.5}],
    }
    assert mine["defaults"]["num_inference_steps"] == 3


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("sigmas = [1.0]\ntimesteps = [1000]", "either sigmas or timesteps"),
        ("sigmas = [1.0, 0.5]\nnum_inference_steps = 3", "the schedule has 2 steps, not 3"),
        ('sigmas = [1.0]\nopen = ["num_inference_steps"]', "open cannot name it"),
        ('open = ["prompt"]', "recipe.open"),
        ("shift = 0", "recipe.shift"),
        ('loras = [{ name = "../x" }]', "recipe.loras.0.name"),
        ("num_inference_steps = 11", "11 steps are more than its limits.max_steps"),
        ("sigma = [1.0]", "recipe.sigma"),
    ],
)
def test_a_recipe_that_contradicts_itself_stops_the_start(lines: str, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    entry = ENTRY.format(source="nowhere/here", dtype="float32")
    file.write_text(f"{entry}\n[models.mine.recipe]\n{lines}")
    with pytest.raises(ConfigError, match=reason):
        load_models(Settings(data_dir=tmp_path, models_file=file))


def test_an_entry_without_open_leaves_everything_to_a_job_but_the_steps_of_its_schedule(
    tmp_path: Path,
) -> None:
    file = tmp_path / "models.toml"
    entry = ENTRY.format(source="nowhere/here", dtype="float32")
    file.write_text(f"{entry}\n[models.mine.recipe]\nsigmas = [1.0, 0.5]")
    models = load_models(Settings(data_dir=tmp_path, models_file=file))
    assert models["mine"].fixed == {"num_inference_steps": 2}
    assert models["tiny"].fixed == {}
