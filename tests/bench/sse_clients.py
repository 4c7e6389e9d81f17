"""Many event streams while jobs run: does each client see the end, and does the API's memory stay constant?
`python tests/bench/sse_clients.py`

Each round submits jobs and opens all streams at once, spread over the jobs. Every third client disconnects
after a few events and resumes with Last-Event-ID. Resident bytes are read after each round: the first round
fills caches; growth in later rounds would be a leak.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "acceptance")]

from running_service import RunningService  # noqa: E402

RESULTS = Path(__file__).with_name("results")
FIELDS = {"model": "tiny", "width": 64, "height": 64, "num_frames": 9, "num_inference_steps": 4}
BREAK_OFF_AFTER = 3


async def listen(client: httpx.AsyncClient, job_id: str, *, breaks_off: bool) -> bool:
    """Whether the stream's last message was the job's end, with every event once and in order."""
    seen: list[int] = []
    kind = ""
    while True:
        headers = {"Last-Event-ID": str(seen[-1])} if seen else {}
        async with client.stream("GET", f"/jobs/{job_id}/events", headers=headers) as answer:
            if answer.status_code != 200:
                break
            async for line in answer.aiter_lines():
                name, _, value = line.partition(": ")
                if name == "event":
                    kind = value
                elif name == "id":
                    seen.append(int(value))
                    if breaks_off and len(seen) == BREAK_OFF_AFTER:
                        break
        if kind == "finished":
            break
    return kind == "finished" and seen == sorted(set(seen))


async def round_of(url: str, job_ids: list[str], listeners: int) -> int:
    """Listeners that did not hear the end."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=600) as client:
        heard = await asyncio.gather(
            *(
                listen(client, job_ids[number % len(job_ids)], breaks_off=number % 3 == 0)
                for number in range(listeners)
            )
        )
    return heard.count(False)


def measured(service: RunningService, listeners: int, jobs: int, rounds: int) -> dict[str, Any]:
    """Missed ends and the API's resident MiB after each round."""
    api = next(process for process in service.processes() if "api" in process.cmdline())
    service.finished(service.submit(**FIELDS)["id"])
    resident, missed = [round(api.memory_info().rss / 2**20, 1)], 0
    for _ in range(rounds):
        job_ids = [service.submit(**FIELDS)["id"] for _ in range(jobs)]
        missed += asyncio.run(round_of(str(service.http.base_url), job_ids, listeners))
        resident.append(round(api.memory_info().rss / 2**20, 1))
    return {"missed_ends": missed, "api_resident_mib": resident}


def main() -> None:
    """Run the rounds, print and keep the numbers; fail where an end was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listeners", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="framefit-sse-") as name:
        service = RunningService(Path(name) / "data")
        try:
            report = {
                **vars(options),
                "load_average": os.getloadavg()[0],
                **measured(service, **vars(options)),
            }
        finally:
            service.stop()
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "sse-clients.json").write_text(json.dumps(report, indent=1) + "\n")
    sys.stdout.write(json.dumps(report) + "\n")
    sys.exit(report["missed_ends"])


if __name__ == "__main__":
    main()
