"""`docs/http-api.md` from the service's OpenAPI document and the table of error codes."""

import re
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

import error_codes
from markdown_text import one_line, table

from app.api.app import create_app
from app.config import Settings

TITLES = {
    "jobs": "Jobs",
    "planning": "Planning",
    "openai": "OpenAI-compatible routes",
    "service": "The service",
}
TEXTS: dict[str, dict[str, str]] = tomllib.loads(
    Path(__file__).with_name("field_texts.toml").read_text(encoding="utf-8")
)
HEAD = """# HTTP API

The service listens on `http://127.0.0.1:8000` unless [settings](settings.md) say otherwise.
`GET /openapi.json` is the OpenAPI document of this API, with the schema of every answer. `GET /docs` shows it
as a page on which each route can be tried; it loads nothing from elsewhere. Generators of clients read the
document, for example `openapi-python-client generate --url http://127.0.0.1:8000/openapi.json`.

* Requests are forms (`multipart/form-data`) or JSON. In JSON an image is a data URL.
* Without `width` and `height` the video's [shape](getting-started.md#the-videos-shape) follows the image.
* Behind a [proxy](proxy.md) that serves the service under a path, links in answers begin with that path.
* Answers are JSON. Times are RFC 3339 in UTC, sizes are bytes, durations are seconds.
* HEAD answers wherever GET does, OPTIONS tells a route's methods, and `If-None-Match` is heeded.
* An unknown field or query parameter is refused.
* The service answers to [its own names](operating.md#names-of-the-service) only. Other sites' pages may read.
* An error is a problem document (RFC 9457) with a stable `code`: see [error codes](#error-codes).
* Every answer has an `X-Request-Id`, which the log repeats. If you send one, it is used.
* With API keys set, send `Authorization: Bearer KEY`. A caller sees only the jobs of its own key; an admin
  key sees those of all keys.

Pictures may be JPEG, PNG, WebP, HEIC, AVIF, TIFF, BMP or GIF:

* Colours are converted to sRGB from the picture's ICC profile or colour codes, perceptually. A profile that
  cannot be used is ignored; the log says so (`image_metadata_ignored`).
* Transparent parts are laid over white. Of an animation or of several pages, the first picture is taken. Gain
  maps, depth and thumbnails are ignored.
* The orientation is EXIF's, or the one stored in HEIC and AVIF. Damaged EXIF means upright. No other metadata
  can spoil a picture.
* HDR pictures (PQ, HLG), cameras' raw files and floating-point samples are refused (`unsupported_image`),
  because they would come out wrong.

Queue a job, follow it, fetch the video:

```sh
curl http://127.0.0.1:8000/generate -F image=@photo.jpg -F prompt="pan right"
curl -N http://127.0.0.1:8000/jobs/JOB_ID/events
curl -o out.mp4 http://127.0.0.1:8000/jobs/JOB_ID/video
```

The same with JSON, a forced strategy, and an idempotency key. If a request is repeated with the same key, the
answer is the first job:

```sh
curl http://127.0.0.1:8000/generate \\
  -H "Content-Type: application/json" -H "Idempotency-Key: 7f3a" \\
  -d '{"prompt": "a pan", "decode_strategy": "per_frame",
       "image": "data:image/jpeg;base64,..."}'
```
"""
CODES = """## Error codes

```json
{
  "type": "urn:framefit:problem:does_not_fit",
  "title": "Unprocessable Entity",
  "status": 422,
  "code": "does_not_fit",
  "detail": "..."
}
```

Programs should read `code`; `detail` is for people and may change. Under `/v1/` the answer has the
same code in OpenAI's format: `{"error": {"code": ..., "message": ...}}`.
"""
JOB_CODES = """## Errors of failed jobs

A job with status `failed` has an `error` with a `code` and a `message`. `POST /jobs/{id}/retry` runs it
again. If its latents were saved, denoising is not repeated.
"""


def page() -> str:
    """The whole page as Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        document = create_app(Settings(data_dir=Path(folder))).openapi()
    parts = [
        HEAD,
        _overview(document),
        *_routes(document),
        _job(document),
        CODES,
        _request_codes(),
        JOB_CODES,
        _job_codes(),
    ]
    return "\n".join(part.strip("\n") + "\n" for part in parts)


def _overview(document: Mapping[str, Any]) -> str:
    """Every route in a line."""
    rows = [
        (f"[`{_title(method, path)}`](#{_anchor(method, path)})", _summary(operation))
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    return "\n".join(("## Routes", "", *table(("route", "what it does"), rows)))


def _title(method: str, path: str) -> str:
    return f"{method.upper()} {path.replace('job_id', 'id').replace('video_id', 'id')}"


def _anchor(method: str, path: str) -> str:
    """The anchor that MkDocs gives to the heading of a route."""
    text = re.sub(r"[^\w\s-]", "", _title(method, path)).strip().lower()
    return re.sub(r"[\s-]+", "-", text)


def _summary(operation: Mapping[str, Any]) -> str:
    summary = str(operation["summary"])
    if _is_bare(operation):
        return one_line(operation.get("description", summary)).rstrip(".")
    return summary


def _is_bare(operation: Mapping[str, Any]) -> bool:
    """Whether the summary is only the function's name."""
    return " " in operation["summary"] and str(operation["summary"]).istitle()


