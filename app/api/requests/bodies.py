"""Reads request bodies within limits and splits them into fields and images. Does not know their meaning."""

import base64
import binascii
import json
from collections.abc import Collection
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import python_multipart
from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from app.api.problems import Problem
from app.fields.keyframes import PICTURES

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_PARTS = 64
MAX_FIELD_BYTES = 64 * 1024
# Python needs about 70 bytes for each value, however short: 30 MB of "[]," would take 800 MB.
MAX_JSON_VALUES = 100_000
READ_SECONDS = 60.0
# A client that is still sending does not read the response, so bytes over the limit are discarded before it
# is sent, up to this multiple of the limit.
DRAIN_FACTOR = 4
# File fields of a form. In JSON the pictures of key frames lie in their list.
IMAGE_FIELDS = ("image", "last_image", *PICTURES)


@dataclass(slots=True)
class Parts:
    """The fields of a body by name, and the bytes of its images by field name."""

    fields: dict[str, Any]
    images: dict[str, bytes] = field(default_factory=dict)


class BodyShare(Protocol):
    """The memory that one request's body may take."""

    def take(self, count: int) -> None:
        """Reserve bytes. Raises problem 429 or 503 if there is no room."""
        ...

    def reading(self, seconds: float) -> AbstractAsyncContextManager[None]:
        """Read the body within the block. Raises `TimeoutError` after `seconds`, and problem 503 if the body
        had to give way.
        """
        ...


async def read_body(request: Request, max_bytes: int, share: BodyShare) -> bytes:
    """Return the body.

    Raises problem 413 if it has more than `max_bytes`, 408 if it does not arrive within `READ_SECONDS`, 429
    or 503 if there is no memory for it, and 400 for a bad Content-Length.
    """
    received = bytearray()
    total = 0
    try:
        async with share.reading(READ_SECONDS):
            if int(request.headers.get("content-length") or 0) > max_bytes * DRAIN_FACTOR:
                raise _too_large(max_bytes)
            async for chunk in request.stream():
                total += len(chunk)
                if total <= max_bytes:
                    share.take(len(chunk))
                    received += chunk
                else:
                    received.clear()
                if total > max_bytes * DRAIN_FACTOR:
                    break
    except TimeoutError:
        message = f"the body did not arrive within {READ_SECONDS:.0f} seconds"
        raise Problem(408, "body_too_slow", message, headers={"Connection": "close"}) from None
    except ValueError:
        raise Problem(400, "bad_request", "Content-Length is not a number") from None
    if total > max_bytes:
        raise _too_large(max_bytes)
    return bytes(received)


def _too_large(max_bytes: int) -> Problem:
    message = f"the body is larger than {max_bytes:,} bytes"
    return Problem(
        413, "body_too_large", message, headers={"Connection": "close"}, data={"limit_bytes": max_bytes}
    )


def parse_body(content_type: str, body: bytes, image_fields: Collection[str] = IMAGE_FIELDS) -> Parts:
    """Return the fields and images of a multipart or JSON body. Raises `Problem`."""
    kind, options = parse_options_header(content_type)
    if kind == b"multipart/form-data":
        return _named_parts(_multipart(options.get(b"boundary"), body, image_fields), image_fields)
    if kind == b"application/json":
        return _from_object(from_json(body), image_fields)
    raise _unsupported()


def parse_batch_body(
    content_type: str, body: bytes, image_fields: Collection[str] = IMAGE_FIELDS
) -> list[Parts]:
    """Return the parts of each job in one body. Raises `Problem`.

    In JSON each object in `jobs` is a job; the other fields of the body are its defaults. In multipart a
    field that occurs n times has one value for each of n jobs; a field that occurs once applies to all jobs.
    """
    kind, options = parse_options_header(content_type)
    if kind == b"multipart/form-data":
        parts = _multipart(options.get(b"boundary"), body, image_fields)
        return _split_into_jobs(parts, image_fields)
    if kind != b"application/json":
        raise _unsupported()
    shared = from_json(body)
    jobs = shared.pop("jobs", None)
    if not isinstance(jobs, list) or not all(isinstance(job, dict) for job in jobs):
        raise Problem(422, "missing_jobs", "jobs must be a list of objects with the fields of POST /generate")
    return [_from_object({**shared, **job}, image_fields) for job in jobs]


def _unsupported() -> Problem:
    return Problem(415, "unsupported_media_type", "send multipart/form-data or application/json")


def _from_object(fields: dict[str, Any], image_fields: Collection[str]) -> Parts:
    given = {name: fields.pop(name) for name in image_fields if name in fields and name not in PICTURES}
    if isinstance(fields.get("keyframes"), list) and set(PICTURES) & set(image_fields):
        fields["keyframes"] = [dict(each) if isinstance(each, dict) else each for each in fields["keyframes"]]
        for name, each in zip(PICTURES, fields["keyframes"], strict=False):
            if isinstance(each, dict) and "image" in each:
                given[name] = each.pop("image")
    return Parts(fields, {name: _from_data_url(name, url) for name, url in given.items() if url is not None})


