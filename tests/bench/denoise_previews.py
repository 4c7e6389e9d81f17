"""Previews while denoising: what they cost at real latent sizes.

    python tests/bench/denoise_previews.py

Prints JSON, as stored in `results/`. A strip is made in every step of a loop whose denoiser takes no time;
the service makes at most one a second. Schedulers, latents and the map have the sizes of published models.
`step_ms` is what a strip adds to the step's thread, `writer_ms` what the other thread takes for pixels and
files.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from denoise_checkpoints import ltx, run, wan

sys.path.insert(0, str(Path(__file__).parents[1]))

from adaptive.denoise.preview.latent_layout import LatentLayout
from adaptive.denoise.preview.pixel_map import PixelMap
from adaptive.denoise.watch import watch
from adaptive.types import LatentShape
from app.artifacts.local_folder import JobArtifacts
from app.worker.denoise import strips
from app.worker.denoise.strips import ShownLatents, Strips


def cost(
    model: Callable[[], tuple[Any, dict[str, tuple[int, ...]]]], form: str, shape: LatentShape, sub: int
) -> dict[str, Any]:
    """Milliseconds of a strip in the step's thread and in the writer's, and bytes on the device."""
    pipe, _ = model()
    pipe = SimpleNamespace(components=pipe.components)
    layout = LatentLayout("scheduler", form, 1, (1.0,) * shape.channels, (0.0,) * shape.channels)
    pixel_map = PixelMap(torch.randn(shape.channels + 1, 3 * sub**2) / shape.channels, sub, 1.0)
    shown = ShownLatents(layout, pixel_map, shape, list(range(shape.frames)))
    writer: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        bare = statistics.median(run(pipe, lambda: None))
        made = Strips(pipe, JobArtifacts(Path(folder)), shown, lambda *_: None, every_seconds=0.0)
        write = made._write

        def timed(*args: Any) -> None:
            started = time.perf_counter()
            write(*args)
            writer.append((time.perf_counter() - started) * 1000)

        made._write = timed  # type: ignore[method-assign]
        taken: list[float] = []

        def step() -> None:
            taken.append(made.seconds_of_steps * 1000)
            made.step_done(len(taken), strips.SIDE)
            made.close()  # else the next step would make none

        with watch(pipe, [made]):
            run(pipe, step)
        sizes = [path.stat().st_size for path in Path(folder).glob("*.jpg")]
    each = [after - before for before, after in zip([0.0, *taken], taken, strict=False)]
    frames = shown.frames()
    small_bytes = shown.small(torch.empty(pipe.components["transformer"].prediction.shape), frames).nbytes
    return {
        "loop_step_ms": round(bare, 3),
        "step_ms": round(statistics.median(each), 3),
        "step_ms_longest": round(max(each), 3),
        "writer_ms": round(statistics.median(writer), 3),
        "pictures": len(sizes),
        "picture_bytes": round(statistics.mean(sizes)),
        "copied_bytes": small_bytes,
        "device_bytes_at_most": 3 * small_bytes,  # the estimate, one term of it, and what is taken of that
    }


def main() -> None:
    """Measure and print."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    result: Mapping[str, Any] = {
        "ltx 97x768x512": cost(ltx, "tokens", LatentShape(1, 128, 13, 16, 24), 4),
        "wan 81x480x832": cost(wan, "channels first", LatentShape(1, 16, 21, 60, 104), 2),
    }
    print(json.dumps(result, indent=1))  # noqa: T201


if __name__ == "__main__":
    main()
