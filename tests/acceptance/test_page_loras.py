"""The page's LoRAs and the fields that a model fixes, in a real browser."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import httpx
import pytest
from browser import CHROMIUM, Browser, api_alone, chromium
from lora_files import write_lora

from app.config import Settings
from app.pipelines import tiny

PHOTO = Path(__file__).parents[2] / "app" / "assets" / "demo.jpg"
FIXED = """
[models.fixed]
base = "tiny"

[models.fixed.recipe]
sigmas = [1.0, 0.5]
shift = 1.0
loras = [{ name = "oil", scale = 0.5 }]
open = []
"""
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    place = tmp_path_factory.mktemp("loras")
    models = place / "models.toml"
    models.write_text(FIXED)
    settings = Settings(data_dir=place / "data", models_file=models, model="tiny")
    folder = tiny.build(settings.models_dir / "tiny")
    transformer = diffusers.LTXVideoTransformer3DModel.from_pretrained(folder / "transformer")
    for name in ("oil", "ink"):
        write_lora(settings.lora_folder / f"{name}.safetensors", transformer)
    with api_alone(settings) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Any]:
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(url)
        page.wait_for_selector("#lora-rows .row", state="attached")
        page.evaluate("document.querySelectorAll('#form details').forEach(each => each.open = true)")
        yield page


def submitted(page: Any, url: str) -> dict[str, Any]:
    """The request of the job that the form makes."""
    page.set_input_files("[name=image]", str(PHOTO))
    page.fill("[name=prompt]", "a boat")
    page.fill("[name=width]", "64")
    page.fill("[name=height]", "64")
    with page.expect_response(lambda each: each.url.endswith("/generate"), timeout=120_000) as told:
        page.click("#submit")
    assert told.value.status == 202, told.value.text()
    request: dict[str, Any] = httpx.get(f"{url}/jobs/{told.value.json()['id']}", timeout=60).json()["request"]
    return request


def test_a_job_gets_the_loras_that_are_ticked_with_their_scales(page: Any, url: str) -> None:
    page.get_by_label("ink", exact=True).check()
    page.get_by_label("Scale of ink").fill("0.25")
    told = submitted(page, url)["loras"]
    assert [(each["name"], each["scale"]) for each in told] == [("ink", 0.25)]


@pytest.mark.skipif(
    not (shutil.which("curl") and shutil.which("bash")), reason="curl and bash are not installed"
)
def test_loras_are_among_what_is_used_again_and_copied(page: Any, url: str, tmp_path: Path) -> None:
    for model in ("tiny", "fixed"):
        page.select_option("[name=model]", model)
        if model == "tiny":
            page.get_by_label("ink", exact=True).check()
            page.get_by_label("Scale of ink").fill("0.25")
        earlier = submitted(page, url)
        card = f".job:has-text('seed {earlier['seed']}') >> nth=0"
        page.select_option("[name=model]", "tiny")
        page.get_by_label("oil", exact=True).check()
        page.click(f"{card} >> .reuse")
        page.wait_for_selector("#reused:has-text('and photo of an earlier video.')")
        with page.expect_response(lambda each: each.url.endswith("/generate")) as told:
            page.click("#submit")
        assert told.value.json()["request"] == earlier
        page.click(f"{card} >> .code")
        command = page.input_value("#code-text")
        page.click("#code-close")
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["request"] == earlier


def test_what_a_model_fixes_is_shown_and_cannot_be_changed(page: Any, url: str) -> None:
    page.select_option("[name=model]", "fixed")
    page.wait_for_function("document.querySelector('[name=num_inference_steps]').value === '2'")
    for name in ("num_inference_steps", "guidance_scale", "negative_prompt"):
        assert page.is_disabled(f"[name={name}]")
    assert page.get_by_label("oil", exact=True).is_checked()
    assert page.get_by_label("oil", exact=True).is_disabled()
    told = submitted(page, url)
    assert (told["num_inference_steps"], [each["name"] for each in told["loras"]]) == (2, ["oil"])
    page.select_option("[name=model]", "tiny")
    assert page.is_enabled("[name=num_inference_steps]")
    assert page.input_value("[name=loras]") == ""
