"""A model of 8 MiB at a hub on this machine, and the entry that names it: for tests of downloads."""

import json
import os

from fake_hub import FakeHub, Repository, commit_of

from app.config import Settings
from app.models.downloads.cached import list_files, point_to, repository_folder
from app.models.entries import ModelEntry, load_models

SOURCE = "somebody/tiny"
COMMIT = "c" * 40
MIB = 2**20
INDEX = {
    "_class_name": "LTXImageToVideoPipeline",
    "vae": ["diffusers", "AutoencoderKLLTXVideo"],
    "transformer": ["diffusers", "LTXVideoTransformer3DModel"],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
}
VAE = "vae/diffusion_pytorch_model.safetensors"
TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
FILES = {
    "model_index.json": json.dumps(INDEX).encode(),
    "README.md": b"# A model",
    "vae/config.json": b"{}",
    VAE: os.urandom(3 * MIB),
    "transformer/config.json": b"{}",
    TRANSFORMER: os.urandom(5 * MIB),
    "transformer/diffusion_pytorch_model.bin": os.urandom(2 * MIB),
    "scheduler/scheduler_config.json": b"{}",
    "the-original-checkpoint.safetensors": os.urandom(2 * MIB),
}
LOADED = {name for name in FILES if not name.endswith((".bin", ".md")) and "original" not in name}
BYTES = sum(map(len, {FILES[name] for name in LOADED}))  # a content under several paths counts once


def publish(hub: FakeHub) -> Repository:
    """Put the model at the hub."""
    hub.repositories[SOURCE] = Repository(dict(FILES), commit_of(FILES))
    return hub.repositories[SOURCE]


def entry_of(settings: Settings, **changes: object) -> ModelEntry:
    """The model's entry, called `mine`."""
    entry = load_models(settings)["ltx-video"]
    return entry.model_copy(update={"source": SOURCE, "name": "mine", **changes})


def put_here(entry: ModelEntry) -> None:
    """Let the hub client's cache have the model as a whole, which is a file of two bytes."""
    repository = repository_folder(entry.source)
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "model_index.json").write_text("{}")
    list_files(repository, COMMIT, entry.variant, ["model_index.json"])
    point_to(repository, entry.revision or "main", COMMIT)
