"""Replaces a small file as a whole: another process reads the old content or the new one, never a part."""

from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """Write `text` to the file in UTF-8. Its folder must exist. Not synced. Raises `OSError`."""
    draft = path.with_name(f"{path.name}.new")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
