"""Names weights that belong to no video model of Framefit, so that the reason can be said."""

from app.models.files.stored import WeightsHeader

# A part of a tensor's name that only this model has, and what the file is. The first that matches.
_MARKS = (
    ("conditioner.embedders.1.", "a Stable Diffusion XL checkpoint, which makes images"),
    ("input_blocks.1.1.time_stack.", "SVD in the layout of its authors: get the diffusers folder instead"),
    ("input_blocks.0.0.", "a Stable Diffusion checkpoint in the layout of its authors, which makes images"),
    ("motion_modules.", "an AnimateDiff motion module"),
    ("joint_blocks.0.x_block", "Stable Diffusion 3, which makes images"),
    ("single_stream_modulation.lin", "FLUX.2, which makes images"),
    ("double_blocks.0.img_attn.norm.key_norm", "FLUX, which makes images"),
    ("single_transformer_blocks.0.norm.linear", "FLUX or another image model of its kind"),
    ("vace_blocks.0.", "Wan VACE, which Framefit does not run"),
    ("motion_encoder.dec.", "Wan Animate, which Framefit does not run"),
    ("blocks.0.attn.qkv_x", "Mochi 1, which makes videos from text"),
    ("controlnet_cond_embedding.", "a ControlNet"),
    ("control_model.", "a ControlNet"),
)
_LANGUAGE_MODELS = frozenset({"t5", "t5encoder", "llama", "gemma3", "qwen2vl", "clip"})
_VIDEO_MODELS = frozenset({"wan", "ltxv", "hyvid", "cogvideo", "cosmos"})


def foreign_kind(header: WeightsHeader) -> str | None:
    """What a file is whose weights are no component of Framefit's models; None if nobody can tell."""
    name = header.metadata.get("general.architecture")
    if isinstance(name, str) and name not in _VIDEO_MODELS:
        if name in _LANGUAGE_MODELS:
            return f"a language model of another size (general.architecture is {name})"
        return f"a model of another kind (general.architecture is {name})"
    if any("individual_token_refiner." in tensor for tensor in header.tensors):
        return None  # HunyuanVideo shares names with FLUX
    for mark, kind in _MARKS:
        if any(mark in tensor for tensor in header.tensors):
            return kind
    if any(tensor.startswith(("model.layers.", "lm_head.")) for tensor in header.tensors):
        return "a language model"
    return None
