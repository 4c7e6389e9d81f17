"""`framefit pull`, `framefit models` and `framefit models rm`, with a hub on this machine."""

import json
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from fake_hub import FakeHub, running_hub, use_here
from hub_model import BYTES, MIB, SOURCE, publish
from typer.testing import CliRunner

from app.cli import app
from app.cli.generate import _doing, _share
from app.config import load_settings
from app.models import profiles
from app.models.downloads.cached import repository_folder
from app.models.downloads.planning import Wanted, plan_download
from app.models.downloads.transfer import Transfer, repository_lock
from app.models.entries import load_models
from app.scheduling.fits_here import DeviceMemory, fits_here
from app.store import open_store

MODELS = """
[models.mine]
pipeline = "LTXImageToVideoPipeline"
source = "{source}"
vae_class = "AutoencoderKLLTXVideo"
size_multiple = 32
temporal_ratio = 8
first_frame_alone = true
defaults = {{width = 64, height = 64, num_frames = 9, fps = 8, num_inference_steps = 1, guidance_scale = 1.0}}
limits = {{max_pixels = 4096, max_frames = 9, max_steps = 9}}
"""


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with running_hub() as hub:
        publish(hub)
        use_here(hub, tmp_path / "hf" / "hub", monkeypatch)
        for name, value in hub.environ(tmp_path / "hf").items():
            monkeypatch.setenv(name, value)
        file = tmp_path / "models.toml"
        file.write_text(MODELS.format(source=SOURCE))
        monkeypatch.setenv("FRAMEFIT_MODELS_FILE", str(file))
        monkeypatch.setenv("FRAMEFIT_DATA_DIR", str(tmp_path / "data"))
        (tmp_path / "data").mkdir()
        yield hub


