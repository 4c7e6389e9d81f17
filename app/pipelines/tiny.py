"""The `tiny` model: a complete, small LTX image-to-video pipeline with random weights, built by code.

It runs the whole service on two CPU cores without a download. Pipeline class, tokenizer, text encoder,
transformer, scheduler and VAE topology are those of the real model (32x32 pixels and 8 frames to a latent)
with few channels. Its output is noise. Owns the numbers below and the atomic creation of the folder; must not
know jobs or settings.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

# Increase when a change below changes what is built, so that folders of an older build are replaced.
BUILD = 1

VAE_CONFIG: dict[str, Any] = {
    "latent_channels": 16,
    "block_out_channels": (8, 16, 32, 32),
    "decoder_block_out_channels": (16, 32, 48, 48),
    "layers_per_block": (1, 1, 1, 1, 1),
    "decoder_layers_per_block": (1, 1, 1, 1, 1),
    "patch_size": 4,
    "decoder_causal": False,
}
TRANSFORMER_CONFIG: dict[str, Any] = {
    "in_channels": 16,
    "out_channels": 16,
    "num_attention_heads": 4,
    "attention_head_dim": 16,
    "cross_attention_dim": 64,
    "num_layers": 2,
    "caption_channels": 32,
}
TEXT_ENCODER_CONFIG: dict[str, Any] = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 1,
    "num_heads": 4,
    "dropout_rate": 0.0,
    "feed_forward_proj": "gated-gelu",
}
_SPECIAL_PIECES = ("<pad>", "</s>", "<unk>")
_LETTERS = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,!?'-"
_SEED = 20_240


def build(folder: Path) -> Path:
    """Build the model at `folder` unless this build exists there; returns `folder`.

    Atomic: a killed process or two concurrent builders leave a complete folder or none.
    """
    if _stamp(folder) == str(BUILD):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _pipeline().save_pretrained(work)
        (work / "build").write_text(str(BUILD))
        work.chmod(0o755)
        _publish(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _stamp(folder: Path) -> str | None:
    try:
        return (folder / "build").read_text()
    except FileNotFoundError:
        return None


def _publish(work: Path, folder: Path) -> None:
    if folder.exists():  # an older build: a rename cannot replace a folder that is not empty
        outdated = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
        folder.rename(outdated / folder.name)
        shutil.rmtree(outdated, ignore_errors=True)
    try:
        work.rename(folder)
    except OSError:
        if _stamp(folder) != str(BUILD):  # else another process was faster and built the same
            raise


def _pipeline() -> Any:
    import torch
    from diffusers import (
        AutoencoderKLLTXVideo,
        FlowMatchEulerDiscreteScheduler,
        LTXImageToVideoPipeline,
        LTXVideoTransformer3DModel,
    )
    from transformers import T5Config, T5EncoderModel, T5TokenizerFast

    pieces = [*_SPECIAL_PIECES, *_LETTERS]
    tokenizer = T5TokenizerFast(vocab=[(piece, -float(i)) for i, piece in enumerate(pieces)], extra_ids=0)
    tokenizer.model_max_length = 128
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        vae = AutoencoderKLLTXVideo(**VAE_CONFIG)
        transformer = LTXVideoTransformer3DModel(**TRANSFORMER_CONFIG)
        text_encoder = T5EncoderModel(T5Config(vocab_size=len(pieces), **TEXT_ENCODER_CONFIG))
    with torch.no_grad():
        # The output of an untrained decoder is nearly grey; scale it to the range of a video.
        vae.decoder.conv_out.conv.weight.mul_(4.0)
    return LTXImageToVideoPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        transformer=transformer.eval(),
    )
