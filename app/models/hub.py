"""What goes wrong between this machine and the Hugging Face hub, in words for the person who can mend it.

Owns the translation of the hub client's errors, which diffusers wraps in its own. Importing this module
imports no client.
"""

import errno
from collections.abc import Iterator

_NO_WAY = {"ConnectError", "ConnectTimeout", "ReadTimeout", "ProxyError", "LocalEntryNotFoundError"}
_ELSEWHERE = (
    "download it where there is a network and name its folder as `source` of the model in the file that "
    "FRAMEFIT_MODELS_FILE names"
)


def explain_hub_error(error: BaseException, source: str, revision: str | None = None) -> str:
    """Why `source`, a hub id, could not be read; the client's own words where nothing better is known."""
    for cause in _causes(error):
        words = _named(cause, source, revision)
        if words is not None:
            return words
    return f"{source}: {error}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what led to it, the first cause last."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def _named(error: BaseException, source: str, revision: str | None) -> str | None:
    """By the names of the client's classes: subclasses before their parents."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if "GatedRepoError" in names:
        return (
            f"{source} is gated: accept its licence on its page at the Hugging Face hub and set HF_TOKEN "
            "to a token that may read it"
        )
    if "RepositoryNotFoundError" in names:
        return f"the Hugging Face hub has no {source}, or it is private and HF_TOKEN does not let it be read"
    if "RevisionNotFoundError" in names:
        return f"{source} has no revision {revision!r} at the Hugging Face hub"
    if "OfflineModeIsEnabled" in names:
        return f"{source} is not on this machine and HF_HUB_OFFLINE is set: unset it, or {_ELSEWHERE}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{source}: the disk is full (HF_HOME says where downloads are kept)"
    if names & _NO_WAY:
        return f"{source} is not on this machine and the Hugging Face hub cannot be reached: {_ELSEWHERE}"
    return None
