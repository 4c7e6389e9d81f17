"""Which pipelines need decoded frames before their call ends, and what each does with them.

`capture` refuses these by name; `enable` and `decoding_in_place` serve them. Imports nothing, so that
processes without torch can ask.
"""

from collections.abc import Mapping

_CHECKED = "runs a safety checker on the decoded frames"
_JOINED = "joins and trims decoded sections"

NEEDS_REAL_FRAMES: Mapping[str, str] = {
    "ChronoEditPipeline": "selects among decoded frames",
    "Cosmos2VideoToWorldPipeline": _CHECKED,
    "Cosmos2_5_PredictBasePipeline": _CHECKED,
    "Cosmos2_5_TransferPipeline": _CHECKED,
    "Cosmos3OmniPipeline": _CHECKED,
    "CosmosVideoToWorldPipeline": _CHECKED,
    "HeliosPipeline": _JOINED,
    "HeliosPyramidPipeline": _JOINED,
    "HunyuanVideoFramepackPipeline": "joins decoded sections inside its denoising loop",
    "LTXI2VLongMultiPromptPipeline": "blends decoded tiles itself",
    "WanAnimatePipeline": "feeds decoded frames back into its denoising loop",
}


def needs_real_frames(pipe_class: str) -> str | None:
    """What this class of pipeline does with decoded frames before its call ends; None if nothing is known."""
    return NEEDS_REAL_FRAMES.get(pipe_class)
