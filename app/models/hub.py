"""Explains errors of the Hugging Face hub client and what to do about them.

diffusers wraps the client's errors in its own. Importing this module does not import the client.
"""

import errno
import os
from collections.abc import Iterator

_UNREACHABLE = {"ConnectError", "ConnectTimeout", "ReadTimeout", "ProxyError", "LocalEntryNotFoundError"}
_BROKEN = {"RemoteProtocolError", "ReadError", "WriteError", "CloseError"}  # in the middle of an answer
_HUB = "https://huggingface.co"
_OTHER_MACHINE = (
    "download it on a machine with network access and set the model's `source` to its folder, in the file "
    "that FRAMEFIT_MODELS_FILE names"
)


def disable_telemetry() -> None:
    """Keep the hub's client from reporting its use, unless the operator has decided otherwise.

    The client reads the variable when it is imported.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def explain_hub_error(error: BaseException, source: str, revision: str | None = None) -> str:
    """Why `source`, a hub id, could not be read, and what to do. An unknown error keeps its own text."""
    for cause in _causes(error):
        explanation = _explanation(cause, source, revision)
        if explanation is not None:
            return explanation
    return f"{source}: {error}"


def may_pass(error: BaseException) -> bool:
    """Whether the error may pass by itself: the hub cannot be reached, or has a fault of its own."""
    causes = list(_causes(error))
    if any(kind.__name__ == "OfflineModeIsEnabled" for cause in causes for kind in type(cause).__mro__):
        return False
    names = {kind.__name__ for cause in causes for kind in type(cause).__mro__}
    statuses = [_status(cause) for cause in causes]
    is_broken = bool(names & (_UNREACHABLE | _BROKEN))
    return is_broken or any(status >= 500 or status == 429 for status in statuses)


def _status(error: BaseException) -> int:
    """The status of the answer that the error is about; 0 if there is none."""
    return int(getattr(getattr(error, "response", None), "status_code", 0) or 0)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and the chain of its causes, the first cause last."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def _explanation(error: BaseException, source: str, revision: str | None) -> str | None:
    """The text for one error by the name of its class; subclasses are tested before their parents."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if "GatedRepoError" in names:
        page = f"{os.environ.get('HF_ENDPOINT', _HUB).rstrip('/')}/{source}"
        return (
            f"{source} is gated: accept its licence at {page} and set HF_TOKEN to a token of that account "
            "with read access"
        )
    if "RepositoryNotFoundError" in names:
        return (
            f"the Hugging Face hub has no {source}, or it is private: correct the name, or set HF_TOKEN to a "
            "token with read access"
        )
    if "RevisionNotFoundError" in names:
        return f"{source} has no revision {revision!r} at the Hugging Face hub: correct the entry's revision"
    if "OfflineModeIsEnabled" in names:
        return f"{source} is not on this machine and HF_HUB_OFFLINE is set: unset it, or {_OTHER_MACHINE}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{source}: the disk is full; free space, or set HF_HOME to a folder on another disk"
    if _status(error) >= 500 or _status(error) == 429:
        return f"the Hugging Face hub answers for {source} with status {_status(error)}: try again later"
    if names & _BROKEN:
        return f"{source}: the connection to the Hugging Face hub breaks off again and again: try again later"
    if names & _UNREACHABLE:
        return f"{source} is not on this machine and the Hugging Face hub cannot be reached: {_OTHER_MACHINE}"
    return None
