"""A model before its VAE changed: what decodes the latents of that version, and which defaults it had.

Must not import torch.
"""

from app.models.entries import ModelEntry


def former_entry(entry: ModelEntry) -> ModelEntry | None:
    """The entry of the model's former version; None if there was none."""
    former = entry.former
    if former is None:
        return None
    told = {
        "source": former.source,
        "pipeline": former.pipeline,
        "temporal_ratio": former.temporal_ratio,
        "defaults": former.defaults,
    }
    return entry.model_copy(update={**told, "frame_step": None, "call": {}, "former": None})


def entry_for_latents(entry: ModelEntry, channels: int) -> ModelEntry:
    """The entry of the version that made latents of so many channels."""
    former = former_entry(entry)
    made_it = entry.former is not None and entry.former.latent_channels == channels
    return former if former is not None and made_it else entry
