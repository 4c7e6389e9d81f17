"""Requests that want to hurt, and a process that takes them all: `hostile.py FOLDER` prints their answers.

The process may grow by `GROWTH_BYTES` in all; what needs more fails there as it would on a full machine.
"""

import io
import json
import os
import resource
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import picture_corpus as corpus
from PIL import Image

MIB = 2**20
GROWTH_BYTES = 600 * MIB

Request = tuple[str, bytes]  # content type, body


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *, extra: bytes = b"", inflated: int = 64) -> bytes:
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(bytes(inflated), 9))
    return b"\x89PNG\r\n\x1a\n" + head + extra + pixels + png_chunk(b"IEND", b"")


def saved(kind: str, size: tuple[int, int] = (64, 64), **options: object) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (9, 9, 9)).save(file, kind, **options)
    return file.getvalue()


def whole_png(extra: bytes) -> bytes:
    """A PNG that has all its pixels."""
    return png(64, 64, extra=extra, inflated=64 * (1 + 3 * 64))


def gif(frame: bytes = struct.pack("<HHHHB", 0, 0, 64, 64, 0), extra: bytes = b"") -> bytes:
    return b"GIF89a" + struct.pack("<HHBBB", 64, 64, 0, 0, 0) + extra + b"," + frame + b"\2\2\x4c\1\0;"


def tiff(entries: dict[int, tuple[int, list[int]]], pixels: bytes | None = None) -> bytes:
    """A grey TIFF of 64 x 64 with these entries, and perhaps other bytes as pixels."""
    rows = np.zeros((64, 64, 1), np.uint8)
    if pixels is None:
        return corpus.tiff(rows, 1, extra=entries)
    plain = corpus.tiff(rows, 1, extra={**entries, 279: (4, [len(pixels)]), 273: (4, [8 + 4096 + 1000])})
    return plain.ljust(8 + 4096 + 1000, b"\0") + pixels


def bmp(sides: bytes) -> bytes:
    data = saved("BMP")
    return data[:18] + sides + data[26:]


def avif(claim: tuple[int, int], size: tuple[int, int] = (64, 64)) -> bytes:
    """An AVIF of a size that claims another."""
    data = saved("AVIF", size, speed=10)
    at = data.index(b"ispe") + 8
    return data[:at] + struct.pack(">II", *claim) + data[at + 8 :]


def webp(chunk: bytes, size: tuple[int, int], more: bytes = b"") -> bytes:
    """A header of that kind which claims that size, and little else."""
    width, height = size
    payload = {
        b"VP8X": bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little"),
        b"VP8L": b"\x2f" + ((width - 1) | (height - 1) << 14).to_bytes(4, "little") + bytes(20),
        b"VP8 ": b"\x50\x00\x00\x9d\x01\x2a" + struct.pack("<HH", width, height) + bytes(20),
    }[chunk]
    body = b"WEBP" + chunk + struct.pack("<I", len(payload)) + payload + more
    return b"RIFF" + struct.pack("<I", len(body)) + body


