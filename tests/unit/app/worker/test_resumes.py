"""The request of the self-test that finds out whether a model's denoise can be resumed."""

from pathlib import Path

from app.config import Settings
from app.models.entries import load_models
from app.worker.denoise.resumes import small_request


def test_the_small_request_keeps_every_models_rules(tmp_path: Path) -> None:
    for name, entry in load_models(Settings(data_dir=tmp_path)).items():
        spec = small_request(entry)
        assert entry.allows_shape(spec.width, spec.height, spec.num_frames), name
        assert entry.allows_frames(spec.num_frames), name
        assert (spec.width % entry.size_multiple, spec.height % entry.size_multiple) == (0, 0), name
        small = spec.width * spec.height * spec.num_frames <= 64 * 64 * 50
        assert small or entry.shapes, f"{name}: the test takes as long as a job"
        assert bool(spec.prompt) == entry.uses_prompt, name
