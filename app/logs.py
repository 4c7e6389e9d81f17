"""How every process of the service writes its log: one line an event, to standard error."""

import logging
import sys


def configure(level: str) -> None:
    """Set up this process' log. Libraries speak only from warnings on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in ("app", "adaptive", "uvicorn.error"):
        logging.getLogger(name).setLevel(level.upper())
