"""`--json`: results for programs, on standard output and nothing else there."""

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from adaptive.decoding.calibrate import Measurement
from adaptive.types import LatentShape
from app.cli.models.calibrate import _as_json as calibration_as_json
from app.cli.options import byte_count
from app.config import HASH_PREFIX, Settings
from app.jobs import JobSpec
from app.store import open_store
from app.units import format_bytes, in_units
from app.worker.calibration import Calibration

Framefit = Callable[..., Any]


def told(ended: Any) -> Any:
    assert ended.exit_code == 0, ended.output
    return json.loads(ended.stdout)


def test_keys_their_hashes_and_secrets_are_json_on_demand(framefit: Framefit, tmp_path: Path) -> None:
    made = told(framefit("key", "new", "--name", "studio", "--json"))
    assert made.keys() == {"name", "key", "hash"}
    assert made["hash"].startswith(HASH_PREFIX)
    (tmp_path / "keys.toml").write_text(f'[keys.studio]\nhash = "{made["hash"]}"\n')
    own = {"FRAMEFIT_KEYS_FILE": "keys.toml", "FRAMEFIT_WEBHOOK_SECRET": "a secret"}
    secret = told(framefit("key", "webhook-secret", "studio", "--json", **own))
    assert secret["name"] == "studio"
    assert framefit("key", "webhook-secret", "studio", **own).stdout == f"{secret['secret']}\n"


def test_a_plan_is_json_whether_it_is_exact_or_not(framefit: Framefit) -> None:
    found = told(framefit("plan", "--model", "ltx-video", "--gpu", "12GiB", "--json"))
    assert found["model"] == "ltx-video"
    assert found["decode"]["exact"]


def test_a_backup_and_what_was_put_back_are_json(
    framefit: Framefit, tmp_path: Path, make_spec: Callable[..., JobSpec]
) -> None:
    with closing(open_store(Settings(data_dir=tmp_path / "data"))) as store:
        store.migrate()
        store.add(make_spec(), b"image")
    made = told(framefit("backup", "kept", "--json"))
    assert (made["folder"], made["jobs"], made["missing"]) == ("kept", 1, [])
    assert made["files"] >= 2
    back = told(framefit("restore", "kept", "--data-dir", "again", "--json"))
    assert back == {**made, "folder": str(tmp_path / "again")}


def test_benchmarks_are_compared_as_json(framefit: Framefit, tmp_path: Path) -> None:
    row = {"card_gib": 8, "case": "ltx", "way": "framefit", "ok": True, "seconds": 2.0}
    document = {"stamp": {"torch": "2.13"}, "rows": [row]}
    for name in ("one.json", "two.json"):
        (tmp_path / name).write_text(json.dumps(document))
    alone = told(framefit("bench", "compare", "one.json", "--json"))
    assert alone["stamps"] == [document["stamp"]]
    assert alone["rows"][0]["framefit"] == "2.00 s"
    both = told(framefit("bench", "compare", "one.json", "two.json", "--json"))
    assert both["rows"] == [
        {"card": "8 GiB", "case": "ltx", "one.json": "2.00 s", "two.json": "2.00 s", "second / first": "1.00"}
    ]


def test_a_calibration_is_json_and_its_files_are_named(tmp_path: Path) -> None:
    measured = Measurement(LatentShape(1, 128, 4, 8, 8), 1, 1000, 2000, 1500, 0.5)
    found = Calibration([measured], True, "cpu", "tiny on cpu", tmp_path / "learned.json")
    shown = json.loads(json.dumps(calibration_as_json(found, tmp_path / "calibration-tiny-cpu")))
    (row,) = shown["measurements"]
    assert (row["strategy"], row["frames_per_chunk"], row["seconds"]) == ("per_frame", 1, 0.5)
    assert (row["latent_frames"], row["measured_bytes"]) == (4, 1500)
    assert shown["table"] == str(tmp_path / "calibration-tiny-cpu.md")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("12GB", 12 * 10**9),
        ("12 gb", 12 * 10**9),
        ("12GiB", 12 * 2**30),
        ("12 Gi", 12 * 2**30),
        ("1.5g", 3 * 2**29),
        ("0.1MB", 100_000),
        ("512m", 2**29),
        ("2TB", 2 * 10**12),
        ("7", 7),
        ("7B", 7),
    ],
)
def test_gb_is_a_power_of_ten_and_gib_of_two(text: str, count: int) -> None:
    assert byte_count(text) == count


def test_sizes_are_printed_in_powers_of_two_by_their_names() -> None:
    assert format_bytes(12 * 2**30) == "12.0 GiB"
    sentence = in_units("needs 2,381,472,917 bytes of 1,024 bytes, 5 bytes less")
    assert sentence == "needs 2.2 GiB of 1.0 KiB, 5 bytes less"
