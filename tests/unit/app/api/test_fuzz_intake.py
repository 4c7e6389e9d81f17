"""Damaged pictures and forms are taken or refused, no more: `tests/bench/fuzz_intake.py`, in small."""

from tests.bench import fuzz_intake


def test_whatever_is_damaged_is_taken_or_refused_in_bounded_memory() -> None:
    report = fuzz_intake.run_limited(400)
    assert report["examples"] == 400
    assert {"taken", "broken_image", "not_an_image", "bad_multipart"} <= set(report["outcomes"])
    assert report["grown_mib"] < 400
    assert report["slowest_seconds"] < 5
