"""The public interface as lines of text, read from the code that runs.

`COLLECTORS` has one function for each file in `snapshot/`. Descriptions, summaries, titles and help texts are
left out, because wording may improve without notice. `differences` compares lines with the snapshot, `record`
writes it.
"""

import ast
import hashlib
import inspect
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

import typer
from prometheus_client import CollectorRegistry
from served_folder import ServedFolder
from starlette.testclient import TestClient

import adaptive
from adaptive.device.nvml import GpuInfo, NvmlState
from app.api import create_app
from app.api.middleware.http_metrics import HttpMetrics
from app.cli import app as command_line
from app.config import Settings
from app.jobs import Event, JobStatus, WorkerRow
from app.service.exposition.live_gauges import LiveGauges
from app.service.exposition.metrics import ServiceMetrics

ROOT = Path(__file__).parents[2]
SNAPSHOT = Path(__file__).with_name("snapshot")
CHANGELOG = ROOT / "CHANGELOG.md"
ANNOUNCED = "announced.json"
ANSWERS = "answers.txt"
ASKED = ("/devices", "/healthz", "/jobs", "/log-level", "/models", "/readyz", "/session", "/v1/videos")
# Events of each job; other kinds depend on what was loaded before and on the memory that is free.
EVENTS = frozenset({"accepted", "claimed", "stage", "progress", "denoised", "plan", "chunk", "finished"})
KEYS_DEPTH = 2  # what is deeper depends on the job
LONG_PART = 100  # characters of JSON; what is shorter is written out each time
WORDING = frozenset({"description", "summary", "title"})
# Calls whose argument at this position is an error code.
CODE_ARGUMENTS = {
    "Problem": 1,
    "JobError": 0,
    "JobFailure": 0,
    "ImageRejected": 0,
    "WebhookRefused": 0,
    "PydanticCustomError": 0,
}

Lines = list[str]


def openapi() -> Lines:
    """The OpenAPI document without its wording, one value a line; a repeated part names the first like it."""
    with (
        tempfile.TemporaryDirectory() as folder,
        _without_settings(),
        TestClient(create_app(Settings(data_dir=Path(folder)))) as client,
    ):
        document = client.get("/openapi.json").json()
    return list(_leaves(_without_wording(document), "", {}))


def _without_wording(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name: _without_wording(each)
            for name, each in sorted(value.items())
            if not (name in WORDING and isinstance(each, str))
        }
    return [_without_wording(each) for each in value] if isinstance(value, list) else value


def _leaves(value: Any, path: str, seen: dict[str, str]) -> Iterator[str]:
    """The values below `path`; `seen` has the path of every larger part so far, by its JSON."""
    parts = dict(value) if isinstance(value, dict) else {}
    if isinstance(value, list) and any(isinstance(each, dict | list) for each in value):
        parts = {str(index): each for index, each in enumerate(value)}
    if not parts:
        yield f"{path} = {json.dumps(value)}"
        return
    text = json.dumps(value)
    if text in seen:
        yield f"{path} = as {seen[text]}"
        return
    if len(text) > LONG_PART:
        seen[text] = path
    for name, each in parts.items():
        yield from _leaves(each, f"{path} > {name}" if path else name, seen)


@contextmanager
def _without_settings() -> Iterator[None]:
    """Hide the FRAMEFIT_* variables of this process: the snapshot shows the defaults."""
    own = {name: os.environ.pop(name) for name in list(os.environ) if name.upper().startswith("FRAMEFIT_")}
    try:
        yield
    finally:
        os.environ.update(own)


def settings() -> Lines:
    """Each setting with its default, type and limits."""
    schema = Settings.model_json_schema()
    lines = []
    for name, told in schema["properties"].items():
        default = json.dumps(told.pop("default", None))
        limits = {key: value for key, value in told.items() if key not in WORDING}
        lines.append(f"FRAMEFIT_{name.upper()} = {default}  {json.dumps(limits, sort_keys=True)}")
    return sorted(lines)


