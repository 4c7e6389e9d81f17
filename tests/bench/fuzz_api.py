"""Sends valid and invalid requests made from the OpenAPI document: is every answer described by the document?
`python tests/bench/fuzz_api.py` (some 6,000 requests; a part of it runs in the tests).

The application runs in this process, with a real database that holds a job in each state. The status, content
type, headers and body of every answer are checked against the document, and no answer may be a 5xx. A worker
is registered, so that `/readyz` has no reason to answer 503 either.
"""

import argparse
import base64
import io
import json
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from PIL import Image
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.core.failures import FailureGroup
from schemathesis.python import asgi

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from app.api import create_app  # noqa: E402
from app.artifacts.local_folder import job_artifacts  # noqa: E402
from app.config import Settings  # noqa: E402
from app.fields.keyframes import PICTURES  # noqa: E402
from app.jobs import JobError, JobSpec, JobStatus  # noqa: E402
from app.store import JobStore  # noqa: E402

RESULTS = Path(__file__).with_name("results")
CHECKED = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
SEED = 20_240_817
# Of random jobs few are taken, and which is chance: hypothesis takes constants from those modules of the
# project that are loaded. Other seeds follow until one was taken.
TAKEN = {"POST /generate": 202, "POST /v1/videos": 200}
SEEDS = 30
STREAM_SECONDS = 0.1  # a stream that has no more news just then is cut there
PATIENCE_SECONDS = 60.0
SPEC = {"prompt": "x", "model": "tiny", "width": 64, "height": 64, "num_frames": 9, "fps": 8, "seed": 1}
# Fields whose values depend on each other and on the model: left out of some requests, so that those get far.
DEPENDENT = frozenset(
    {
        "model",
        "width",
        "height",
        "num_frames",
        "frames_per_chunk",
        "memory_budget_bytes",
        "fs",
        "loop",
        "loras",
    }
    | {"webhook_url", "last_image", "decode_strategy", "size", "seconds", "keyframes", "continue_from"}
    | set(PICTURES)
)
# The picture of a request that continues no other video.
FIRST_IMAGE = {"/generate": "image", "/v1/videos": "input_reference"}


@dataclass(slots=True)
class Findings:
    """Answers by route and status, and what the document does not tell of, each kind once."""

    cases: int = 0
    seconds: float = 0.0
    answers: dict[str, Counter[int]] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)


def pictures() -> list[bytes]:
    """One of each kind that is taken."""
    made = []
    for kind in ("JPEG", "PNG", "WEBP"):
        file = io.BytesIO()
        Image.linear_gradient("L").resize((64, 48)).convert("RGB").save(file, kind)
        made.append(file.getvalue())
    return made


def _url(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def _know_formats() -> None:
    """Real pictures among random bytes, for the document's formats."""
    real = pictures()
    urls = [_url(data) for data in real]
    schemathesis.openapi.format("binary", st.sampled_from(real) | st.binary(max_size=200))
    schemathesis.openapi.format("data-url", st.sampled_from(urls) | st.text(max_size=50))


def _a_job_of_each_kind(store: JobStore, jobs_dir: Path) -> list[str]:
    """Ids: succeeded with a video, failed, canceled, expired, running, queued."""
    spec = JobSpec.model_validate({**SPEC, "num_inference_steps": 2, "guidance_scale": 1.0, "priority": 10})
    image = pictures()[0]
    ends: list[tuple[JobStatus, dict[str, Any]]] = [
        (JobStatus.SUCCEEDED, {"result": {"frames": 9, "thumbnail": True}}),
        (JobStatus.FAILED, {"error": JobError("out_of_memory", "it did not fit")}),
        (JobStatus.CANCELED, {}),
        (JobStatus.SUCCEEDED, {"result": {"frames": 9}}),
    ]
    ids = []
    for status, told in ends:
        ids.append(store.add(spec, image).id)
        assert store.finish(ids[-1], _claimed(store, ids[-1]), status=status, **told)
    files = job_artifacts(jobs_dir, ids[0]).make()
    for path in (files.video, files.thumbnail, files.preview(0)):
        path.write_bytes(image)
    store.discard(ids[-1])
    ids.append(store.add(spec, image).id)
    _claimed(store, ids[-1])
    ids.append(store.add(spec.model_copy(update={"priority": -10}), image).id)
    return ids


def _claimed(store: JobStore, job_id: str) -> int:
    """The token of the job, once it has been claimed; requests may have left others before it."""
    while True:
        claim = store.claim("another", lease_seconds=1e6)
        assert claim is not None
        if claim.job.id == job_id:
            return claim.token


def _device() -> dict[str, Any]:
    memory = {"total_bytes": 8 * 2**30, "free_bytes": 4 * 2**30, "capacity_bytes": 6 * 2**30}
    return {"name": "cpu", "kind": "cpu", "own_bytes": 0, "other_bytes": 0, **memory}


def _plain(body: dict[str, Any]) -> dict[str, Any]:
    """The same without the fields that depend on each other; of a batch's repeated fields, one value each."""
    plain: dict[str, Any] = {}
    for name, value in body.items():
        if name == "jobs" and isinstance(value, list):
            plain[name] = [_plain(each) if isinstance(each, dict) else each for each in value]
        elif name not in DEPENDENT:
            plain[name] = value[:1] if isinstance(value, list) else value
    return plain


def _steered(case: Any, ids: list[str], data: st.DataObject) -> None:
    """Point a request at what exists, and take out of it what most values of are refused."""
    for name in ("job_id", "video_id"):
        if name in (case.path_parameters or {}) and data.draw(st.integers(0, 3)):
            case.path_parameters[name] = data.draw(st.sampled_from(ids))
    if case.path_parameters and "name" in case.path_parameters and data.draw(st.booleans()):
        case.path_parameters["name"] = "cpu"
    if isinstance(case.body, dict) and data.draw(st.booleans()):
        case.body = _plain(case.body)
        if (name := FIRST_IMAGE.get(case.path)) is not None:
            picture = pictures()[0]
            is_json = "json" in (case.media_type or "")
            case.body.setdefault(name, _url(picture) if is_json else picture)


def _words(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))[-3000:]


