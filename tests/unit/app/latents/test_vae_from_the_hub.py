"""`framefit encode` and `framefit decode` with a model that is at the hub: they download its VAE alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from encode_clips import write_clip
from fake_hub import FakeHub, Repository, commit_of, running_hub, use_here
from hub_model import INDEX
from typer.testing import Result

from app.models.downloads.cached import repository_folder

SOURCE = "some/body"
VAE = ("vae/config.json", "vae/diffusion_pytorch_model.safetensors")


@pytest.fixture
def hub(tmp_path: Path, models_file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with the model, whose transformer is 3 MiB of nothing."""
    with running_hub() as hub:
        files = Repository.of(models_file.parent / "ltx").files
        files["model_index.json"] = json.dumps(INDEX).encode()
        files["transformer/config.json"] = b"{}"
        files["transformer/diffusion_pytorch_model.safetensors"] = bytes(3 * 2**20)
        files["scheduler/scheduler_config.json"] = b"{}"
        hub.repositories[SOURCE] = Repository(files, commit_of(files))
        use_here(hub, tmp_path / "hf" / "hub", monkeypatch)
        for name, value in hub.environ(tmp_path / "hf").items():
            monkeypatch.setenv(name, value)
        text = models_file.read_text().replace(str(models_file.parent / "ltx"), SOURCE)
        (tmp_path / "models.toml").write_text(text)
        yield hub


def test_the_vae_alone_is_downloaded_and_its_progress_shown(
    hub: FakeHub, framefit: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRAMEFIT_MODELS_FILE", str(tmp_path / "models.toml"))
    clip, out = write_clip(tmp_path / "clip.mkv", 9), tmp_path / "out.safetensors"
    done = framefit("encode", clip, "--model", "ltx", "-o", out)
    assert done.exit_code == 0, done.output
    assert "downloading the VAE: " in done.output
    snapshots = repository_folder(SOURCE) / "snapshots" / hub.repositories[SOURCE].commit
    there = {path.relative_to(snapshots).as_posix() for path in snapshots.rglob("*") if path.is_file()}
    assert there == {"model_index.json", *VAE}
    requests = len(hub.requests)
    hub.repositories.clear()
    decoded = framefit("decode", out, "-o", tmp_path / "out.mp4")
    assert decoded.exit_code == 0, decoded.output
    assert "downloading" not in decoded.output
    # As other programs leave it, which ask for no list of components.
    shutil.rmtree(repository_folder(SOURCE) / ".framefit")
    (snapshots / "model_index.json").unlink()
    decoded = framefit("decode", out, "-o", tmp_path / "again.mp4")
    assert decoded.exit_code == 0, decoded.output
    assert len(hub.requests) == requests
