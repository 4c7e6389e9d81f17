"""Reads the whole corpus of pictures and compares with independent readers: `python tests/bench/pictures.py`.

Each picture must be read right or be refused with the right code. libvips and ImageMagick are the independent
readers (Debian: libvips-tools, imagemagick). `--of FOLDER` judges the service in another checkout.
"""

import argparse
import json
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).with_name("results") / "pictures.json"


def run() -> dict[str, Any]:
    """Judge every case: how many there are of each format, and what is wrong."""
    import independent_reader
    import picture_corpus

    cases = picture_corpus.cases()
    with ThreadPoolExecutor(2) as threads:
        faults = dict(
            zip([case.name for case in cases], threads.map(independent_reader.fault, cases), strict=True)
        )
    kinds = Counter(case.name.split()[0].strip(",") for case in cases)
    return {
        "pictures": len(cases),
        "right": sum(fault is None for fault in faults.values()),
        "refused_rightly": sum(case.code is not None and faults[case.name] is None for case in cases),
        "compared_with": dict(
            Counter(case.reader or "known colours only" for case in cases if case.code is None)
        ),
        "formats": {kind: count for kind, count in kinds.most_common() if count > 1},
        "faults": {name: fault for name, fault in faults.items() if fault is not None},
    }


def main() -> None:
    """Run, print and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--of", type=Path, default=ROOT, help="the checkout whose service is judged")
    parser.add_argument("--before", type=Path, help="a report of --of, whose faults are kept for comparison")
    options = parser.parse_args()
    sys.path[:0] = [str(options.of), str(ROOT / "tests" / "unit" / "app" / "media")]
    report = run()
    if options.before is not None:
        report["faults_before"] = json.loads(options.before.read_text())["faults"]
    sys.stdout.write(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    if options.of == ROOT:
        RESULTS.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
