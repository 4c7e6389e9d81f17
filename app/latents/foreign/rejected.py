"""The refusal of a file of latents."""


class LatentsRejected(ValueError):
    """A file of latents cannot be decoded; the message says why and what would work, `code` is stable."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(f"{message} [{code}]")
