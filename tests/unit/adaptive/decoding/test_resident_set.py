"""Predictions against the outside world: the resident set of real decodes in processes of their own.

What lies above the live bytes is oneDNN's scratch: copies of a convolution's input and output in its layout.
"""

import json
import subprocess
import sys

import pytest

from adaptive.memory.margins import LearnedMargins
from adaptive.types import Cut

# Layers wide and tall enough for oneDNN's direct convolutions; below, torch unfolds every window (27 copies).
MEASURE = """
import json, sys
from collections import deque
import torch
import adaptive
from adaptive.device.probe import open_probe
from adaptive.testing import small_ltx_vae
from adaptive.memory.live_bytes import LiveBytes

torch.set_num_threads(1)
frames_per_chunk, *shape = map(int, sys.argv[1:])
vae = small_ltx_vae(decoder_block_out_channels=(32, 64, 64, 64))
latents = torch.randn(1, 8, *shape)
predicted = adaptive.predict_peak(vae, tuple(latents.shape), frames_per_chunk=frames_per_chunk)

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
print(json.dumps({"predicted": predicted.live_bytes, "counted": live.peak_bytes, "grown": grown}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("frames_per_chunk", "frames", "height", "width"),
    [(9, 5, 24, 8), (3, 5, 24, 4), (4, 6, 16, 6)],
)
def test_the_resident_set_grows_by_the_live_bytes_and_no_more_than_is_assumed_before_any_decode(
    frames_per_chunk: int, frames: int, height: int, width: int
) -> None:
    arguments = [str(number) for number in (frames_per_chunk, frames, height, width)]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert measured["predicted"] == pytest.approx(measured["counted"], rel=0.02)
    live_bytes = measured["predicted"]
    strategy = Cut(frames_per_chunk).strategy(frames)
    cold = LearnedMargins("cpu").estimate("ltx", "float32", strategy, live_bytes)
    assert live_bytes <= measured["grown"] <= cold.upper_bytes
