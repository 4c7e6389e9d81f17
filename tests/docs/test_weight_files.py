"""What the documentation shows of `framefit inspect` is its output, and its table has every known list."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from sparse_weights import scaled_fp8, tensors_of, write_gguf, write_safetensors
from typer.testing import CliRunner

from app.cli import app
from app.models.files.architectures.key_lists import key_lists
from app.models.files.architectures.table import ARCHITECTURES, UNVERIFIED, Architecture

PAGE = Path(__file__).parents[2] / "docs" / "gpu-and-models.md"
FILES = [
    "wan2.2_i2v_high_noise_14B_Q4_K.gguf",
    "wan2.2_i2v_low_noise_14B_Q4_K.gguf",
    "umt5_xxl_fp8_scaled.safetensors",
    "wan_2.1_vae.safetensors",
]


def rows() -> Iterator[str]:
    """The table of the page."""
    for each in ARCHITECTURES:
        layouts = ", ".join(f"`{layout}`" for layout in key_lists()[each.keys])
        models = ", ".join(model.name for model in each.models) or ", ".join(
            f"`{like}`" for like in each.likes
        )
        yield f"| {each.component} | {each.title} | {models} | {layouts} | {doubts(each)} |\n"


def doubts(each: Architecture) -> str:
    return "; ".join(f"`{layout}`: {text}" if layout else text for layout, text in each.doubts)


def test_the_table_of_recognised_weights_is_that_of_the_code() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert "".join(rows()) in text, f"the table of {PAGE} must be:\n{''.join(rows())}"
    assert UNVERIFIED in text


def test_the_example_is_what_the_command_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FRAMEFIT_MODELS_FILE", raising=False)
    high, low, umt5, vae = (tmp_path / name for name in FILES)
    for path in (high, low):
        write_gguf(path, tensors_of("wan-14b-i2v"), "wan", "Q4_K")
    encoder = tensors_of("umt5-xxl", "diffusers", dtype="F8_E4M3")
    write_safetensors(umt5, scaled_fp8(encoder, "scale_weight"))
    write_safetensors(vae, tensors_of("wan21-vae"))
    printed = CliRunner().invoke(app, ["inspect", *FILES, "--gpu", "12GiB"]).stdout
    shown = printed.replace(str(tmp_path.resolve()), "/models").replace(str(tmp_path), "/models")
    example = re.search(r"^```text\n(wan2\.2_i2v.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert example is not None, shown
    assert example[1] == shown
