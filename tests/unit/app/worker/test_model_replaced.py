"""A model that gives way to another: its weights go, whatever keeps it alive in cycles."""

import weakref
from pathlib import Path

from app.config import Settings
from app.models.entries import load_models
from app.worker.engine import Engine


def test_a_replaced_models_weights_are_gone_though_it_holds_itself(tmp_path: Path, tiny_folder: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny").symlink_to(tiny_folder)
    settings = Settings(data_dir=tmp_path, calibrate_seconds=0)
    entry, engine = load_models(settings)["tiny"], Engine(settings, "cpu")
    first = engine.load(entry, lambda *_: None)
    first.itself = first  # type: ignore[attr-defined]  # as hooks of offloading do
    weights = weakref.ref(first._pipe.transformer.proj_in.weight)
    del first
    assert weights() is not None
    engine.load(entry.model_copy(update={"size_multiple": 64}), lambda *_: None)  # another model, that is
    assert weights() is None