def metrics() -> Lines:
    """Each metric with its type and label names, those of GPUs included."""
    registry = CollectorRegistry()
    with tempfile.TemporaryDirectory() as folder:
        registry.register(LiveGauges(_OneOfEach(), _one_gpu, alive_seconds=60, data_dir=Path(folder)))
        service = ServiceMetrics({"tiny": "AutoencoderKLLTXVideo"})
        service.apply(_history())
        HttpMetrics(service.registry).count("/jobs", "GET", 200, 0.01)
        families = [*service.scrape().collect(), *registry.collect()]
    lines = []
    for family in families:
        assert family.samples, f"{family.name} shows no series: add an event or a device that makes one"
        names = {name for sample in family.samples for name in sample.labels} - {"le"}
        suffix = "_total" if family.type == "counter" else ""
        lines.append(f"{family.name}{suffix} {family.type} {{{','.join(sorted(names))}}}")
    return sorted(lines)


def _history() -> Iterator[Event]:
    """One job that makes every metric count."""
    decode = {"strategy": "chunked", "frames_per_chunk": 4, "seconds": 1.0, "seam_score": 0.0}
    peaks = {"predicted_peak_bytes": 2, "measured_peak_bytes": 1}
    finished = {
        "model": "tiny",
        "outcome": "succeeded",
        "duration_seconds": 1.0,
        "decode": {**decode, **peaks},
    }
    plan = {"strategy": "chunked", "reason": "fastest_that_fits"}
    claimed = {"worker_id": "host/GPU-1/1", "queued_seconds": 1.0}
    failed = {"model": "tiny", "outcome": "failed", "error": {"code": "internal_error"}}
    kinds = [
        ("accepted", {"model": "tiny"}),
        ("claimed", claimed),
        ("plan", plan),
        ("requeued", {"reason": "worker_lost"}),
        ("claimed", claimed),
        ("finished", finished),
        ("finished", failed),
    ]
    for number, (kind, data) in enumerate(kinds, start=1):
        yield Event(number, "job", kind, 0.0, data)


class _OneOfEach:
    """A job table with one worker on a CPU and one on a GPU."""

    def counts(self) -> Mapping[JobStatus, int]:
        return dict.fromkeys(JobStatus, 1)

    def oldest_queued_seconds(self) -> float:
        return 1.0

    def workers(self, *, within_seconds: float) -> list[WorkerRow]:
        sizes = {"free_bytes": 3, "total_bytes": 4, "own_bytes": 1, "other_bytes": 0}
        ratios = {"workspace_ratio": 0.1, "fragmentation_ratio": 0.1, "upper_ratio": 0.2}
        margin = {"observations": 1, "too_little_ratio": None, **ratios}
        learned = {"learned": {"margins": {"ltx/float32/chunked": margin}}}
        devices = [{"name": "cpu", **sizes, **learned}, {"name": "card", "uuid": "GPU-1", **sizes, **learned}]
        return [WorkerRow(each["name"], each, None, "active", within_seconds, 0.0) for each in devices]


def _one_gpu() -> list[GpuInfo]:
    return [GpuInfo("GPU-1", 0, "card", 4, 3, 1, 0.5, (), NvmlState.OK)]


def commands() -> Lines:
    """Each command of `framefit` with its arguments and options; hidden ones are not public."""
    return sorted(_commands(typer.main.get_command(command_line), "framefit"))


def _commands(command: Any, name: str) -> Iterator[str]:
    for parameter in command.params:
        if getattr(parameter, "hidden", False) or parameter.name == "help":
            continue
        flags = " ".join([*parameter.opts, *parameter.secondary_opts])
        default = "required" if parameter.required else json.dumps(parameter.default, default=str)
        kind = (
            "flag" if getattr(parameter, "is_flag", False) else parameter.type_descriptor.annotation.__name__
        )
        many = " repeated" if getattr(parameter, "multiple", False) or parameter.nargs != 1 else ""
        place = "option" if parameter.param_type_name == "option" else "argument"
        yield f"{name}  {place} {flags}  {kind}{many}  {default}"
    subcommands = getattr(command, "commands", {})
    if not subcommands or command.invoke_without_command:
        yield name
    for each, below in subcommands.items():
        if not below.hidden:
            yield from _commands(below, f"{name} {each}")


