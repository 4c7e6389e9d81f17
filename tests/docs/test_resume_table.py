"""The table of pipelines that resume names all that are served, and each of them is tested."""

import re
from pathlib import Path

import denoise_cases
import tiny_pipelines

from app.config import Settings
from app.models.entries import load_models

PAGE = Path(__file__).parents[2] / "docs" / "operating.md"


def table() -> dict[str, str]:
    rows = re.findall(r"^\| `(\w+Pipeline)` \| (\w+) \|", PAGE.read_text(), re.MULTILINE)
    assert len(rows) == len(dict(rows))
    return dict(rows)


def test_the_table_names_every_pipeline_of_the_list_of_models(tmp_path: Path) -> None:
    served = {entry.pipeline for entry in load_models(Settings(data_dir=tmp_path)).values()}
    assert table().keys() == served | set(tiny_pipelines.names())


def test_every_pipeline_that_the_table_says_resumes_is_resumed_by_a_test() -> None:
    tested = {case.pipeline for case in denoise_cases.CASES.values()}
    assert {name for name, resumes in table().items() if resumes == "yes"} == tested
