"""The error of a model that cannot be used. Imports nothing: every part of `app.models` may raise it."""

_LONGEST = 2000


def printable(text: str) -> str:
    """The text on one line: names in files may hold anything, also line ends and codes of terminals."""
    line = " ".join(text.split())
    shown = line if len(line) <= _LONGEST else f"{line[:_LONGEST]} ..."
    return "".join(each if each.isprintable() else "?" for each in shown)


class ModelUnavailable(Exception):
    """The model or a library it needs is missing or damaged; the message says what to do.

    `transient`: it may become available without a change, for example when the hub answers again.
    """

    def __init__(self, message: str, *, transient: bool = False) -> None:
        self.transient = transient
        super().__init__(printable(message))
