"""`framefit jobs` against a service behind a real socket."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from served import served

from app.api import create_app
from app.config import Settings
from app.jobs import JobSpec
from app.scheduling.admission import LoadProfile


def test_jobs_are_listed_and_searched_by_line_and_as_json(
    framefit: Callable[..., Any],
    tmp_path: Path,
    load_profile: LoadProfile,
    make_spec: Callable[..., JobSpec],
) -> None:
    service = create_app(Settings(data_dir=tmp_path), load_profile=load_profile)
    with served(service, lifespan="on") as (host, port):
        store = service.state.service.store
        boat = store.add(make_spec(prompt="a boat\nsails \x1b[31m by"), b"image").id
        pans = [store.add(make_spec(prompt="a slow pan"), b"image").id for _ in range(3)]
        store.cancel(pans[0])

        def lines(*arguments: str) -> list[str]:
            ended = framefit("jobs", *arguments, "--url", f"http://{host}:{port}")
            assert ended.exit_code == 0, ended.output
            listed: list[str] = ended.stdout.splitlines()
            return listed

        assert [line.split()[0] for line in lines()] == [*pans[::-1], boat]
        (line,) = lines("BOAT", "sails")
        assert line.startswith(boat)
        assert line.endswith("queued     tiny              a boat sails ?[31m by")
        assert [line.split()[0] for line in lines("pan", "-n", "2")] == pans[:0:-1]
        assert [line.split()[0] for line in lines("--status", "ended")] == [pans[0]]
        assert lines("--before", "2001-02-03") == []
        assert len(lines("--since", "2001-02-03T04:05", "--model", "tiny")) == 4
        told = json.loads("\n".join(lines("pan", "--status", "canceled", "--json")))
        assert [job["id"] for job in told["jobs"]] == [pans[0]]
        wrong = framefit("jobs", "--status", "done", "--url", f"http://{host}:{port}")
        assert wrong.exit_code == 2
        assert "'done': write one of queued, running" in wrong.output
    gone = framefit("jobs", "--url", "http://127.0.0.1:1")
    assert gone.exit_code == 1
    assert "cannot reach the service" in gone.stderr