def library() -> Lines:
    """Each name in `adaptive.__all__`; of functions and methods the parameters, without annotations."""
    lines = []
    for name in adaptive.__all__:
        value = getattr(adaptive, name)
        lines.append(f"{name}{_parameters(value)}")
        if inspect.isclass(value):
            members = ((each, inspect.getattr_static(value, each)) for each in dir(value))
            lines += [
                f"{name}.{each}{_parameters(getattr(value, each)) if callable(getattr(value, each)) else ''}"
                for each, member in members
                if not each.startswith("_") and not hasattr(Exception, each) and member is not None
            ]
    return sorted(lines)


def _parameters(value: Any) -> str:
    empty = inspect.Parameter.empty
    try:
        found = inspect.signature(value).parameters.values()
    except ValueError:  # of a type written in C
        return "(...)"
    shown = [each.replace(annotation=empty, default=_default(each.default)) for each in found]
    return str(inspect.Signature(shown))


class _Anything:
    def __repr__(self) -> str:
        return "..."


def _default(value: Any) -> Any:
    """The default where it is a plain value; `...` for an object, which shows internal names."""
    plain = value is None or isinstance(value, bool | int | float | str | Enum)
    return value if plain or value is inspect.Parameter.empty else _Anything()


def error_codes() -> Lines:
    """Each error code in the service's source, of problem documents and of failed jobs."""
    found: set[str] = set()
    for path in sorted((ROOT / "app").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for part in _code_parts(node):
                found.update(_texts(part))
    return sorted(found)


def _code_parts(node: ast.AST) -> Iterator[ast.AST]:
    """The parts of a statement or expression that give an error code."""
    if isinstance(node, ast.Call):
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        position = CODE_ARGUMENTS.get(name)
        if position is not None and len(node.args) > position:
            yield node.args[position]
    elif isinstance(node, ast.Dict):
        yield from (value for key, value in zip(node.keys, node.values, strict=True) if _is_code_key(key))
    elif isinstance(node, ast.Assign) and any(getattr(target, "id", "") == "code" for target in node.targets):
        yield node.value
    elif isinstance(node, ast.FunctionDef) and node.name.endswith("_code"):
        yield from (each.value for each in ast.walk(node) if isinstance(each, ast.Return) and each.value)


def _is_code_key(key: ast.expr | None) -> bool:
    return isinstance(key, ast.Constant) and key.value == "code"


def _texts(node: ast.AST) -> Iterator[str]:
    """Texts that an expression may give; a computed part shows as {}."""
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.IfExp():
            yield from _texts(node.body)
            yield from _texts(node.orelse)
        case ast.JoinedStr():
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)


def served_answers() -> Lines:
    """As `answers`, from a service that is started for this."""
    with tempfile.TemporaryDirectory() as work, ServedFolder(Path(work) / "data") as service:
        return answers(service)


def answers(service: ServedFolder) -> Lines:
    """The keys of the JSON that a running service answers with, and of a new job's events."""
    image = (ROOT / "app" / "assets" / "demo.jpg").read_bytes()
    service.wait_ready()  # a plan that knows no device tells less
    job_id = service.submit(image, width=128, height=128, num_frames=9, prompt="pan right")["id"]
    service.ended(job_id)
    asked = {f"GET {path}": service.http.get(path).json() for path in ASKED}
    asked["GET /devices"]["gpus"] = []  # whatever this machine has
    asked["GET /jobs/{id}"] = service.job(job_id)
    asked["GET /v1/videos/{id}"] = service.http.get(f"/v1/videos/{job_id}").json()
    asked["GET /jobs/unknown"] = service.http.get("/jobs/unknown").json()
    asked["POST /plan"] = service.http.post("/plan", data={"prompt": "a"}, files={"image": image}).json()
    lines = {line for name, answer in asked.items() for line in _keys(answer, name)}
    for kind, data in service.events(job_id):
        if kind in EVENTS:
            lines.update(_keys(data, f"GET /jobs/{{id}}/events > {kind}"))
    return sorted(lines)


