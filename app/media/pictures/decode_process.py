"""Decodes images of formats with large decoders in a process of its own, whose memory and time are limited.

HEIC, AVIF and TIFF files can ask their decoders for much more than the picture's size says, and an error in
such a decoder can end the process that it runs in. `python -m app.media.pictures.decode_process check|open
BYTES` reads a file from its standard input and writes one line of JSON, then the pixels.
"""

import json
import logging
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from PIL import Image

from app.media.pictures.containers import take_apart
from app.media.pictures.pixels import checked, upright
from app.media.pictures.rejection import ImageRejected, damaged

log = logging.getLogger(__name__)

FORMATS: Final = frozenset({"HEIC", "AVIF", "TIFF"})
MIB: Final = 2**20
# The largest picture that is taken, 64 megapixels, needs 1.1 GiB.
MEMORY_BYTES: Final = 1536 * MIB
CPU_SECONDS: Final = 60
WALL_SECONDS: Final = 300.0


def check_apart(data: bytes) -> tuple[tuple[int, int], tuple[str, ...]]:
    """As `checked`, in a process of its own."""
    head, _ = _run("check", data)
    return (head["size"][0], head["size"][1]), tuple(head["ignored"])


def open_apart(data: bytes) -> Image.Image:
    """As `upright`, in a process of its own."""
    head, pixels = _run("open", data)
    return Image.frombytes("RGB", (head["size"][0], head["size"][1]), pixels)


def _run(action: str, data: bytes) -> tuple[dict[str, Any], bytes]:
    command = [sys.executable, "-m", "app.media.pictures.decode_process", action, str(MEMORY_BYTES)]
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=WALL_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise damaged(f"its decoder did not end within {WALL_SECONDS:.0f} seconds") from None
    line, _, rest = done.stdout.partition(b"\n")
    if done.returncode or not line:
        last = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        log.warning("image_decoder_ended status=%d last_line=%s", done.returncode, last[:500])
        raise damaged(f"its decoder ended with {done.returncode}")
    head: dict[str, Any] = json.loads(line)
    if "code" in head:
        raise ImageRejected(head["code"], head["message"])
    return head, rest


def main(action: str, memory_bytes: int) -> None:
    """Handle one file."""
    data = sys.stdin.buffer.read()
    _limit(memory_bytes)
    pixels = b""
    try:
        contents = take_apart(data)
        del data
        head: dict[str, Any] = {}
        if action == "check":
            head["size"], head["ignored"] = checked(contents)
        else:
            image = upright(contents)
            head["size"] = image.size
            pixels = image.tobytes()
    except ImageRejected as error:
        head = {"code": error.code, "message": str(error)}
    sys.stdout.buffer.write(json.dumps(head).encode() + b"\n")
    sys.stdout.buffer.write(pixels)
    sys.stdout.buffer.flush()


def _limit(memory_bytes: int) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for kind, limit in ((resource.RLIMIT_AS, used + memory_bytes), (resource.RLIMIT_CPU, CPU_SECONDS)):
        _, hard = resource.getrlimit(kind)
        allowed = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (allowed, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
