"""Text and image encoders, and their tokenizers, that several tiny pipelines share."""

from __future__ import annotations

from typing import Any

LETTERS = [*"▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,!?'-"]
TEXT_WIDTH = 16


def t5_tokenizer() -> Any:
    from transformers import T5TokenizerFast

    pieces = ["<pad>", "</s>", "<unk>", *LETTERS]
    tokenizer = T5TokenizerFast(vocab=[(piece, -float(i)) for i, piece in enumerate(pieces)], extra_ids=0)
    tokenizer.model_max_length = 32
    return tokenizer


def t5_config(kind: Any, **overrides: Any) -> Any:
    numbers = {"d_model": TEXT_WIDTH, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    return kind(**numbers, vocab_size=384, dropout_rate=0.0, feed_forward_proj="gated-gelu", **overrides)


def t5() -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(t5_config(T5Config))


def clip_text(vocabulary: int, **overrides: Any) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    numbers = {"hidden_size": TEXT_WIDTH, "intermediate_size": 32, "num_hidden_layers": 2}
    tokens = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "vocab_size": vocabulary}
    return CLIPTextModel(CLIPTextConfig(**numbers, **tokens, num_attention_heads=2, **overrides))


def clip_vision(with_projection: bool, side: int = 32) -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection

    numbers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPVisionConfig(**numbers, image_size=side, patch_size=16, projection_dim=TEXT_WIDTH)
    return (CLIPVisionModelWithProjection if with_projection else CLIPVisionModel)(config)


def clip_images(side: int = 32) -> Any:
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