def framefit(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def listed(name: str) -> dict[str, Any]:
    answer = framefit("models", "--json")
    assert answer.exit_code == 0, answer.output
    return next(row for row in json.loads(answer.output)["models"] if row["name"] == name)


def test_a_model_is_listed_pulled_and_removed_with_its_bytes(hub: FakeHub) -> None:
    before = listed("mine")["storage"]
    assert not before["on_disk"]
    assert hub.requests == []  # listing asks nothing
    checked = framefit("pull", "mine", "--check")
    assert "8.0 MiB to download, of 8.0 MiB in all" in checked.output
    assert listed("mine")["storage"]["size_from"] == "hub"
    pulled = framefit("pull", "mine")
    assert pulled.exit_code == 0, pulled.output
    assert f"{SOURCE}: 8.0 MiB in {repository_folder(SOURCE)}" in pulled.output
    after = listed("mine")["storage"]
    assert after["on_disk"]
    assert (after["size_bytes"], after["size_from"], after["download_bytes"]) == (BYTES, "disk", 0)
    table = framefit("models").output
    assert "mine" in table
    assert "8.0 MiB" in table
    removed = framefit("models", "rm", "mine")
    assert removed.exit_code == 0, removed.output
    assert "8.0 MiB" in removed.output
    assert not repository_folder(SOURCE).exists()
    assert not listed("mine")["storage"]["on_disk"]
    assert "nothing to remove" in framefit("models", "rm", "mine").output


def test_removing_takes_what_a_download_left_behind_and_spares_other_revisions() -> None:
    repository = repository_folder(SOURCE)
    for name, content in {"snapshots/kept/a": b"k" * MIB, "snapshots/gone/a": b"g" * MIB}.items():
        blob = repository / "blobs" / name.split("/")[1]
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        (repository / name).parent.mkdir(parents=True)
        (repository / name).symlink_to(blob)
    (repository / "blobs" / "broken.incomplete").write_bytes(b"b" * MIB)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("gone")
    answer = framefit("models", "rm", "mine")
    assert f"{2 * MIB + 4:,} bytes" in answer.output
    assert (repository / "snapshots/kept/a").read_bytes() == b"k" * MIB
    assert [path.name for path in (repository / "blobs").iterdir()] == ["kept"]


def test_what_is_in_use_or_not_from_the_hub_is_not_removed(tmp_path: Path) -> None:
    refused = framefit("models", "rm", "tiny")
    assert refused.exit_code == 1
    assert "is not from the hub" in refused.output
    with repository_lock(Wanted(SOURCE)) as locked:
        assert locked
        assert "is being downloaded" in framefit("models", "rm", "mine").output
    with closing(open_store(load_settings())) as store:
        store.migrate()
        store.register_worker("w", {"name": "cpu", "kind": "cpu", "loaded_model": "mine"})
    assert "a worker has mine loaded" in framefit("models", "rm", "mine").output
    both = MODELS.format(source=SOURCE)
    (tmp_path / "models.toml").write_text(both + both.replace("mine", "other"))
    assert "mine shares its files with other" in framefit("models", "rm", "mine").output


def test_removing_a_model_spares_what_another_entry_loads(tmp_path: Path) -> None:
    own = 'transformer = "/no/file.gguf"\nrevision = "main"\nsource ='  # the revision that others leave out
    entries = MODELS.format(source=SOURCE)
    quantized = entries.replace("mine", "quantized").replace("source =", own)
    (tmp_path / "models.toml").write_text(entries + quantized)
    repository = repository_folder(SOURCE)
    Transfer(plan_download(Wanted(SOURCE))).finish()  # as `pull` does, without its process
    refused = framefit("models", "rm", "quantized")
    assert refused.exit_code == 1
    assert "quantized shares its files with mine" in refused.output
    removed = framefit("models", "rm", "mine")
    assert removed.exit_code == 0, removed.output
    assert "5.0 MiB" in removed.output
    assert "the rest stays for quantized" in removed.output
    assert listed("quantized")["storage"]["on_disk"]
    assert "nothing to remove" in framefit("models", "rm", "mine").output
    assert framefit("models", "rm", "quantized").exit_code == 0
    assert not repository.exists()


def test_a_database_that_does_not_answer_keeps_a_models_files_and_an_empty_one_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Transfer(plan_download(Wanted(SOURCE))).finish()
    monkeypatch.setenv("FRAMEFIT_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    refused = framefit("models", "rm", "mine")
    assert refused.exit_code == 1
    assert "cannot tell whether a worker has mine loaded" in refused.output
    assert "Connection refused" in refused.output
    assert listed("mine")["storage"]["on_disk"]
    monkeypatch.delenv("FRAMEFIT_DATABASE_URL")
    (load_settings().data_dir / "framefit.sqlite3").touch()  # no service has run here
    assert framefit("models", "rm", "mine").exit_code == 0
    assert not listed("mine")["storage"]["on_disk"]


def test_a_pull_that_the_hub_refuses_says_what_to_do(hub: FakeHub) -> None:
    hub.repositories[SOURCE].gated = True
    refused = framefit("pull", "mine")
    assert refused.exit_code == 1
    told = f"accept its licence at {hub.url}/{SOURCE}"
    assert told in refused.output
    assert told in listed("mine")["unavailable_because"]
    assert "built in" in framefit("pull", "tiny").output


def test_a_pull_of_a_path_that_does_not_exist_says_so(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_text(MODELS.format(source="/gone/model"))
    refused = framefit("pull", "mine")
    assert refused.exit_code == 1
    assert "the source of model mine, /gone/model, does not exist on this machine" in refused.output
    assert hub.requests == []


def test_generate_shows_bytes_rate_and_time_left_of_a_download() -> None:
    download = {"done_bytes": 3 * MIB, "total_bytes": 8 * MIB, "bytes_per_second": MIB, "seconds_left": 5.0}
    job = {"stage": "downloading", "status": "running", "progress": 0.004, "download": download}
    assert _doing(job) == "downloading the model: 3.0 MiB of 8.0 MiB, 1.0 MiB/s, 5 s left"
    assert _share(job) == 3 / 8
    job["download"] = {**download, "bytes_per_second": None, "seconds_left": None}
    assert _doing(job) == "downloading the model: 3.0 MiB of 8.0 MiB"
    assert _doing({**job, "stage": "loading"}) == "loading the model"


def test_what_a_card_of_this_machine_holds_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from app.cli.models import listed as command

    gib = 2**30
    for total, kind, fits in ((24, "resident", True), (12, "drop_text_encoder", True), (2, None, False)):
        card = DeviceMemory("cuda:0", "cuda", total * gib, 64 * gib)
        monkeypatch.setattr(command, "_devices", lambda card=card: [card])
        fit = listed("ltx-video")["fits_here"]
        assert (fit["fits"], fit["placement"]) == (fits, kind)
        assert "GiB" in fit["detail"] or "bytes" in fit["detail"]


def test_memory_that_is_short_is_named_with_numbers_that_differ() -> None:
    gib, settings = 2**30, load_settings()
    entry = load_models(settings)["ltx-video"]
    profile, requirements = profiles.load(settings, entry), profiles.load_requirements(settings, entry)

    def fit(host_bytes: int) -> dict[str, Any]:
        card = DeviceMemory("cuda:0", "cuda", 12 * gib, host_bytes)
        return fits_here(entry, profile, requirements, [card], settings.reserve_bytes) or {}

    assert fit(gib)["detail"].endswith(" GiB, this machine's memory gives 1.0 GiB")
    enough = bisect_left(range(64 * gib), True, key=lambda host_bytes: bool(fit(host_bytes)["fits"]))
    told = fit(enough - 1)["detail"]
    assert told.endswith(f" needs {enough:,} bytes, this machine's memory gives {enough - 1:,} bytes")