def _answer(case: Any, app: FastAPI, seconds: float) -> Any:
    """The answer; of a stream, what came within the seconds, or within more if it had not begun by then."""
    while True:
        try:
            with asgi.get_client(app, max_stream_events=3) as client:
                return case.call(session=client, timeout=seconds)
        except requests.exceptions.ReadTimeout:
            if seconds >= PATIENCE_SECONDS:
                raise
            seconds *= 4


def _try(
    operation: Any,
    mode: GenerationMode,
    count: int,
    app: FastAPI,
    ids: list[str],
    found: Findings,
    *,
    first_number: int = SEED,
) -> None:
    checks = CHECKS.get_by_names(list(CHECKED))
    answers = found.answers.setdefault(operation.label, Counter())
    cases = operation.as_strategy(generation_mode=mode)
    is_stream = operation.path.endswith("/events")

    @seed(first_number)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def one(data: st.DataObject) -> None:
        case = data.draw(cases)
        _steered(case, ids, data)
        found.cases += 1
        try:
            response = _answer(case, app, STREAM_SECONDS if is_stream else PATIENCE_SECONDS)
        except Exception as error:  # a server would have answered 500, or broken off its answer
            found.faults.setdefault(f"{operation.label}: {type(error).__name__}", _words(error))
            return
        answers[response.status_code] += 1
        try:
            case.validate_response(response, checks=checks)
        except FailureGroup as group:
            for failure in group.exceptions:
                name = f"{operation.label}: {type(failure).__name__}, {response.status_code}"
                found.faults.setdefault(name, str(group)[:3000])

    try:
        one()
    except Unsatisfiable:  # nothing about this route can be asked in a wrong way
        if mode is GenerationMode.POSITIVE:
            raise


def _modes(operation: Any) -> list[GenerationMode]:
    """A path alone is never wrong, for any text might be the id of a job; nor is a header that may be any."""
    told = operation.definition.raw
    checked = {"query"} | ({"path"} if "number" in operation.path else set())
    in_parameters = any(each["in"] in checked for each in told.get("parameters", []))
    in_header = operation.path.endswith("/events")
    may_be_wrong = in_parameters or in_header or "requestBody" in told
    return list(GenerationMode) if may_be_wrong else [GenerationMode.POSITIVE]


def fuzz(data_dir: Path, cases_per_route: int) -> Findings:
    """Every route of the document, with as many requests from what it allows as from what it does not."""
    load_all_checks()
    _know_formats()
    app = create_app(
        Settings(
            data_dir=data_dir,
            max_queued=1_000_000,
            heartbeat_seconds=1e5,
            webhook_secret="a secret for this run",
        )
    )
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)  # this starts the application, too
    service = app.state.service
    service.store.register_worker("w", _device())
    while not service.feed.caught_up:
        time.sleep(0.05)
    found, started = Findings(), time.monotonic()
    try:
        for result in schema.get_all_operations():
            operation = result.ok()
            ids = _a_job_of_each_kind(service.store, service.settings.jobs_dir)
            # Of random jobs, which have many fields, few are taken.
            times = 2 if operation.path in ("/generate", "/v1/videos") else 1
            for mode in _modes(operation):
                _try(operation, mode, times * cases_per_route // 2, app, ids, found)
            for number in range(SEEDS):
                if operation.label not in TAKEN or found.answers[operation.label][TAKEN[operation.label]]:
                    break
                _try(operation, GenerationMode.POSITIVE, 12, app, ids, found, first_number=SEED + 1 + number)
    finally:
        asgi.shutdown_lifespans()
    found.seconds = round(time.monotonic() - started, 1)
    return found


def as_markdown(found: Findings) -> str:
    """The findings for people."""
    rows = [
        f"| `{label}` | {counts.total()} | {', '.join(f'{s}: {n}' for s, n in sorted(counts.items()))} |"
        for label, counts in found.answers.items()
    ]
    faults = "".join(f"\n## {name}\n\n```\n{text}\n```\n" for name, text in found.faults.items())
    head = (
        "# Requests made from the OpenAPI document\n\n"
        f"`python tests/bench/fuzz_api.py`: {found.cases} requests, {len(found.faults)} kinds of answers "
        "that the document does not tell of, any 5xx among them.\n\n"
        "| route | requests | answers |\n|---|---|---|\n"
    )
    return head + "\n".join(rows) + "\n" + faults


def main() -> None:
    """Run, write the results, fail where an answer was not one of the document's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=320, help="for each route")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = fuzz(Path(name), options.cases)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "fuzz.md").write_text(as_markdown(found))
    sys.stdout.write(
        json.dumps({"cases": found.cases, "seconds": found.seconds, "faults": list(found.faults)}, indent=1)
    )
    sys.stdout.write("\n")
    sys.exit(bool(found.faults))


if __name__ == "__main__":
    main()
