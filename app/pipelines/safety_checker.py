"""Makes sure that a pipeline's safety checker is there, is asked, and ends the job where it objects.

The Cosmos pipelines ask an object with the interface of `cosmos_guardrail.CosmosSafetyChecker`:
`check_text_safety(prompt) -> bool`, and `check_video_safety(frames) -> frames`, uint8 `[F, H, W, 3]`, None
for a video that must not be shown. Nothing here replaces the checker or answers for it. Must not import
torch.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from app.jobs import JobSpec

# The packages that each checked pipeline needs: its checker, and the one by which diffusers resizes its
# input.
PACKAGES = ("cosmos_guardrail", "torchvision")
CHECKED_PIPELINES = frozenset(
    {"Cosmos2VideoToWorldPipeline", "Cosmos2_5_PredictBasePipeline", "CosmosVideoToWorldPipeline"}
)


class ContentRefused(Exception):
    """The pipeline's safety checker does not allow the prompt or the video."""


class NotChecked(Exception):
    """The pipeline has no safety checker, or did not ask it: its frames must not be shown."""


def missing_packages(pipeline: str) -> str | None:
    """What a pipeline with a safety checker needs and does not find, as a sentence; None if nothing."""
    missing = [name for name in PACKAGES if pipeline in CHECKED_PIPELINES and not is_installed(name)]
    if not missing:
        return None
    return (
        f"{pipeline} shows each prompt and video to a safety checker and does not run without it: install "
        f"what is missing with `pip install {' '.join(missing)}` and start the service again. The checker "
        "downloads its own weights when the model is loaded"
    )


def is_installed(package: str) -> bool:
    """Whether Python finds the package."""
    return importlib.util.find_spec(package) is not None


@contextmanager
def checked(pipe: Any, _spec: JobSpec) -> Iterator[None]:
    """Watch the pipeline's checker during a call.

    Raises `ContentRefused` where the checker objects, and `NotChecked` if there is none, or if the call ends
    without it having seen the prompt and the video.
    """
    name, checker = type(pipe).__name__, getattr(pipe, "safety_checker", None)
    if checker is None:
        raise NotChecked(f"{name} has no safety checker, and is not run without one")
    asked: set[str] = set()
    check_text, check_video = checker.check_text_safety, checker.check_video_safety

    def text(prompt: str) -> Any:
        asked.add("prompt")
        allowed = check_text(prompt)
        if not allowed:
            raise ContentRefused(f"the safety checker of {name} does not allow this prompt")
        return allowed

    def video(frames: Any) -> Any:
        asked.add("video")
        shown = check_video(frames)
        if shown is None:
            raise ContentRefused(f"the safety checker of {name} does not allow the video that was made")
        return shown

    checker.check_text_safety, checker.check_video_safety = text, video
    try:
        yield
    finally:
        for method in ("check_text_safety", "check_video_safety"):
            vars(checker).pop(method)
    left = {"prompt", "video"} - asked
    if left:
        raise NotChecked(f"{name} did not show its safety checker the {' and the '.join(sorted(left))}")
