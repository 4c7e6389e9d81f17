"""`framefit delete` against a service behind a real socket."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from served import served
from typer.testing import CliRunner

from app.api import create_app
from app.cli import app
from app.config import Settings
from app.jobs import JobSpec
from app.scheduling.admission import LoadProfile


def test_jobs_are_deleted_after_a_question_and_what_is_refused_is_said(
    tmp_path: Path,
    load_profile: LoadProfile,
    make_spec: Callable[..., JobSpec],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FRAMEFIT_DATA_DIR", str(tmp_path))
    service = create_app(Settings(data_dir=tmp_path), load_profile=load_profile)
    with served(service, lifespan="on") as (host, port):
        store = service.state.service.store
        ids = [store.add(make_spec(), b"image").id for _ in range(3)]

        def delete(*arguments: str, answer: str = "") -> tuple[int, list[str], str]:
            command = ["delete", *arguments, "--url", f"http://{host}:{port}"]
            ended = CliRunner().invoke(app, command, input=answer)
            return ended.exit_code, [one for one in ids if one in ended.stdout.split()], ended.stderr

        assert delete(ids[0], answer="n\n")[:2] == (1, [])
        assert not store.get(ids[0]).delete_requested
        assert delete(ids[0], answer="y\n")[:2] == (0, ids[:1])
        assert delete("nonesuch", *ids, "--yes") == (
            1,
            ids[1:],
            "framefit: 404 no_such_job: there is no job 'nonesuch'\n"
            f"framefit: 410 job_deleted: job {ids[0]} was deleted: its image, prompt and video are gone, "
            "or go when it ends\n",
        )
        another = store.add(make_spec(), b"image").id
        command = ["delete", "nonesuch", another, "--yes", "--json", "--url", f"http://{host}:{port}"]
        told = json.loads(CliRunner().invoke(app, command).stdout)
        assert told["deleted"] == [another]
        assert told["refused"] == ["404 no_such_job: there is no job 'nonesuch'"]
        ids.append(another)
        assert all(store.get(job_id).delete_requested for job_id in ids)
