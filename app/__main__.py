"""Entry point of the `framefit` command; `python -m app` is the same."""

from app.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
