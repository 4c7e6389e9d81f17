"""Images in: every kind that is taken comes out upright, RGB, 8 bits; everything else is refused before it
costs much.
"""

import io
import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import picture_corpus
import pytest
from PIL import Image, ImageCms

from app.media.images import ImageLimits, ImageRejected, check_image, open_image
from app.media.pictures import decode_process
from app.media.pictures.colour import STRIP_PIXELS

ROOT = Path(__file__).parents[4]
Picture = Callable[..., bytes]


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("JPEG", "RGB"),
        ("JPEG", "L"),
        ("JPEG", "CMYK"),
        ("PNG", "RGB"),
        ("PNG", "RGBA"),
        ("PNG", "LA"),
        ("PNG", "P"),
        ("PNG", "1"),
        ("WEBP", "RGB"),
        ("WEBP", "RGBA"),
    ],
)
def test_every_kind_of_picture_becomes_rgb(make_picture: Picture, kind: str, mode: str) -> None:
    data = make_picture(kind, (40, 24), mode)
    info = check_image(data, ImageLimits())
    assert (info.format, info.width, info.height) == (kind, 40, 24)
    image = open_image(data)
    assert (image.mode, image.size) == ("RGB", (40, 24))
    assert image.convert("L").getextrema()[0] < 60, "dark parts stay dark"


def test_sixteen_bits_of_grey_keep_their_shades() -> None:
    file = io.BytesIO()
    shades = Image.linear_gradient("L").convert("I").point(lambda value: value * 257)
    shades.convert("I;16").save(file, "PNG")
    values = open_image(file.getvalue()).convert("L")
    assert values.getextrema() == (0, 255)
    assert values.getpixel((0, 128)) == 128


def test_transparency_is_laid_over_white() -> None:
    file = io.BytesIO()
    Image.new("RGBA", (16, 16), (255, 0, 0, 0)).save(file, "PNG")
    assert open_image(file.getvalue()).getpixel((3, 3)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("orientation", "size"), [(1, (40, 24)), (3, (40, 24)), (6, (24, 40)), (8, (24, 40))]
)
def test_a_photo_taken_sideways_is_rotated_upright(orientation: int, size: tuple[int, int]) -> None:
    image = Image.new("RGB", (40, 24))
    exif = image.getexif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif)
    info = check_image(file.getvalue(), ImageLimits())
    assert (info.width, info.height) == open_image(file.getvalue()).size == size


def test_what_is_checked_can_be_opened_and_what_is_cut_cannot(make_picture: Picture) -> None:
    for kind in ("JPEG", "PNG", "WEBP"):
        data = make_picture(kind, (200, 120))
        check_image(data, ImageLimits())
        for cut in (len(data) // 2, len(data) - 40):
            with pytest.raises(ImageRejected) as refusal:
                check_image(data[:cut], ImageLimits())
            assert refusal.value.code in ("broken_image", "not_an_image")


def test_limits_hold_for_sides_and_for_pixels(make_picture: Picture) -> None:
    data = make_picture("PNG", (100, 50))
    check_image(data, ImageLimits(max_pixels=5000, max_side=100))
    for limits in (ImageLimits(max_pixels=4999), ImageLimits(max_side=99)):
        with pytest.raises(ImageRejected, match="100 x 50"):
            check_image(data, limits)


def test_a_bomb_costs_no_memory() -> None:
    program = """
import io, resource, struct, zlib
from app.media.images import ImageLimits, ImageRejected, check_image
def chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
rows = zlib.compress(bytes(50_000_000), 9)
header = struct.pack('>IIBBBBB', 30_000, 30_000, 8, 2, 0, 0, 0)
bomb = b'\\x89PNG\\r\\n\\x1a\\n' + chunk(b'IHDR', header) + chunk(b'IDAT', rows) + chunk(b'IEND', b'')
check_image  # imported, so that only the bomb counts
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    check_image(bomb, ImageLimits())
except ImageRejected as refusal:
    print(refusal.code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=500, check=True
    )
    code, grown_kib = done.stdout.split()
    assert code == "image_too_large"
    assert int(grown_kib) < 8 * 1024


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_a_large_picture_is_converted_in_strips_without_a_seam(mode: str) -> None:
    """Larger than a strip of rows, and not a multiple of it."""
    size = 700, STRIP_PIXELS // 700 + 333
    rows = Image.linear_gradient("L").resize(size).convert(mode)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    file = io.BytesIO()
    rows.save(file, "PNG", icc_profile=None if mode == "L" else profile, compress_level=1)
    shown = open_image(file.getvalue()).convert("L").resize((1, size[1]), Image.Resampling.BOX)
    seen = list(shown.tobytes())
    assert seen[-1] > 250 > 5 > seen[0]
    assert max(abs(one - next_) for one, next_ in itertools.pairwise(seen)) <= 1


@pytest.mark.parametrize(
    ("profile", "ignored"),
    [(picture_corpus.profile_of("p3"), ()), (b"no profile", ("colour profile",)), (None, ())],
)
def test_a_profile_that_is_no_use_is_ignored_and_named(
    profile: bytes | None, ignored: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG", icc_profile=profile)
    assert check_image(file.getvalue(), ImageLimits()).ignored == ignored
    open_image(file.getvalue())
    assert ("image_metadata_ignored" in caplog.text) == bool(ignored)


@pytest.mark.parametrize("kind", ["TIFF", "AVIF"])
def test_an_end_of_the_decoders_process_is_a_refusal(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Here the process runs out of the memory that it may take."""
    monkeypatch.setattr(decode_process, "MEMORY_BYTES", 2**20)
    file = io.BytesIO()
    Image.new("RGB", (3000, 3000)).save(file, kind)
    for handle in (lambda data: check_image(data, ImageLimits()), open_image):
        with pytest.raises(ImageRejected) as refusal:
            handle(file.getvalue())
        assert refusal.value.code == "broken_image"