def _keys(value: Any, path: str, depth: int = 0) -> Iterator[str]:
    if isinstance(value, dict) and depth < KEYS_DEPTH:
        for name, each in value.items():
            yield from _keys(each, f"{path} > {name}", depth + 1)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for each in value:
            yield from _keys(each, f"{path} > []", depth)
    else:
        yield path


COLLECTORS: Mapping[str, Callable[[], Lines]] = {
    "openapi.txt": openapi,
    "settings.txt": settings,
    "metrics.txt": metrics,
    "commands.txt": commands,
    "library.txt": library,
    "error_codes.txt": error_codes,
}


def differences(name: str, lines: Lines, snapshot: Path = SNAPSHOT) -> str:
    """What differs from the snapshot's file, and what to do about it; empty where they are equal."""
    path = snapshot / name
    recorded = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    gone = [f"- {line}" for line in recorded if line not in set(lines)]
    new = [f"+ {line}" for line in lines if line not in set(recorded)]
    if not gone and not new and recorded == lines:
        return ""
    return "\n".join(
        [
            f"the public interface differs from tests/contract/snapshot/{name}:",
            *gone,
            *new,
            "If the change is meant, announce it in CHANGELOG.md and renew the snapshot with that entry:",
            'python tests/contract/renew.py "the entry of CHANGELOG.md"',
        ]
    )


def unannounced(name: str, snapshot: Path = SNAPSHOT, changelog: Path = CHANGELOG) -> str:
    """Why the snapshot's file is not covered by an entry of the changelog; empty where it is.

    Each file is recorded with its digest and the entry that announced its last change. So a file that was
    edited by hand is found, and one whose entry does not stand in the changelog.
    """
    announced = read_announced(snapshot).get(name)
    if announced is None:
        return f"{name} is not in {ANNOUNCED}: renew the snapshot with tests/contract/renew.py"
    if announced["sha256"] != _digest(snapshot / name):
        return f"{name} was changed by hand: renew the snapshot with tests/contract/renew.py"
    if not stands_in(changelog, announced["entry"]):
        return (
            f"CHANGELOG.md has no entry {announced['entry']!r}, which announced {name}: put it back, or name "
            "the entry that replaces it with tests/contract/renew.py"
        )
    return ""


def stands_in(changelog: Path, entry: str) -> bool:
    """Whether the changelog contains the text, ignoring line breaks."""
    return " ".join(entry.split()) in " ".join(changelog.read_text(encoding="utf-8").split())


def read_announced(snapshot: Path = SNAPSHOT) -> dict[str, dict[str, str]]:
    """For each file of the snapshot its digest and the entry that announced its last change."""
    path = snapshot / ANNOUNCED
    found: dict[str, dict[str, str]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def record(
    collected: Mapping[str, Lines], entry: str, snapshot: Path = SNAPSHOT, changelog: Path = CHANGELOG
) -> list[str]:
    """Write the files that changed, and those whose entry is gone; returns their names.

    `entry` of the changelog announces the change. Raises `ValueError` where it is too short to be one, does
    not stand in the changelog, or announced an earlier change of the same file.
    """
    if len(entry.strip()) < 12 or not stands_in(changelog, entry):
        raise ValueError(f"CHANGELOG.md has no entry {entry!r}: write one that tells users of the change")
    announced = read_announced(snapshot)
    renewed = []
    for name, lines in collected.items():
        changed = bool(differences(name, lines, snapshot))
        if not changed and not unannounced(name, snapshot, changelog):
            continue
        if changed and announced.get(name, {}).get("entry") == entry:
            raise ValueError(f"{entry!r} announced an earlier change of {name}: name the entry of this one")
        (snapshot / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        announced[name] = {"entry": entry, "sha256": _digest(snapshot / name)}
        renewed.append(name)
    text = json.dumps(announced, indent=1, sort_keys=True, ensure_ascii=False)
    (snapshot / ANNOUNCED).write_text(text + "\n", encoding="utf-8")
    return renewed


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""