def _split_into_jobs(parts: "list[_Part]", image_fields: Collection[str]) -> list[Parts]:
    values: dict[str, list[_Part]] = {}
    for part in parts:
        values.setdefault(part.name, []).append(part)
    counts = {len(several) for several in values.values()} - {1}
    if len(counts) > 1:
        found = ", ".join(f"{len(several)} of {name[:100]!r}" for name, several in values.items())
        raise Problem(422, "uneven_fields", f"repeated fields must occur equally often, not {found}")
    return [
        _named_parts([several[n if len(several) > 1 else 0] for several in values.values()], image_fields)
        for n in range(max(counts, default=1))
    ]


def from_json(body: bytes) -> dict[str, Any]:
    """Return the JSON object in `body`. Raises `Problem`."""
    values = sum(body.count(mark) for mark in (b",", b"[", b"{"))
    if values > MAX_JSON_VALUES:
        raise Problem(400, "json_too_complex", f"the body has more than {MAX_JSON_VALUES:,} values")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Problem(400, "bad_json", f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Problem(400, "bad_json", "the body is not a JSON object")
    return value


def _from_data_url(name: str, value: object) -> bytes:
    if isinstance(value, dict):
        value = value.get("image_url")
    if not isinstance(value, str) or not value.startswith("data:") or ";base64," not in value[:200]:
        raise Problem(422, "bad_data_url", f"{name} must be a data URL: data:image/jpeg;base64,...")
    try:
        return base64.b64decode(value.partition(";base64,")[2], validate=True)
    except (binascii.Error, ValueError):
        raise Problem(422, "bad_data_url", f"the data URL in {name} is not valid base64") from None


@dataclass(slots=True)
class _Part:
    headers: dict[str, bytes] = field(default_factory=dict)
    name: str = ""
    is_file: bool = False
    data: bytearray = field(default_factory=bytearray)


class _Collector:
    """Callbacks of the multipart parser; collects the parts within their limits."""

    def __init__(self, image_fields: Collection[str]) -> None:
        self._image_fields = image_fields
        self.parts: list[_Part] = []
        self._header = [bytearray(), bytearray()]

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self.on_part_begin,
            "on_part_data": self.on_part_data,
            "on_header_field": self.on_header_field,
            "on_header_value": self.on_header_value,
            "on_header_end": self.on_header_end,
            "on_headers_finished": self.on_headers_finished,
        }

    def on_part_begin(self) -> None:
        if len(self.parts) == MAX_PARTS:
            raise Problem(
                400, "too_many_parts", f"the body has more than {MAX_PARTS} parts, which is the limit"
            )
        self.parts.append(_Part())

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header[0] += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1] += data[start:end]

    def on_header_end(self) -> None:
        name, value = (bytes(part) for part in self._header)
        self.parts[-1].headers[name.decode("latin-1").lower()] = value
        self._header = [bytearray(), bytearray()]

    def on_headers_finished(self) -> None:
        part = self.parts[-1]
        _, options = parse_options_header(part.headers.get("content-disposition", b""))
        if b"name" not in options:
            raise Problem(400, "bad_multipart", "a part has no name")
        part.name = options[b"name"].decode("utf-8", "replace")
        part.is_file = b"filename" in options

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        part = self.parts[-1]
        part.data += data[start:end]
        if part.name not in self._image_fields and len(part.data) > MAX_FIELD_BYTES:
            message = f"field {part.name[:100]!r} has more than {MAX_FIELD_BYTES:,} bytes"
            raise Problem(422, "field_too_large", message)


def _multipart(boundary: bytes | None, body: bytes, image_fields: Collection[str]) -> list[_Part]:
    if not boundary:
        raise Problem(400, "bad_multipart", "the multipart boundary is missing")
    collector = _Collector(image_fields)
    try:
        parser = python_multipart.MultipartParser(boundary, collector.callbacks())
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise Problem(400, "bad_multipart", f"the multipart body cannot be parsed: {error}") from None
    if collector.parts and not body.rstrip(b"\r\n").endswith(b"--" + boundary + b"--"):
        raise Problem(400, "bad_multipart", "the multipart body is incomplete: its final boundary is missing")
    return collector.parts


def _named_parts(given: list[_Part], image_fields: Collection[str]) -> Parts:
    parts = Parts({})
    for part in given:
        if part.name in parts.fields or part.name in parts.images:
            raise Problem(422, "duplicate_field", f"field {part.name[:100]!r} occurs twice: send it once")
        if part.name in image_fields:
            parts.images[part.name] = bytes(part.data)
        elif part.is_file:
            raise Problem(422, "unknown_field", f"field {part.name[:100]!r} takes no file")
        else:
            parts.fields[part.name] = _text(part)
    return parts


def _text(part: _Part) -> str:
    try:
        return part.data.decode("utf-8")
    except UnicodeDecodeError:
        raise Problem(422, "not_utf8", f"field {part.name[:100]!r} is not UTF-8 text") from None
