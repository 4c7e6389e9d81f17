"""A model that gives way to another: its weights go, whatever keeps it alive in cycles."""

import weakref
from pathlib import Path

from app.config import Settings, load_models
from app.engine import Engine

ENTRY = """
[models.other]
pipeline = "LTXImageToVideoPipeline"
source = "{source}"
vae_class = "AutoencoderKLLTXVideo"
size_multiple = 32
temporal_ratio = 8
first_frame_alone = true

[models.other.defaults]
width = 64
height = 64
num_frames = 9
fps = 8
num_inference_steps = 2
guidance_scale = 1.0

[models.other.limits]
max_pixels = 65536
max_frames = 64
max_steps = 10
"""


def test_a_replaced_models_weights_are_gone_though_it_holds_itself(tmp_path: Path, tiny_folder: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny").symlink_to(tiny_folder)
    (tmp_path / "models.toml").write_text(ENTRY.format(source=tiny_folder))
    settings = Settings(data_dir=tmp_path, models_file=tmp_path / "models.toml", calibrate_seconds=0)
    models, engine = load_models(settings), Engine(settings, "cpu")
    first = engine.load(models["tiny"], lambda *_: None)
    first.itself = first  # type: ignore[attr-defined]  # as hooks of offloading do
    weights = weakref.ref(first._pipe.transformer.proj_in.weight)
    del first
    assert weights() is not None
    engine.load(models["other"], lambda *_: None)
    assert weights() is None
