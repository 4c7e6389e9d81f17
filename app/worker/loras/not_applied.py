"""The error of a LoRA that cannot be applied."""

from app.jobs import Json


class LoraNotApplied(Exception):
    """A job's LoRA cannot be applied. `code` is that of the failed job."""

    def __init__(self, code: str, message: str, data: Json) -> None:
        self.code = code
        self.data = data
        super().__init__(message)
