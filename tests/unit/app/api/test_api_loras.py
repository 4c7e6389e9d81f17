"""GET /loras, and the LoRAs that requests name: only files of the folder, only for models that take them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines
import torch
from lora_files import write_lora
from safetensors.torch import save_file
from served_model import ServedModel, _picture, served_model

LTX, WAN = "LTXImageToVideoPipeline", "WanImageToVideoPipeline"


@pytest.fixture(scope="module")
def lora_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a LoRA of each kind, and files that are none."""
    folder = tmp_path_factory.mktemp("all") / "loras"
    transformer = tiny_pipelines.build(LTX).transformer
    write_lora(folder / "oil.safetensors", transformer)
    write_lora(folder / "v0.9 (x2).safetensors", transformer)
    write_lora(folder.parent / "outside.safetensors", transformer)
    (folder / "leaves.safetensors").symlink_to(folder.parent / "outside.safetensors")
    (folder / "stays.safetensors").symlink_to(folder / "oil.safetensors")
    (folder / "page.safetensors").write_text("<html>not found</html>")
    (folder / ".hidden.safetensors").write_bytes((folder / "oil.safetensors").read_bytes())
    save_file({"lora_te_layer.lora_down.weight": torch.zeros(4, 8)}, folder / "text.safetensors")
    wide = {
        f"diffusion_model.blocks.{block}.self_attn.q.lora_{side}.weight": torch.zeros(shape)
        for block in range(40)
        for side, shape in (("A", (2, 5120)), ("B", (5120, 2)))
    }
    save_file(wide, folder / "wan-14b.safetensors")
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, lora_folder: Path) -> Iterator[ServedModel]:
    source = tiny_pipelines.save(LTX, tmp_path_factory.mktemp("model") / "model")
    with served_model(tmp_path_factory.mktemp("data"), source, loras_dir=lora_folder) as running:
        yield running


def refused(served: ServedModel, loras: object, **fields: str) -> dict[str, Any]:
    form = {"model": "mine", "prompt": "a bear", **fields}
    text = loras if isinstance(loras, str) else json.dumps(loras)
    answer = served.http.post(
        "/generate", data={**form, "loras": text}, files={"image": ("a.png", _picture())}
    )
    assert answer.status_code == 422, answer.text
    return dict(answer.json())


def test_the_folder_is_listed_with_ranks_and_models(served: ServedModel) -> None:
    listed = {each["name"]: each for each in served.http.get("/loras").json()["loras"]}

    assert listed.keys() == {"oil", "v0.9 (x2)", "stays", "page", "text", "wan-14b"}
    assert listed["oil"]["ranks"] == [4]
    assert listed["oil"]["models"] == ["mine"]
    assert listed["wan-14b"]["architectures"][0].startswith("Wan")
    assert "wan22-i2v-a14b" in listed["wan-14b"]["models"]
    assert "mine" not in listed["wan-14b"]["models"]
    assert "HTML page" in listed["page"]["unusable_because"]
    assert "text encoder" in listed["text"]["unusable_because"]


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/passwd", "..", ".hidden", "a/b", "a\\b", "", "x" * 201, "oil\x00", "oil\n"]
)
def test_a_name_that_could_be_a_path_is_refused(served: ServedModel, name: str) -> None:
    assert refused(served, [{"name": name}])["code"] == "invalid_loras"


@pytest.mark.parametrize(
    ("loras", "code"),
    [
        ([{"name": "leaves"}], "unknown_lora"),
        ([{"name": "none-such"}], "unknown_lora"),
        ([{"name": "oil.safetensors"}], "unknown_lora"),
        ([{"name": "page"}], "unusable_lora"),
        ([{"name": "text"}], "unusable_lora"),
        ([{"name": "wan-14b"}], "lora_not_for_model"),
        ([{"name": "oil", "component": "transformer_2"}], "lora_not_for_model"),
        ([{"name": "oil", "component": "vae"}], "invalid_loras"),
        ([{"name": "oil", "scale": 4.5}], "lora_scale_out_of_range"),
        ([{"name": "oil", "scale": -5}], "lora_scale_out_of_range"),
        ([{"name": "oil"}] * 9, "too_many_loras"),
        ([{"name": "oil"}] * 2, "invalid_loras"),
        ([{"name": "oil", "sha256": "0" * 64}], "lora_changed"),
        ([{"name": "oil", "path": "/etc"}], "unknown_field"),
        ([{"scale": 1}], "missing_field"),
        ("[{", "invalid_loras"),
        ("oil", "invalid_loras"),
        ({"name": "oil"}, "invalid_loras"),
    ],
)
def test_a_lora_that_cannot_be_used_is_refused_by_its_code(
    served: ServedModel, loras: object, code: str
) -> None:
    assert refused(served, loras)["code"] == code


def test_an_unknown_name_is_answered_with_those_that_there_are(served: ServedModel) -> None:
    problem = refused(served, [{"name": "none-such"}])
    assert problem["field"] == "loras"
    assert "oil" in problem["available"]


def test_a_refusal_names_the_models_that_take_the_lora(served: ServedModel) -> None:
    assert "wan22-i2v-a14b" in refused(served, [{"name": "wan-14b"}])["models"]


def test_a_plan_takes_loras_and_a_json_body_gives_them_as_a_list(served: ServedModel) -> None:
    body = {"model": "mine", "loras": [{"name": "v0.9 (x2)", "scale": 0.5}]}
    answer = served.http.post("/plan", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["request"]["loras"][0]["size_bytes"] > 0


def test_a_request_without_loras_has_the_digest_of_before(served: ServedModel) -> None:
    from app.jobs import JobSpec

    job = served.job(served.submit())
    given = {**job["request"], "loras": []}
    spec = JobSpec.model_validate(given)
    assert spec.fingerprint(b"") == JobSpec.model_validate({**given, "loras": ()}).fingerprint(b"")
    assert "loras" not in spec.model_dump(exclude_defaults=True)
