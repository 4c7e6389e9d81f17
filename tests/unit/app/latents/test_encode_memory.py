"""Clips twice as long take the same memory, encoded and decoded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from encode_clips import write_clip

FRAMES = (121, 241)  # both end in a chunk of the same size, which matters to convolutions' scratch
MEASURE = """
import gc, json, sys
from pathlib import Path
import psutil, torch
from typer.testing import CliRunner
from adaptive.device.probe import open_probe
from app.cli import app

torch.set_num_threads(1)
folder, start = Path(sys.argv[1]), 0
probe = open_probe("cpu")

def measured(*arguments):
    gc.collect()
    probe.release()
    probe.reset_peak()
    before = psutil.Process().memory_info().rss
    result = CliRunner().invoke(app, [str(each) for each in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return before + probe.peak().total_bytes - start

def both(frames):
    clip, latents, video = (folder / f"{frames}.{end}" for end in ("mkv", "safetensors", "mp4"))
    chunked = "--frames-per-chunk"
    encoded = measured("encode", clip, "-o", latents, "--model", "ltx", chunked, 8, "--overwrite")
    return encoded, measured("decode", latents, "-o", video, chunked, 2)

both(49)  # libraries load their code at first use, plans are traced once, the allocator grows
probe.release()
start = psutil.Process().memory_info().rss
print(json.dumps([both(int(frames)) for frames in sys.argv[2:]]))
"""


@pytest.mark.slow
def test_twice_the_frames_take_the_same_memory_from_clip_to_latents_and_back(
    models_file: Path, tmp_path: Path
) -> None:
    for frames in (49, *FRAMES):
        write_clip(tmp_path / f"{frames}.mkv", frames, size=(96, 64))
    settings = {"FRAMEFIT_MODELS_FILE": str(models_file), "FRAMEFIT_DATA_DIR": str(tmp_path / "data")}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path), *map(str, FRAMES)],
        env={**os.environ, **settings, "FRAMEFIT_RESERVE_BYTES": "0"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    short, long = json.loads(done.stdout)

    video_bytes = 3 * 4 * 96 * 64  # of one frame
    for before, after in zip(short, long, strict=True):
        # What the process holds above its start moves by some pages of the allocator's.
        slack = 0.1 * before + 2 * 2**20
        assert slack < (FRAMES[1] - FRAMES[0]) * video_bytes / 1.5, "too coarse to see frames that are kept"
        assert after <= before + slack
