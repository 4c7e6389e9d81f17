"""Renew the snapshot of the public interface: `python tests/contract/renew.py "the entry of CHANGELOG.md"`.

The entry tells users of the change. It is recorded beside the files that changed, and the tests fail when it
does not stand in CHANGELOG.md.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import public_interface


def main() -> None:
    """Collect the interface, write what changed, name it."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    collected = {name: collect() for name, collect in public_interface.COLLECTORS.items()}
    collected[public_interface.ANSWERS] = public_interface.served_answers()
    try:
        renewed = public_interface.record(collected, sys.argv[1])
    except ValueError as error:
        sys.exit(str(error))
    sys.stdout.write(
        "".join(f"renewed tests/contract/snapshot/{name}\n" for name in renewed) or "no change\n"
    )


if __name__ == "__main__":
    main()
