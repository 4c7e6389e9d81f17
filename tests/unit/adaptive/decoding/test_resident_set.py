"""Predictions against the outside world: the resident set of real decodes in processes of their own.

What lies above the live bytes is oneDNN's scratch: copies of a convolution's input and output in its layout.
"""

import json
import subprocess
import sys

import pytest

from adaptive.memory.margins import LearnedMargins
from adaptive.types import Cut

# Chunk size, then latent frames, height and width.
CASES = [(9, 5, 24, 8), (3, 5, 24, 4), (4, 6, 16, 6)]
# Each case has a process of its own, forked from one that has imported everything and decoded nothing.
# Layers wide and tall enough for oneDNN's direct convolutions; below, torch unfolds every window (27 copies).
MEASURE = """
import json, os, sys
from collections import deque
import torch
import adaptive
from adaptive.device.probe import open_probe
from adaptive.testing import small_ltx_vae
from adaptive.memory.live_bytes import LiveBytes

torch.set_num_threads(1)
vae = small_ltx_vae(decoder_block_out_channels=(32, 64, 64, 64))
for frames_per_chunk, *shape in json.loads(sys.argv[1]):
    predicted = adaptive.predict_peak(vae, (1, 8, *shape), frames_per_chunk=frames_per_chunk)
    if os.fork() == 0:
        break
    _, status = os.wait()
    assert status == 0, (frames_per_chunk, shape, status)
else:
    sys.exit()
latents = torch.randn(1, 8, *shape)

def decode(z):
    deque(adaptive.stream_decode(vae, z, frames_per_chunk=frames_per_chunk), maxlen=0)

decode(latents[:, :, :2, :2, :2])  # libraries load their code at first use
probe = open_probe("cpu")
probe.release()
probe.reset_peak()
decode(latents)
grown = probe.peak().total_bytes
live = LiveBytes()
with live.active():
    decode(latents)
print(json.dumps({"predicted": predicted.live_bytes, "counted": live.peak_bytes, "grown": grown}), flush=True)
"""


@pytest.fixture(scope="module")
def measured() -> dict[tuple[int, ...], dict[str, int]]:
    """What was measured, by case."""
    command = [sys.executable, "-c", MEASURE, json.dumps(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return dict(zip(CASES, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_resident_set_grows_by_the_live_bytes_and_no_more_than_is_assumed_before_any_decode(
    case: tuple[int, ...], measured: dict[tuple[int, ...], dict[str, int]]
) -> None:
    seen = measured[case]
    assert seen["predicted"] == pytest.approx(seen["counted"], rel=0.02)
    live_bytes = seen["predicted"]
    strategy = Cut(case[0]).strategy(case[1])
    cold = LearnedMargins("cpu").estimate("ltx", "float32", strategy, live_bytes)
    assert live_bytes <= seen["grown"] <= cold.upper_bytes
