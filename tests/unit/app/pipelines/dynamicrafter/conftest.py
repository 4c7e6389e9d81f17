"""The golden case, loaded once, and a tiny pipeline."""

import json
from pathlib import Path

import pytest
from golden_case import GOLDEN, Golden, golden_configs
from safetensors.torch import load_file

from app.pipelines.dynamicrafter import DynamiCrafterPipeline, build_tiny_pipeline
from app.pipelines.dynamicrafter.tokenizer import tokenizer_from_merges


@pytest.fixture(scope="session")
def golden(golden_checkpoint: Path) -> Golden:
    case = json.loads((GOLDEN / "case.json").read_text(encoding="utf-8"))
    inputs = {
        key: value.float() if value.is_floating_point() else value
        for key, value in load_file(GOLDEN / "inputs.safetensors").items()
    }
    pipeline = DynamiCrafterPipeline.from_single_file(
        golden_checkpoint,
        resolution=512,
        tokenizer=tokenizer_from_merges([(first, second) for first, second in case["tokenizer"]["merges"]]),
        config=golden_configs(case),
    )
    pipeline.set_progress_bar_config(disable=True)
    return Golden(case, inputs, load_file(GOLDEN / "expected.safetensors"), pipeline)


@pytest.fixture(scope="session")
def golden_checkpoint() -> Path:
    if not GOLDEN.is_dir():
        pytest.skip("the golden tensors of the original implementation are not beside this checkout")
    return GOLDEN / "checkpoint.safetensors"


@pytest.fixture
def tiny() -> DynamiCrafterPipeline:
    pipeline = build_tiny_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
