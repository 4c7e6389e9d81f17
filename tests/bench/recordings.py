"""Records real decodes: resident-set peaks and seconds of every rung, for `prediction.py` and `regret.py`.

    python tests/bench/recordings.py [--shapes 12] [--model NAME ...] [--processes 2] [--quick]
                                     [--large | --again]

Each model runs in a separate process with one thread: random shapes, and for each shape every chunk size that
the planner would consider. The memory of a decode is the growth of the resident set's high-water mark
(`clear_refs`), in the parts that `adaptive.device.probe` distinguishes; its time is processor time. Layers
are wide and frames tall enough for oneDNN's own convolutions, as in published models; torch unfolds
smaller ones. Rows are appended to `results/recordings-cpu.jsonl`, which are not measured again.
With `--again`, some are repeated in random order into `results/repeats-cpu.jsonl`, which shows how much the
memory of the same decode varies.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adaptive.device.huge_pages import enable_huge_pages

HERE = Path(__file__).parent
RECORDINGS = HERE / "results" / "recordings-cpu.jsonl"
LARGE = HERE / "results" / "recordings-large-cpu.jsonl"
REPEATS = HERE / "results" / "repeats-cpu.jsonl"
MB = 10**6
# Live bytes of the batched decode. A host's constant needs (pages, heaps) weigh little in the large ones.
SMALL_BYTES = (16 * MB, 48 * MB)
LARGE_BYTES = (100 * MB, 400 * MB)
REPEATED = {RECORDINGS: 4, LARGE: 1}  # shapes of each model that are decoded again, the smallest ones
TIMES = 4
# Slow ones for their bytes: their large decodes are kept to the lower end.
SLOW = ("wan-2.1",)

# Depths and switches of the published configurations as in the unit tests, with channels wide enough for
# oneDNN.
WIDER: dict[str, dict[str, Any]] = {
    "cogvideox": {"block_out_channels": (16, 16, 32, 32), "norm_num_groups": 8},
    "hunyuanvideo-1.5": {"block_out_channels": (16, 16, 32, 32, 32)},
    "kl": {"block_out_channels": (32, 32), "norm_num_groups": 16},
    "ltx-0.9.0": {"decoder_block_out_channels": (16, 32, 32, 32)},
    "ltx2": {"decoder_block_out_channels": (16, 32, 64)},
    "mochi": {},
    "svd": {"block_out_channels": (32, 32)},
    "wan-2.1": {"base_dim": 16},
}


@dataclass(frozen=True, slots=True)
class Row:
    """One rung of one decode: latent shape, bytes and seconds."""

    model: str
    family: str
    shape: tuple[int, int, int, int, int]
    frames_per_chunk: int
    live_bytes: int
    allocated_bytes: int
    fragmentation_bytes: int
    outside_bytes: int
    seconds: float

    @property
    def needed_bytes(self) -> int:
        """All that must have been free."""
        return self.allocated_bytes + self.fragmentation_bytes + self.outside_bytes


def load(path: Path = RECORDINGS) -> list[Row]:
    """All rows recorded so far."""
    if not path.exists():
        return []
    rows = (json.loads(line) for line in path.read_text().splitlines())
    return [Row(**{**row, "shape": tuple(row["shape"])}) for row in rows]


def build(name: str) -> Any:
    """The wide VAE, random weights."""
    import diffusers
    import torch

    sys.path.insert(0, str(HERE.parent))
    from stream_vaes import CONFIGS

    vae_class, config = CONFIGS[name]
    torch.manual_seed(0)
    return getattr(diffusers, vae_class)(**{**config, **WIDER[name]}).eval()


def random_shape(
    profile: Any, draw: random.Random, live_bytes: tuple[int, int]
) -> tuple[int, int, int, int, int]:
    """Three to six latent frames, a batched decode of about `live_bytes`, as tall as real frames are.

    torch chooses its convolution by channels x frames x rows: few rows are unfolded window by window.
    """
    from adaptive.types import LatentShape

    frames = draw.randint(3, 6)
    wanted = math.exp(draw.uniform(*map(math.log, live_bytes)))
    if profile.traits.frames_independent:
        wanted *= frames / 2  # a frame alone takes its share of the whole, and no more
    channels = profile.traits.latent_channels
    area = wanted / profile.live_bytes(LatentShape(1, channels, frames, 1, 1), frames)
    height = draw.randint(16, 32)
    return 1, channels, frames, height, max(2, round(area / height))


def measure(name: str, shapes: int, done: set[tuple[Any, ...]], live_bytes: tuple[int, int]) -> Iterator[Row]:
    """Every rung of `shapes` random decodes that is not among the `done` ones."""
    import torch

    from adaptive.device.probe import open_probe
    from adaptive.planning.planner import Policy, chunk_sizes
    from adaptive.types import LatentShape

    vae, profile = _warmed_up(name)
    probe, draw = open_probe("cpu"), random.Random(f"{name} 2")
    for _ in range(shapes):
        shape = random_shape(profile, draw, live_bytes)
        latents = torch.randn(shape)
        for chunk in chunk_sizes(profile, shape[2], Policy()):
            if (name, shape, chunk) in done:
                continue
            peak, seconds = _run(vae, latents, chunk, probe)
            live = profile.live_bytes(LatentShape(*shape), chunk, on_host=True)
            parts = (peak.allocated_bytes, peak.fragmentation_bytes, peak.outside_bytes)
            yield Row(name, profile.traits.family, shape, chunk, live, *parts, seconds)


def measure_again(name: str) -> Iterator[Row]:
    """Recorded rungs of the smallest shapes, `TIMES` each, in random order."""
    import torch

    from adaptive.device.probe import open_probe

    vae, _ = _warmed_up(name)
    probe, rows = open_probe("cpu"), list[Row]()
    for path, shapes in REPEATED.items():
        recorded = [row for row in load(path) if row.model == name]
        smallest = sorted({row.shape for row in recorded}, key=math.prod)[:shapes]
        rows += [row for row in recorded if row.shape in smallest]
    rows *= TIMES
    random.Random(name).shuffle(rows)
    for row in rows:
        peak, seconds = _run(vae, torch.randn(row.shape), row.frames_per_chunk, probe)
        parts = (peak.allocated_bytes, peak.fragmentation_bytes, peak.outside_bytes)
        yield Row(name, row.family, row.shape, row.frames_per_chunk, row.live_bytes, *parts, seconds)


def _warmed_up(name: str) -> tuple[Any, Any]:
    """The VAE and its profile, one thread; code that is loaded at first use is there."""
    import torch

    from adaptive.memory.profile_trace import profile_of

    torch.set_num_threads(1)
    vae = build(name)
    profile = profile_of(vae)
    warm_up = torch.randn(1, profile.traits.latent_channels, 3, 16, 2)
    for chunk in (3, 1):
        _decode(vae, warm_up, chunk)
    return vae, profile


def _run(vae: Any, latents: Any, chunk: int, probe: Any) -> tuple[Any, float]:
    probe.release()
    probe.reset_peak()
    started = time.process_time()
    _decode(vae, latents, chunk)
    return probe.peak(), round(time.process_time() - started, 4)


def _decode(vae: Any, latents: Any, chunk: int) -> None:
    from adaptive.functions import stream_decode

    kwargs = {}
    if vae.config.get("timestep_conditioning"):
        import torch

        kwargs = {"temb": torch.tensor([0.05])}
    deque(stream_decode(vae, latents, frames_per_chunk=chunk, **kwargs), maxlen=0)


def _record(name: str, shapes: int, path: Path) -> str:
    """Measure one model in a separate process; returns the text of an error, if there was one."""
    command = [sys.executable, __file__, "--worker", name, "--shapes", str(shapes), "--out", str(path)]
    command += {LARGE: ["--large"], REPEATS: ["--again"]}.get(path, [])
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if line.startswith("{"):
                with path.open("a") as file:
                    file.write(line)
        return "" if process.wait() == 0 else process.stderr.read()[-2000:]


def record(models: list[str], shapes: int, processes: int, path: Path = RECORDINGS) -> None:
    """Measure what is missing; raises `RuntimeError` with a process' last words."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(processes) as pool:
        for failure in pool.map(lambda name: _record(name, shapes, path), models):
            if failure:
                raise RuntimeError(failure)


def main() -> None:
    """Parse and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", nargs="*", default=list(WIDER), choices=list(WIDER))
    parser.add_argument("--shapes", type=int, default=12)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="three shapes a model")
    parser.add_argument("--large", action="store_true", help="decodes of 100 MB to 400 MB")
    parser.add_argument("--again", action="store_true", help="recorded decodes, several times each")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    shapes = 3 if options.quick else options.shapes
    out = options.out or (REPEATS if options.again else LARGE if options.large else RECORDINGS)
    if options.worker is None:
        enable_huge_pages()  # on behalf of the processes that measure
        record(options.model, shapes, options.processes, out)
        return
    if options.again:
        _tell(measure_again(options.worker))
        return
    done = {(row.model, row.shape, row.frames_per_chunk) for row in load(out)}
    live_bytes = LARGE_BYTES if options.large else SMALL_BYTES
    if options.large and options.worker in SLOW:
        live_bytes = (LARGE_BYTES[0], 2 * LARGE_BYTES[0])
    _tell(measure(options.worker, shapes, done, live_bytes))


def _tell(rows: Iterator[Row]) -> None:
    for row in rows:
        print(json.dumps(asdict(row)), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
