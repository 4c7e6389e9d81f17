"""`photo-pan` itself: it is small, and its weights are in closed form."""

from __future__ import annotations

from typing import Any


def build() -> Any:
    """The pipeline with its own weights."""
    from app.pipelines.photo_pan import weights

    return weights.pipeline()
