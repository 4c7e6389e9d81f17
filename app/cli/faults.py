"""Turns errors that a user can mend into one line and an exit status.

Other errors are faults of Framefit and keep their traceback. The modules that define the errors are imported
when an error is there, so that a command starts fast.
"""

from typing import Any

import typer
from typer.core import TyperGroup

CHANGE_A_VALUE, CANNOT_WORK = 2, 1


class Commands(TyperGroup):
    """The root of the commands: an error of any of them that a user can mend ends it in one line."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command of `ctx`."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            status = exit_status(error)
            if status is None:
                raise
            typer.secho(f"framefit: {one_line(error)}", err=True, fg=typer.colors.RED)
            raise typer.Exit(status) from None


def exit_status(error: Exception) -> int | None:
    """Return 2 if a setting or an option must be changed, 1 if something else is missing or broken.

    None for an error that no user can mend, and for those that the command line itself raises.
    """
    from app.config import ConfigError

    if isinstance(error, ConfigError):
        return CHANGE_A_VALUE
    return CANNOT_WORK if isinstance(error, _mendable()) else None


def one_line(error: Exception) -> str:
    """Return what the error says, without line breaks; of an `OSError`, the path and the fault."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


def _mendable() -> tuple[type[Exception], ...]:
    import httpx

    from adaptive.errors import AdaptiveError
    from app.client import ClientError
    from app.media.clips import ClipError
    from app.media.video import VideoWriteError
    from app.models.components import ModelUnavailable
    from app.models.forecast import Unfeasible
    from app.service.backup import BackupRefused
    from app.service.data_folder import DataFolderRefused
    from app.store import StoreError

    return (
        AdaptiveError,
        BackupRefused,
        ClientError,
        ClipError,
        DataFolderRefused,
        ModelUnavailable,
        OSError,
        StoreError,
        Unfeasible,
        VideoWriteError,
        httpx.HTTPError,
    )
