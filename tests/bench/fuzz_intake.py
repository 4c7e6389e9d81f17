"""Sends many damaged images and forms through intake: is each accepted or refused in bounded memory?
`python tests/bench/fuzz_intake.py` (a part of it runs in the tests).

Images of many kinds are damaged in their headers, sizes or data, and so are whole forms that hold an image.
Each is handled like a request: the form is parsed, the image is checked and, if it is accepted, decoded as a
worker would. All of this runs in a separate process with a limited address space, so that a request for too
much memory fails here as on a full machine.
"""

import argparse
import io
import json
import resource
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from app.api.problems import Problem  # noqa: E402
from app.api.requests.bodies import parse_body  # noqa: E402
from app.media.images import ImageLimits, ImageRejected, check_image, open_image  # noqa: E402

RESULTS = Path(__file__).with_name("results")
MIB = 2**20
# Of two large pictures at once, 64 million pixels each, one is decoded here; the limit is well below a bomb.
GROWTH_BYTES = 700 * MIB
HEAD = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
TAIL = b'\r\n--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nx\r\n--b--\r\n'


def pictures() -> list[bytes]:
    """Of every kind that is taken, and of some that are not."""
    picture = Image.linear_gradient("L").resize((48, 40))
    kinds: list[tuple[str, str, dict[str, Any]]] = [
        ("JPEG", "RGB", {}),
        ("JPEG", "L", {"progressive": True}),
        ("JPEG", "CMYK", {"quality": 95}),
        ("PNG", "RGBA", {}),
        ("PNG", "P", {"optimize": True}),
        ("PNG", "I;16", {}),
        ("WEBP", "RGB", {}),
        ("WEBP", "RGBA", {"lossless": True}),
        ("WEBP", "RGB", {"save_all": True, "append_images": [picture.convert("RGB")]}),
        ("GIF", "P", {}),
        ("BMP", "RGB", {}),
        ("TIFF", "RGB", {}),
    ]
    made = []
    for kind, mode, options in kinds:
        file = io.BytesIO()
        shown = picture.convert("I").convert("I;16") if mode == "I;16" else picture.convert(mode)
        shown.save(file, kind, **options)
        made.append(file.getvalue())
    return made


def _damage(
    body: bytes, edits: list[tuple[int, bytes, bool]], cut: int, repeat: tuple[int, int, int]
) -> bytes:
    """Bytes written over or put between, a stretch that comes several times, an end that is missing."""
    data = bytearray(body)
    for place, change, inserted in edits:
        at = place % len(data)
        data[at : at if inserted else at + len(change)] = change
    begin, length, times = repeat[0] % len(data), repeat[1], repeat[2]
    data[begin:begin] = bytes(data[begin : begin + length]) * times
    return bytes(data[: len(data) - cut % len(data)]) if cut else bytes(data)


# Sizes and lengths are what hurts: large numbers, as the formats write them.
NUMBERS = st.integers(0, 2**32 - 1).flatmap(
    lambda number: st.sampled_from([number.to_bytes(4, "big"), number.to_bytes(4, "little")])
)
PLACES = st.integers(0, 60) | st.integers(0, 3000)
CHANGES = st.binary(max_size=8) | NUMBERS


def _damaged(whole: list[bytes]) -> st.SearchStrategy[bytes]:
    return st.builds(
        _damage,
        st.sampled_from(whole),
        st.lists(st.tuples(PLACES, CHANGES, st.booleans()), min_size=1, max_size=6),
        st.just(0) | st.integers(0, 3000),
        st.tuples(PLACES, st.integers(1, 200), st.just(0) | st.integers(1, 300)),
    )


PICTURES = pictures()
FORMS = _damaged([HEAD + picture + TAIL for picture in PICTURES])
DAMAGED = st.one_of(FORMS, *[_damaged(PICTURES).map(lambda picture: HEAD + picture + TAIL)] * 3)


def take_in(body: bytes) -> str:
    """What becomes of a request: `taken`, or the code of the refusal. Anything else is raised."""
    try:
        parts = parse_body("multipart/form-data; boundary=b", body)
        image = parts.images.get("image")
        if image is None:
            return "missing_image"
        check_image(image, ImageLimits())
    except (Problem, ImageRejected) as refusal:
        return refusal.code
    # What was taken must not break the worker, hours later.
    assert open_image(image, ImageLimits()).mode == "RGB"
    return "taken"


def run(examples: int) -> dict[str, Any]:
    """Take in so many, in this process; how each ended, and by how many MiB the process grew at its peak."""
    outcomes: Counter[str] = Counter()
    slowest = 0.0

    @seed(7)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(DAMAGED)
    def one(body: bytes) -> None:
        nonlocal slowest
        started = time.process_time()
        outcomes[take_in(body)] += 1
        slowest = max(slowest, time.process_time() - started)

    take_in(HEAD + PICTURES[0] + TAIL)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    one()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {
        "examples": outcomes.total(),
        "outcomes": dict(outcomes.most_common()),
        "grown_mib": round(grown, 1),
        "slowest_seconds": round(slowest, 3),
    }


def run_limited(examples: int) -> dict[str, Any]:
    """As `run`, in a process with limited memory; fails where that process does."""
    command = [sys.executable, __file__, "--here", "--examples", str(examples)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr[-4000:]
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def _limit_memory() -> None:
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + GROWTH_BYTES, taken + GROWTH_BYTES))


def main() -> None:
    """Run, print and keep the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=20_000)
    parser.add_argument("--here", action="store_true", help="in this process, and only print")
    options = parser.parse_args()
    if options.here:
        _limit_memory()
        sys.stdout.write(json.dumps(run(options.examples)))
        return
    report = run_limited(options.examples)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "fuzz-intake.json").write_text(json.dumps(report, indent=1) + "\n")
    sys.stdout.write(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
