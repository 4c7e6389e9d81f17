"""Attention inside one frame: queries are the frame's pixels, keys its pixels, the prompt and the image.

Owns the attention processors of the UNet's spatial transformers. Knows nothing of time: frames come folded in
the batch, so a slice of frames is computed exactly as the whole would be, in less memory.
"""

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import nn


class FrameAttention(nn.Module):
    """Scaled dot-product attention, at most `frames_per_slice` frames at a time (None: all at once)."""

    def __init__(self) -> None:
        super().__init__()
        self.frames_per_slice: int | None = None

    def forward(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`hidden_states` `[frames, pixels, C]`, `encoder_hidden_states` `[frames, tokens, D]` -> `[frames,
        pixels, C]`.

        A mask is never used by this model; one is refused with ValueError rather than ignored.
        """
        if attention_mask is not None:
            raise ValueError("DynamiCrafter's attention takes no mask")
        frames = len(hidden_states)
        size = self.frames_per_slice or frames
        if size >= frames:
            return self._attend(attn, hidden_states, encoder_hidden_states)
        result = torch.empty_like(hidden_states)
        for start in range(0, frames, size):
            part = slice(start, start + size)
            context = None if encoder_hidden_states is None else encoder_hidden_states[part]
            result[part] = self._attend(attn, hidden_states[part], context)
        return result

    def _attend(self, attn: Attention, pixels: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
        source = pixels if context is None else context
        query = _heads(attn.to_q(pixels), attn.heads)
        return _project_out(attn, _attention(query, attn.to_k(source), attn.to_v(source), attn.heads))


class ImageCrossAttention(FrameAttention):
    """Cross-attention to the prompt plus, with its own keys and values, to the image tokens.

    The first `text_tokens` of the context are the prompt's, the rest the image's. The image's part is
    weighted by `tanh(alpha) + 1` where `alpha` is learnt (the 256 model) and by 1 where it is not.
    """

    def __init__(self, context_dim: int, inner_dim: int, text_tokens: int, learnable_scale: bool) -> None:
        super().__init__()
        self.text_tokens = text_tokens
        self.to_k_ip = nn.Linear(context_dim, inner_dim, bias=False)
        self.to_v_ip = nn.Linear(context_dim, inner_dim, bias=False)
        self.alpha = nn.Parameter(torch.zeros(())) if learnable_scale else None

    def _attend(self, attn: Attention, pixels: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
        assert context is not None, "cross-attention without a context"
        text, image = context[:, : self.text_tokens], context[:, self.text_tokens :]
        query = _heads(attn.to_q(pixels), attn.heads)
        from_text = _attention(query, attn.to_k(text), attn.to_v(text), attn.heads)
        from_image = _attention(query, self.to_k_ip(image), self.to_v_ip(image), attn.heads)
        if self.alpha is not None:
            from_image = from_image * (torch.tanh(self.alpha) + 1)
        return _project_out(attn, from_text + from_image)


def _heads(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    return tensor.reshape(*tensor.shape[:2], heads, -1).transpose(1, 2)


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int) -> torch.Tensor:
    attended = F.scaled_dot_product_attention(query, _heads(key, heads), _heads(value, heads))
    return attended.transpose(1, 2).flatten(2)


def _project_out(attn: Attention, attended: torch.Tensor) -> torch.Tensor:
    linear, dropout = attn.to_out
    projected: torch.Tensor = dropout(linear(attended))
    return projected
