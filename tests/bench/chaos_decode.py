"""One process of `tests/bench/chaos.py`: decodes cases in turn, with real allocation failures.

Arguments: first case, end (exclusive), seed, families. Prints JSON lines: before each case its bounds of the
free memory in bytes (`{"bounds": [low, high]}`), after it its row.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import time
from functools import cache
from typing import Any

import nvml_stub
import psutil
import torch
from stream_vaes import latents_of, shared
from torch import Tensor

from adaptive.decoding.decoder import AdaptiveDecoder, DecodeEvent
from adaptive.device.host import limit_heap_growth, trim_heap
from adaptive.device.nvml import Nvml
from adaptive.errors import DoesNotFit
from adaptive.memory.live_bytes import trace_peak
from adaptive.memory.margins import LearnedMargins
from adaptive.planning.planner import Policy
from adaptive.stream import decode_whole, open_decode
from adaptive.types import LatentShape, MeasuredPeak, MemoryReading

MIB = 2**20
UNLIMITED = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
WAIT_SECONDS = 0.02
# Room beside tensors for oneDNN's scratch and code, and for the interpreter itself.
BESIDE_TENSORS = 16 * MIB
INTERPRETER_BYTES = 4 * MIB


# Configuration (tests/stream_vaes.py) and latent size `[h, w]`: few channels and many pixels, for
# much memory at little arithmetic.
SIDES = {"ltx-0.9.0": (12, 4), "wan-2.1": (32, 16), "svd": (64, 32), "kl": (160, 64)}
LATENT_FRAMES = (6, 8)


class ChaosProbe:
    """Free memory as the stub driver reports it. Each reading also limits the address space, or not."""

    noise_bytes = 0

    def __init__(self, chance: random.Random, room_bytes: tuple[int, int]) -> None:
        self._nvml = Nvml()
        self._chance = chance
        self._room_bytes = room_bytes
        self._tight = False

    def read(self) -> MemoryReading:
        """The driver's figure, even if it is wrong."""
        least, most = self._room_bytes
        # Now and then a neighbour leaves too little for anything, but never twice in a row.
        self._tight = not self._tight and self._chance.random() < 0.15
        if self._tight or self._chance.random() < 0.6:
            room = (
                self._chance.randint(INTERPRETER_BYTES, least)
                if self._tight
                else self._chance.randint(least, most)
            )
            limit = psutil.Process().memory_info().vms + room
            resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        else:
            resource.setrlimit(resource.RLIMIT_AS, UNLIMITED)
        gpu = self._nvml.read(nvml_stub.StubGpu.uuid)
        return MemoryReading("cpu", gpu.free_bytes, gpu.total_bytes, 0, 0, gpu.used_bytes, "nvml")

    def reset_peak(self) -> None:
        """Not measured here."""

    def peak(self, held_bytes: int = 0) -> MeasuredPeak | None:  # noqa: ARG002 - as of a probe that measures
        """Not measured here."""
        return None

    def release(self) -> None:
        """As the host's own probe."""
        trim_heap()


def decode(decoder: AdaptiveDecoder, latents: Tensor, expected: Tensor) -> tuple[float, int, int]:
    """Largest relative difference, video frames, and how often the plan had to wait for memory."""
    waits, done, difference = 0, 0, 0.0
    while True:
        try:
            plan = decoder.plan(latents)
            break
        except DoesNotFit:
            waits += 1
            time.sleep(WAIT_SECONDS)
    for part in decoder.frames(latents, resume_plan=plan):
        resource.setrlimit(resource.RLIMIT_AS, UNLIMITED)  # comparing takes memory that is not the decode's
        stop = done + part.shape[2]
        difference = max(difference, (part - expected[:, :, done:stop]).abs().max().item())
        done = stop
        del part
    return difference / expected.abs().max().item(), done, waits


def fed_in_order(events: list[DecodeEvent], latent_frames: int) -> bool:
    """Whether each chunk began where the one before it ended, up to the last latent frame."""
    position = 0
    for event in events:
        if event.kind == "chunk":
            if event.data["position"] - event.data["latent_frames"] != position:
                return False
            position = event.data["position"]
    return position == latent_frames


def one_case(family: str, case: int, chance: random.Random) -> dict[str, Any]:
    """Decode one random clip and say how it went."""
    vae = shared(family)
    frames = chance.choice(LATENT_FRAMES)
    latents = latents_of(vae, frames, seed=case, sides=SIDES[family])
    expected = decode_whole(vae, latents)
    trim_heap()
    events: list[DecodeEvent] = []
    decoder = AdaptiveDecoder(
        vae,
        probe=ChaosProbe(chance, _room(family, frames)),
        policy=Policy(reserve_bytes=0),
        residuals=LearnedMargins("cpu"),
        on_event=events.append,
    )
    shape = LatentShape(*latents.shape)
    least, most = (decoder.profile.estimate(shape, size).upper_bytes for size in (1, frames))
    print(json.dumps({"bounds": [least // 2, 5 * max(most, least) // 4]}), flush=True)  # noqa: T201
    try:
        difference, done, waits = decode(decoder, latents, expected)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, UNLIMITED)
    report = decoder.report
    sizes = [event.data["frames_per_chunk"] for event in events if event.kind == "chunk"]
    return {
        "latent_frames": frames,
        "difference": difference,
        "in_order": fed_in_order(events, frames) and done == expected.shape[2],
        "planned": report.plan.frames_per_chunk,
        "retries": report.retries,
        "waits": waits,
        "sizes": sizes,
        "failures": sorted({event.data["message"][:60] for event in events if event.kind == "oom"}),
    }


@cache
def _room(family: str, frames: int) -> tuple[int, int]:
    """Bytes of room that suffice for one frame a chunk, and that nearly suffice for all at once.

    Counted in real runs: activations that a sweep parks in host memory take room here, too.
    """
    vae = shared(family)
    latents = latents_of(vae, frames, sides=SIDES[family])

    def one_by_one() -> None:
        with open_decode(vae, latents) as stream:
            while not stream.finished:
                stream.step(1)

    one = trace_peak(one_by_one).peak_bytes
    whole = trace_peak(lambda: decode_whole(vae, latents)).peak_bytes
    least = round(1.3 * one) + BESIDE_TENSORS
    return least, max(least + MIB, whole)


def main(first: int, stop: int, seed: int, families: list[str]) -> None:
    """Run the cases, the families in turn; an error of one is its row, and the next ones run."""
    torch.set_num_threads(1)
    limit_heap_growth()
    for case in range(first, stop):
        family = families[case % len(families)]
        try:
            row = one_case(family, case, random.Random(f"{seed} {case}"))
        except Exception as error:
            row = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps({"case": case, "family": family, **row}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), sys.argv[4:])
