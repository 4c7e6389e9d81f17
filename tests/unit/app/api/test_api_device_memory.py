"""GET /devices/memory: the last hour's readings and decodes, without the jobs of other keys."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from starlette.testclient import TestClient

from app.config import HASH_PREFIX, Settings
from app.jobs import Event, JobSpec
from app.store import JobStore, Submission

GIB = 2**30


def digest(name: str) -> str:
    return sha256((name * 20).encode()).hexdigest()


def test_readings_and_decodes_are_told_and_job_ids_only_to_their_owners(
    client_of: Callable[..., TestClient], tmp_path: Path, make_spec: Callable[..., JobSpec]
) -> None:
    keys = tmp_path / "keys.toml"
    rows = [f'[keys.{name}]\nhash = "{HASH_PREFIX}{digest(name)}"\n' for name in ("anne", "ben", "root")]
    keys.write_text("".join([*rows, "admin = true\n"]))
    client = client_of(Settings(data_dir=tmp_path, keys_file=keys))
    service = client.app.state.service  # type: ignore[attr-defined]
    store: JobStore = service.store
    spec = make_spec()
    ids = [
        store.submit(Submission(spec, b"x", name, owner=service.keys.find(name * 20).owner))[0].id
        for name in ("anne", "ben", "ben")
    ]
    store.delete(ids[2])
    memory = {"total_bytes": 8 * GIB, "free_bytes": 5 * GIB, "own_bytes": GIB}
    store.register_worker("host/cpu/1", {"name": "cpu", **memory})
    service.memory_history.turn()
    now = store.time()
    for job_id in ids:
        told = [("claimed", {"worker_id": "host/cpu/1"}), ("stage", {"stage": "decoding"}), ("finished", {})]
        service.memory_history.apply([Event(1, job_id, kind, now, data) for kind, data in told])

    def seen(name: str, **parameters: float) -> tuple[list[str | None], int]:
        answer = client.get("/devices/memory", params=parameters, headers={"X-API-Key": name * 20})
        assert answer.status_code == 200, answer.text
        body = answer.json()
        for device in body["devices"]:
            count = len(device["times"])
            assert device["worker_id"] == "host/cpu/1"
            assert device["total_bytes"] == [8 * GIB] * count
            assert (device["free_bytes"], device["own_bytes"]) == ([5 * GIB] * count, [GIB] * count)
            assert device["times"][-1] <= body["now"]
        return [one["job_id"] for one in body["decodes"]], len(body["devices"])

    assert seen("anne") == ([ids[0], None, None], 1)
    assert seen("ben") == ([None, ids[1], None], 1)
    assert seen("root", minutes=60) == ([ids[0], ids[1], None], 1)
    assert client.get("/devices/memory").status_code == 401
    root = {"X-API-Key": "root" * 20}
    for minutes in ("0", "61", "nan", "x"):
        answer = client.get("/devices/memory", params={"minutes": minutes}, headers=root)
        assert answer.status_code == 422
