"""Reads the header of a file of weights, whatever its format."""

from pathlib import Path

from app.models.files import gguf, safetensors
from app.models.files.sources import ByteSource, LocalFile
from app.models.files.stored import DamagedFile, WeightsHeader

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
# PyTorch's `torch.save`: a zip archive, and the pickles of before 2020. Reading one can run code.
_PICKLES = (b"PK\x03\x04", b"\x80\x02")
# What a download often is in place of the file, by its first bytes in lower case.
_FOREIGN = (
    (b"<!doctype", "an HTML page, such as a site's error or its login"),
    (b"<html", "an HTML page, such as a site's error or its login"),
    (b"<?xml", "an XML document, such as a store's error"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x89png", "a PNG picture"),
)


def read_header(file: Path | ByteSource) -> WeightsHeader:
    """The header of a safetensors or GGUF file. Raises `DamagedFile`, and `OSError` if it cannot be read."""
    source = LocalFile(file) if isinstance(file, Path) else file
    begin = source.read(0, len(LFS_POINTER))
    if begin.startswith(LFS_POINTER):
        raise DamagedFile(pointer_text(source.size))
    if begin.startswith(gguf.MAGIC):
        return gguf.read(source)
    if begin.startswith(_PICKLES):
        raise DamagedFile("is a PyTorch pickle, which could run code: get the model as safetensors or GGUF")
    for start, kind in _FOREIGN:
        if begin.lower().startswith(start):
            raise DamagedFile(f"is no safetensors file but {kind}: get it again")
    if (
        begin.startswith(b"{")
        and begin[:8].isascii()
        and begin[1:8].decode().replace("\n", " ").isprintable()
    ):
        raise DamagedFile(
            "is no safetensors file but a JSON document: name the file, or the folder of its parts"
        )
    return safetensors.read(source)


def pointer_text(size: int) -> str:
    """What is wrong with a Git LFS pointer in place of a file, and what to do."""
    return f"is a Git LFS pointer of {size:,} bytes instead of the file: run `git lfs pull` in its folder"
