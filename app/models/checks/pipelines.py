"""Which pipelines cannot be served, whatever the files: an input or a package is missing.

Must not import torch.
"""

from collections.abc import Mapping

from app.models.entries import ModelEntry
from app.models.unavailable import ModelUnavailable
from app.pipelines.safety_checker import missing_packages

# What each pipeline needs that a request for a video from an image does not have.
NEEDS_MORE: Mapping[str, str] = {
    "Cosmos2_5_TransferPipeline": "it needs control clips (`controls`: edges, depth, segmentation or blur)",
    "Cosmos3OmniPipeline": "it answers with pictures, sound and actions in one, which are not read",
    "WanAnimatePipeline": "it needs two clips, `pose_video` and `face_video`, with pose and face",
}


def check_pipeline(entry: ModelEntry) -> None:
    """Raise `ModelUnavailable`, naming what the pipeline needs, if it cannot be served on this machine."""
    needed = NEEDS_MORE.get(entry.pipeline)
    if needed is not None:
        raise ModelUnavailable(
            f"{entry.pipeline} cannot be served: {needed}, and a request has an image and a prompt"
        )
    missing = missing_packages(entry.pipeline)
    if missing is not None:
        raise ModelUnavailable(missing)
