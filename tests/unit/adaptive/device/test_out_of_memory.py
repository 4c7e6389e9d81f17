"""A real allocation failure in the middle of a real decode, in a process whose address space is limited."""

import json
import subprocess
import sys

DECODE = """
import json, resource
import psutil, torch
from adaptive.decoding.decoder import AdaptiveDecoder
from adaptive.device.host import trim_heap, limit_heap_growth
from adaptive.planning.planner import Policy
from adaptive.memory.profile_trace import predict_peak
from adaptive.testing import ScriptedProbe, small_ltx_vae

torch.set_num_threads(1)
limit_heap_growth()
vae = small_ltx_vae(decoder_block_out_channels=(32, 64, 64, 64))
latents = torch.randn(1, 8, 12, 24, 2)  # tall: oneDNN's direct convolutions, with little scratch
with torch.no_grad():
    expected = vae.decode(latents, return_dict=False)[0]

class Optimist(ScriptedProbe):
    def release(self):
        super().release()
        trim_heap()

events = []
decoder = AdaptiveDecoder(
    vae, probe=Optimist([2**40]), policy=Policy(frames_per_chunk=6), on_event=events.append
)
live = {n: predict_peak(vae, tuple(latents.shape), frames_per_chunk=n).live_bytes for n in (1, 6)}
video = torch.zeros_like(expected)
done = 0
for part in decoder.frames(latents):
    video[:, :, done : done + part.shape[2]] = part
    first, done = done == 0, done + part.shape[2]
    del part
    if first:
        trim_heap()
        room = (live[1] * 2 + live[6]) // 2
        limit = psutil.Process().memory_info().vms + room
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
report = decoder.report
print(json.dumps({
    "largest_difference": (video - expected).abs().max().item(),
    "frames": [done, expected.shape[2]],
    "retries": report.retries,
    "planned": report.plan.frames_per_chunk,
    "smallest": report.frames_per_chunk,
    "fed": sum(report.chunk_frames),
    "messages": [event.data["message"] for event in events if event.kind == "oom"],
}))
"""


def test_a_real_allocation_failure_costs_a_retry_and_not_a_frame() -> None:
    done = subprocess.run([sys.executable, "-c", DECODE], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["largest_difference"] < 1e-4
    assert seen["frames"] == [89, 89]
    assert seen["retries"] >= 1
    assert seen["planned"] == 6
    assert seen["smallest"] < 6
    assert seen["fed"] == 12
    assert all("allocate memory" in text or "primitive" in text for text in seen["messages"])