def jpeg_with(head: bytes = b"", scans: int = 0) -> bytes:
    data = saved("JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:20] + head + data[20:-2] + scan * scans + data[-2:]


def form(image: bytes, name: str = "photo.png", **fields: str) -> Request:
    parts = [
        f'--b\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode()
        for key, value in {"prompt": "x", **fields}.items()
    ]
    file = f'--b\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'.encode()
    return "multipart/form-data; boundary=b", b"".join([*parts, file, image, b"\r\n--b--\r\n"])


def multipart(inner: bytes, boundary: str = "b") -> Request:
    return f"multipart/form-data; boundary={boundary}", inner


def as_json(body: bytes) -> Request:
    return "application/json", body


SVG = b"""<?xml version="1.0"?><!DOCTYPE s [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>"""
FIELD = b'--b\r\nContent-Disposition: form-data; name="p%d"\r\n\r\nx\r\n'

# What is sent, and the one answer it may get.
CASES: dict[str, tuple[Callable[[], Request], int, str]] = {
    "a PNG bomb": (lambda: form(png(30_000, 30_000, inflated=50 * MIB)), 413, "image_too_large"),
    "a WebP bomb, extended": (lambda: form(webp(b"VP8X", (16_000, 16_000))), 413, "image_too_large"),
    "a WebP bomb, lossless": (lambda: form(webp(b"VP8L", (16_000, 16_000))), 413, "image_too_large"),
    "a WebP bomb, lossy": (lambda: form(webp(b"VP8 ", (16_000, 16_000))), 413, "image_too_large"),
    "a GIF bomb": (
        lambda: form(b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(99)),
        422,
        "not_an_image",
    ),
    "a GIF bomb with a frame": (
        lambda: form(gif(struct.pack("<HHHHB", 0, 0, 65535, 65535, 0))),
        413,
        "image_too_large",
    ),
    "a GIF bomb in a corner": (
        lambda: form(gif(struct.pack("<HHHHB", 65535, 65535, 9, 9, 0))),
        413,
        "image_too_large",
    ),
    "a flood of GIF extensions": (
        lambda: form(gif(extra=b"!\xfe\0" * 10_000_000)),
        422,
        "image_too_complex",
    ),
    "a flood of GIF blocks": (
        lambda: form(gif(extra=b"!\xfe" + b"\1a" * 15_000_000)),
        422,
        "image_too_complex",
    ),
    "a flood of WebP chunks": (
        lambda: form(webp(b"VP8X", (64, 64), b"abcd\0\0\0\0" * 4_000_000)),
        422,
        "image_too_complex",
    ),
    "a TIFF bomb": (lambda: form(tiff({256: (4, [30_000]), 257: (4, [30_000])})), 413, "image_too_large"),
    "a TIFF of millions of strips": (
        lambda: form(tiff({273: (4, [8] * 5_000_000)})),
        422,
        "image_too_complex",
    ),
    "a TIFF tile of 3 GB": (
        lambda: form(tiff({322: (4, [32_768]), 323: (4, [32_768]), 324: (4, [8])})),
        422,
        "image_too_complex",
    ),
    "a TIFF strip that inflates to 99 MB": (
        lambda: form(tiff({259: (3, [8])}, zlib.compress(bytes(99 * MIB), 9))),
        202,
        "",
    ),
    "a TIFF that leads to itself": (lambda: form(tiff({34665: (4, [8]), 330: (4, [8])})), 202, ""),
    "a flood of HEIC boxes": (
        lambda: form(corpus.heic() + corpus.box(b"free") * 3_000_000),
        422,
        "image_too_complex",
    ),
    "a flood of HEIC items": (
        lambda: form(
            corpus.box(b"ftyp", b"heic", bytes(4))
            + corpus.full(
                b"meta", 0, 0, corpus.full(b"iinf", 0, 0, bytes(2), corpus.box(b"infe") * 3_000_000)
            )
        ),
        422,
        "image_too_complex",
    ),
    "a HEIC bomb": (lambda: form(corpus.heic(claim=(30_000, 30_000))), 413, "image_too_large"),
    "a HEIC of the same tile a thousand times": (
        lambda: form(corpus.heic(grid=True, tiles=2000)),
        422,
        "image_too_complex",
    ),
    "an AVIF bomb": (lambda: form(avif((30_000, 30_000))), 413, "image_too_large"),
    "an AVIF that is larger than it says": (lambda: form(avif((64, 64), (3000, 3000))), 202, ""),
    "a BMP bomb": (
        lambda: form(bmp(struct.pack("<ii", 30_000, 30_000))),
        413,
        "image_too_large",
    ),
    "a picture of 1 x 100,000": (lambda: form(png(1, 100_000)), 413, "image_too_large"),
    "a picture of 100,000 x 1": (lambda: form(png(100_000, 1)), 413, "image_too_large"),
    "a picture of 1 x 1": (lambda: form(saved("PNG", (1, 1))), 422, "image_too_small"),
    "a picture of no size": (lambda: form(png(0, 0)), 422, "not_an_image"),
    "an SVG with an entity": (lambda: form(SVG), 422, "not_an_image"),
    "a script that says it is a GIF": (lambda: form(b"GIF89a=1;alert(1)//"), 422, "not_an_image"),
    "a PDF": (lambda: form(b"%PDF-1.7\n" + saved("PNG")), 422, "not_an_image"),
    "a zip": (lambda: form(b"PK\x03\x04" + bytes(1000)), 422, "not_an_image"),
    "nothing": (lambda: form(b""), 422, "missing_image"),
    "a PNG without end": (lambda: form(saved("PNG", (640, 640))[:300]), 422, "broken_image"),
    "a text bomb in a PNG": (
        lambda: form(whole_png(png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(99 * MIB), 9)))),
        202,
        "",
    ),
    "a profile bomb in a PNG": (
        lambda: form(whole_png(png_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(99 * MIB), 9)))),
        202,
        "",
    ),
    "a flood of PNG chunks": (
        lambda: form(png(64, 64, extra=png_chunk(b"aaAa", b"") * 2_000_000)),
        422,
        "image_too_complex",
    ),
    "a flood of JPEG comments": (
        lambda: form(jpeg_with(b"\xff\xfe\0\x02" * 5_000_000)),
        422,
        "image_too_complex",
    ),
    "a flood of JPEG fill bytes": (lambda: form(jpeg_with(b"\xff" * 20_000_000)), 422, "image_too_complex"),
    "a flood of JPEG scans": (lambda: form(jpeg_with(scans=100_000)), 422, "image_too_complex"),
    "10,000 parts": (
        lambda: multipart(b"".join(FIELD % n for n in range(10_000)) + b"--b--"),
        400,
        "too_many_parts",
    ),
    "a part with endless headers": (
        lambda: multipart(b"--b\r\n" + b"a:b\r\n" * 5_000_000),
        400,
        "bad_multipart",
    ),
    "a part with an endless header": (
        lambda: multipart(b"--b\r\nX: " + b"a" * 30_000_000),
        400,
        "bad_multipart",
    ),
    "an endless boundary": (lambda: multipart(b"--b\r\n", "b" * 5000), 400, "bad_multipart"),
    "a body without end": (lambda: multipart(b"--b\r\n" + b"\r\n--" * 7_000_000), 400, "bad_multipart"),
    "the image twice": (
        lambda: (lambda kind, body: (kind, body[:-7] + body))(*form(saved("PNG"))),
        422,
        "duplicate_field",
    ),
    "a prompt of 1 MB": (lambda: form(saved("PNG"), prompt="x" * MIB), 422, "field_too_large"),
    "a prompt of 1 MB in JSON": (lambda: as_json(b'{"prompt":"' + b"x" * MIB + b'"}'), 422, "invalid_prompt"),
    "a body of 33 MB": (lambda: form(bytes(33 * MIB)), 413, "body_too_large"),
    "a body of 200 MB": (lambda: form(bytes(200 * MIB)), 413, "body_too_large"),
    "30 MB of empty lists": (
        lambda: as_json(b'{"prompt":[' + b"[]," * 10_000_000 + b"1]}"),
        400,
        "json_too_complex",
    ),
    "30 MB of empty objects": (
        lambda: as_json(b'{"prompt":[' + b"{}," * 10_000_000 + b"1]}"),
        400,
        "json_too_complex",
    ),
    "JSON a million deep": (lambda: as_json(b'{"a":' * 1_000_000), 400, "json_too_complex"),
    "JSON ten thousand deep": (lambda: as_json(b"[" * 10_000), 400, "bad_json"),
    "a number of 30 MB": (lambda: as_json(b'{"seed":' + b"9" * 30_000_000 + b"}"), 400, "bad_json"),
    "half a surrogate pair": (lambda: as_json(b'{"prompt":"\\ud800"}'), 422, "invalid_prompt"),
    "a prompt that is not UTF-8": (
        lambda: multipart(FIELD.replace(b"x", b"\xff") % 1 + b"--b--\r\n"),
        422,
        "not_utf8",
    ),
    "a key that reaches into Python": (
        lambda: as_json(b'{"prompt":"x","__class__":1}'),
        422,
        "unknown_field",
    ),
}


def processor_seconds() -> float:
    """The time that this process and its ended children have used."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def main(folder: Path) -> None:
    from starlette.testclient import TestClient

    from app.api import create_app
    from app.config import Settings

    requests = {name: build() for name, (build, _, _) in CASES.items()}
    with TestClient(create_app(Settings(data_dir=folder)), raise_server_exceptions=False) as client:
        client.post("/generate", content=form(saved("PNG"))[1])
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + GROWTH_BYTES, used + GROWTH_BYTES))
        answers = {}
        for name, (kind, body) in requests.items():
            started = processor_seconds()
            answer = client.post("/generate", content=body, headers={"Content-Type": kind})
            answers[name] = [answer.status_code, answer.json().get("code", ""), processor_seconds() - started]
    sys.stdout.write(json.dumps(answers))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
