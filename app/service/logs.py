"""How every process of the service writes its log: one line an event, to standard error, as text or as JSON.

An event is written `log.info("job_started job_id=%s attempt=%d", job_id, attempt)`: a name and fields. In
JSON the fields keep their types. `bound` adds ids to whatever is logged inside it, in the same thread or
task. The level can be changed while processes run: each looks at one small file in the data folder.
"""

import json
import logging
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

LEVEL_FILE = "log-level"
LEVELS = ("debug", "info", "warning", "error")
OURS = ("app", "adaptive", "uvicorn.error")
# When imported they warn of kernels and checkpoints that nothing here uses: torchao, and who imports it.
TALKATIVE = ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao")
LOOK_SECONDS = 1.0
_FIELD = re.compile(r"(\w+)=(%[-+ #0-9.]*[a-z]|\S+)")
_EVENT = re.compile(r"(\w+)((?: \w+=\S+)*)")
_bound: ContextVar[Mapping[str, Any]] = ContextVar("bound", default=MappingProxyType({}))


@contextmanager
def bound(**ids: Any) -> Iterator[None]:
    """Add these ids to every event of the block."""
    token = _bound.set({**_bound.get(), **ids})
    try:
        yield
    finally:
        _bound.reset(token)


class _Ids(logging.Filter):
    """Notes what is bound where the event happens, before it reaches another thread."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.ids = _bound.get()
        return True


class TextFormat(logging.Formatter):
    """For people: time, level, logger, event; bound ids that the event does not tell itself at its end."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (the name is logging's)
        """The line, before what a traceback adds."""
        line = super().formatMessage(record)
        more = [f"{name}={value}" for name, value in _ids(record).items() if f"{name}=" not in record.message]
        return " ".join((line, *more))


class JsonFormat(logging.Formatter):
    """For machines: one object a line. `event` and its fields where the line is an event, else `message`."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        told = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": self._process,
            **_ids(record),
            **fields_of(record),
        }
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told, default=str)


def _ids(record: logging.LogRecord) -> Mapping[str, Any]:
    found: Mapping[str, Any] = getattr(record, "ids", {})
    return found


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """An event's name and fields, with the types they were logged with; other lines as one `message`."""
    template, arguments = str(record.msg), record.args if isinstance(record.args, tuple) else ()
    event = _EVENT.fullmatch(template)
    if event is None or template.count("%") != len(arguments):
        return {"message": record.getMessage()}
    given = iter(arguments)
    pairs = {name: next(given) if form.startswith("%") else form for name, form in _FIELD.findall(event[2])}
    return {"event": event[1], **pairs}


def quiet_libraries() -> None:
    """Have the talkative ones speak of errors only. Call before they are imported."""
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)


def configure(
    level: str, *, form: Literal["text", "json"] = "text", process: str = "", data_dir: Path | None = None
) -> None:
    """Set up this process' log. Libraries speak only from warnings on. With `data_dir` the level follows
    what `write_level` says for that folder.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormat(process) if form == "json" else TextFormat())
    handler.addFilter(_Ids())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    _set_level(level)
    if data_dir is not None:
        follower = LevelFollower(data_dir, level)
        threading.Thread(target=follower.run, name="log-level", daemon=True).start()


def read_level(data_dir: Path) -> str | None:
    """The level that was asked for while the service runs; None: each process' own."""
    try:
        text = (data_dir / LEVEL_FILE).read_text().strip()
    except OSError:
        return None
    return text if text in LEVELS else None


def write_level(data_dir: Path, level: str | None) -> None:
    """Have every process on that folder log from this level on, within a moment; None: from its own."""
    path = data_dir / LEVEL_FILE
    if level is None:
        path.unlink(missing_ok=True)
        return
    draft = path.with_name(path.name + ".new")
    draft.write_text(level)
    draft.replace(path)


class LevelFollower:
    """Keeps this process' level at what is asked for in a data folder; `own` where nothing is."""

    def __init__(self, data_dir: Path, own: str) -> None:
        self._data_dir = data_dir
        self._own = self._now = own

    def look(self) -> None:
        """Take over what is asked for now."""
        wanted = read_level(self._data_dir) or self._own
        if wanted != self._now:
            self._now = wanted
            _set_level(wanted)
            logging.getLogger(__name__).warning("log_level_changed to=%s", wanted)

    def run(self) -> None:
        """Look for ever."""
        while True:
            self.look()
            time.sleep(LOOK_SECONDS)


def _set_level(level: str) -> None:
    for name in OURS:
        logging.getLogger(name).setLevel(level.upper())
