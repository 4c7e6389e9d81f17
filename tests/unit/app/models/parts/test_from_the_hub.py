"""A model whose base is at the hub and whose transformer is a file: downloaded without it, and loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fake_hub import FakeHub, Repository, commit_of, running_hub, use_here
from model_parts import keep_profile, loaded, make_base
from weight_files import names_for, write_safetensors

from app.models.downloads.download import needs_download
from app.models.downloads.planning import Wanted, plan_download
from app.models.downloads.transfer import Transfer

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with running_hub() as hub:
        use_here(hub, tmp_path / "hf" / "hub", monkeypatch)
        yield hub


def test_a_base_without_the_weights_of_a_part_loads(hub: FakeHub, tmp_path: Path) -> None:
    base = make_base("LTXImageToVideoPipeline", tmp_path / "base")
    own = tmp_path / "own.safetensors"
    weights = base.transformer.state_dict()
    write_safetensors(own, weights, names_for(base.transformer_class, "diffusers"))
    settings, entry = base.entry(tmp_path / "service", {"transformer": own})
    entry = entry.model_copy(update={"source": "some/body", "variant": "fp16"})
    files = Repository.of(base.folder).files
    files[WEIGHTS.replace(".", ".fp16.")] = files[WEIGHTS]  # no other component has any of the variant
    hub.repositories["some/body"] = Repository(files, commit_of(files))
    Transfer(plan_download(Wanted.by(entry))).finish()
    assert not needs_download(entry, settings)
    hub.repositories.clear()  # nothing more is asked of it
    requests = len(hub.requests)
    keep_profile(settings, entry)
    pipe = loaded(settings, entry).pipe
    assert all(torch.equal(weights[name], each) for name, each in pipe.transformer.state_dict().items())
    assert len(hub.requests) == requests