def _routes(document: Mapping[str, Any]) -> Iterator[str]:
    by_tag: dict[str, list[tuple[str, str, Mapping[str, Any]]]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            by_tag.setdefault(operation["tags"][0], []).append((method.upper(), path, operation))
    for tag in sorted(by_tag, key=lambda tag: [*TITLES, tag].index(tag)):
        yield f"## {TITLES.get(tag, tag)}"
        for method, path, operation in by_tag[tag]:
            yield _route(document, method, path, operation)


def _route(document: Mapping[str, Any], method: str, path: str, operation: Mapping[str, Any]) -> str:
    lines = [f"### `{_title(method, path)}`", "", _purpose(operation), ""]
    parameters = [
        (f"`{each['name']}`", each["in"], *_field(document, "parameter", each["name"], each["schema"]))
        for each in operation.get("parameters", ())
        if each["in"] != "path"
    ]
    if parameters:
        lines += [*table(("parameter", "in", "type", "meaning"), parameters), ""]
    content = operation.get("requestBody", {}).get("content", {})
    if content and (method, path) != ("POST", "/generate") and _is_generate(content):
        lines += [
            "The body has the fields of [`POST /generate`](#post-generate).",
            *_others(document, content),
            "",
        ]
    elif content:
        body = content.get("multipart/form-data") or content["application/json"]
        lines += [f"Body: {' or '.join(f'`{kind}`' for kind in sorted(content, reverse=True))}.", ""]
        lines += [*_fields(document, body["schema"]), ""]
    lines += [
        f"Answers: {', '.join(_answer(status, operation) for status in sorted(operation['responses']))}."
    ]
    return "\n".join(lines)


def _purpose(operation: Mapping[str, Any]) -> str:
    """Summary and description of a route."""
    description = one_line(operation.get("description", ""))
    if _is_bare(operation):
        return description
    title = f"{operation['summary']}."
    return f"**{title}** {description}".strip() if description != title else f"**{title}**"


def _is_generate(content: Mapping[str, Any]) -> bool:
    properties = content["application/json"]["schema"]["properties"]
    return "num_frames" in properties


def _others(document: Mapping[str, Any], content: Mapping[str, Any]) -> list[str]:
    """The fields that the body has beside those of a job."""
    schema = content["application/json"]["schema"]
    names = [name for name in schema["properties"] if name in ("jobs", "seconds", "size", "input_reference")]
    if not names:
        return []
    kept = {**schema, "properties": {name: schema["properties"][name] for name in names}}
    return ["It also has:", "", *_fields(document, kept)]


def _fields(document: Mapping[str, Any], schema: Mapping[str, Any]) -> list[str]:
    required = schema.get("required", ())
    rows = []
    for name, field in schema["properties"].items():
        kind, meaning = _field(document, "request", name, field)
        rows.append((f"`{name}`" + (" (required)" if name in required else ""), kind, meaning))
    return table(("field", "type", "meaning"), rows)


def _field(document: Mapping[str, Any], group: str, name: str, schema: Mapping[str, Any]) -> tuple[str, str]:
    meaning = schema.get("description") or TEXTS[group].get(name, "")
    default = schema.get("default")
    if default not in (None, ""):
        shown = str(default).lower() if isinstance(default, bool) else str(default)
        meaning = f"{meaning} Default: `{shown}`.".strip()
    return _type(document, schema), one_line(meaning)


def _type(document: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        return _type(document, document["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
    if "anyOf" in schema:
        real = [each for each in schema["anyOf"] if each.get("type") != "null"]
        return " or ".join(_type(document, each) for each in real)
    if "enum" in schema:
        return " ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("format") in ("binary", "data-url"):
        return "file" if schema["format"] == "binary" else "data URL"
    low, high = schema.get("minimum"), schema.get("maximum")
    bounds = f", {low:g} to {high:g}" if low is not None and high is not None and high < 2**53 else ""
    return f"{schema.get('type', 'any')}{bounds}"


def _answer(status: str, operation: Mapping[str, Any]) -> str:
    kinds = operation["responses"][status].get("content", {})
    is_problem = int(status) >= 400
    kind = "" if is_problem or not kinds else f" `{next(iter(kinds))}`"
    return f"{status} {HTTPStatus(int(status)).phrase}{kind}" if not is_problem else status


def _job(document: Mapping[str, Any]) -> str:
    answer = document["paths"]["/generate"]["post"]["responses"]["202"]
    reference = answer["content"]["application/json"]["schema"]["$ref"]
    properties = document["components"]["schemas"][reference.rpartition("/")[2]]["properties"]
    rows = [(f"`{name}`", TEXTS["job"][name]) for name in properties]
    return "\n".join(("## A job", "", *table(("field", "meaning"), rows)))


def _request_codes() -> str:
    rows = sorted(error_codes.documented("request"), key=lambda row: (row.statuses, row.code))
    cells = [(", ".join(map(str, row.statuses)), f"`{row.code}`", row.meaning, row.action) for row in rows]
    return "\n".join(table(("status", "code", "meaning", "what to do"), cells))


def _job_codes() -> str:
    cells = [(f"`{row.code}`", row.meaning, row.action) for row in error_codes.documented("job")]
    return "\n".join(table(("code", "meaning", "what to do"), cells))
