"""Logging of every process: one line for each event, to standard error, as text or as JSON.

An event is logged as `log.info("job_started job_id=%s attempt=%d", job_id, attempt)`: a name and fields. In
JSON the fields keep their types. `bind_ids` adds ids to every event logged inside its block, in the same
thread or task. The level can be changed while processes run: each process polls a small file in the data
folder.
"""

import json
import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from app.artifacts.whole_file import replace_text
from app.loops import Loop

LEVEL_FILE = "log-level"
LEVELS = ("debug", "info", "warning", "error")
OWN_LOGGERS = ("app", "adaptive", "uvicorn.error")
# On import, torchao and its importers warn about kernels and checkpoints that the service does not use. The
# hub's client tells of each attempt to reach it; its error says it once.
NOISY_LOGGERS = (
    "torchao",
    "torch.utils._pytree",
    "diffusers.quantizers.torchao",
    "huggingface_hub.utils._http",
)
POLL_SECONDS = 1.0
_FIELD = re.compile(r"(\w+)=(%[-+ #0-9.]*[a-z]|\S+)")
_EVENT = re.compile(r"(\w+)((?: \w+=\S+)*)")
# Control characters, separators of lines, and marks that turn the direction of text. In a path or in an error
# of a library they would forge further lines, or hide some on a terminal.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_TO_QUOTE = re.compile(r'[\s="]')
_INDENT = "    "
_bound: ContextVar[Mapping[str, Any]] = ContextVar("bound", default=MappingProxyType({}))


@contextmanager
def bind_ids(**ids: Any) -> Iterator[None]:
    """Add these ids to every event of the block."""
    token = _bound.set({**_bound.get(), **ids})
    try:
        yield
    finally:
        _bound.reset(token)


class _Ids(logging.Filter):
    """Copies the bound ids onto the record in the thread or task that logs it."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.ids = _bound.get()
        return True


def printable(text: str) -> str:
    """Return the text with escapes such as `\\n` for what would steer a terminal or begin a line."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class TextFormat(logging.Formatter):
    """Text for people: time, level, logger, event, then the bound ids that the event does not name itself.

    An event is one line, whatever its values hold, and a value that could be taken for further fields is in
    quotes. The lines of a traceback are indented.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and those of a traceback."""
        record.message = _text_of(record)
        record.asctime = self.formatTime(record)
        lines = [printable(self.formatMessage(record))]
        if record.exc_info:
            lines += self.formatException(record.exc_info).split("\n")
        if record.stack_info:
            lines += self.formatStack(record.stack_info).split("\n")
        return "\n".join([lines[0], *(_INDENT + printable(line) for line in lines[1:])])

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (the name is logging's)
        """Return the line without a traceback."""
        line, named = super().formatMessage(record), fields_of(record)
        more = [f"{name}={_quoted(value)}" for name, value in _ids(record).items() if name not in named]
        return " ".join((line, *more))


class JsonFormat(logging.Formatter):
    """JSON for programs: one object a line, with `event` and its fields, or `message` for other lines."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        entry = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": self._process,
            **_ids(record),
            **fields_of(record),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        # The only control character that JSON leaves as it is.
        return json.dumps(entry, default=str).replace("\x7f", "\\u007f")


def _ids(record: logging.LogRecord) -> Mapping[str, Any]:
    found: Mapping[str, Any] = getattr(record, "ids", {})
    return found


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return an event's name and fields with their original types, or `message` for other lines."""
    found = _event_of(record)
    if found is None:
        return {"message": record.getMessage()}
    event, fields = found
    return {"event": event, **{name: value for name, (_, value) in fields.items()}}


def _event_of(record: logging.LogRecord) -> tuple[str, dict[str, tuple[str, Any]]] | None:
    """Return an event's name, and the form and value of each field; None for other lines."""
    template, arguments = str(record.msg), record.args if isinstance(record.args, tuple) else ()
    event = _EVENT.fullmatch(template)
    if event is None or template.count("%") != len(arguments):
        return None
    given = iter(arguments)
    pairs = _FIELD.findall(event[2])
    return event[1], {name: (form, next(given) if form.startswith("%") else form) for name, form in pairs}


def _text_of(record: logging.LogRecord) -> str:
    """Return the line's text; the values of an event in quotes where they need them."""
    found = _event_of(record)
    if found is None:
        return record.getMessage()
    event, fields = found
    if " ".join((event, *(f"{name}={form}" for name, (form, _) in fields.items()))) != record.msg:
        return record.getMessage()  # a value of several parts, such as %dx%d
    values = {name: form % (value,) if form[0] == "%" else form for name, (form, value) in fields.items()}
    return " ".join((event, *(f"{name}={_quoted(value)}" for name, value in values.items())))


def _quoted(value: object) -> str:
    """Return a value as it stands in a line; in quotes if it is empty or has spaces, `=` or quotes."""
    text = str(value)
    if text and not _TO_QUOTE.search(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def quiet_libraries() -> None:
    """Limit the libraries in `NOISY_LOGGERS` to errors. Call before they are imported."""
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)


def configure(
    level: str, *, form: Literal["text", "json"] = "text", process: str = "", data_dir: Path | None = None
) -> None:
    """Set up this process's log.

    Libraries log warnings and errors only. With `data_dir`, a thread follows the level that `write_level`
    sets for that folder.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormat(process) if form == "json" else TextFormat())
    handler.addFilter(_Ids())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    _set_level(level)
    if data_dir is not None:
        follower = LevelFollower(data_dir, level)
        Loop("log-level", follower.poll, every_seconds=POLL_SECONDS).start()


def read_level(data_dir: Path) -> str | None:
    """Return the level set at run time, or None if each process uses the level it started with."""
    try:
        text = (data_dir / LEVEL_FILE).read_text().strip()
    except OSError:
        return None
    return text if text in LEVELS else None


def write_level(data_dir: Path, level: str | None) -> None:
    """Set the level of every process that uses the folder; None restores the levels they started with.

    Takes effect within `POLL_SECONDS`.
    """
    path = data_dir / LEVEL_FILE
    if level is None:
        path.unlink(missing_ok=True)
        return
    replace_text(path, level)


class LevelFollower:
    """Keeps this process at the level set in the data folder, or at `own` if none is set."""

    def __init__(self, data_dir: Path, own: str) -> None:
        self._data_dir = data_dir
        self._own = self._now = own

    def poll(self) -> None:
        """Apply the level that is set now."""
        wanted = read_level(self._data_dir) or self._own
        if wanted != self._now:
            self._now = wanted
            _set_level(wanted)
            logging.getLogger(__name__).warning("log_level_changed to=%s", wanted)


def _set_level(level: str) -> None:
    for name in OWN_LOGGERS:
        logging.getLogger(name).setLevel(level.upper())
