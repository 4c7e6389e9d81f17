"""Attention inside one frame and feed-forward layers, both run in slices of the batch to save memory.

Owns the attention processors; queries are a frame's pixels, keys its pixels, the prompt and the image. The
batch dimension has frames, or pixels through time, which do not interact here. So any number of slices gives
the same result.
"""

import torch
import torch.nn.functional as F
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from torch import nn


class SlicedFeedForward(nn.Module):
    """diffusers' feed-forward layer in `parts` slices of the batch.

    Its eightfold width makes the memory peak of a step.
    """

    def __init__(self, whole: FeedForward) -> None:
        super().__init__()
        self.net: nn.ModuleList = whole.net
        self.parts = 1

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[rows, tokens, C]` -> the same."""
        if self.parts == 1:
            return self._run(hidden_states)
        result = torch.empty_like(hidden_states)
        for source, target in zip(hidden_states.chunk(self.parts), result.chunk(self.parts), strict=True):
            target.copy_(self._run(source))
        return result

    def _run(self, hidden: torch.Tensor) -> torch.Tensor:
        for layer in self.net:
            hidden = layer(hidden)
        return hidden


class FrameAttention(nn.Module):
    """Scaled dot-product attention in `parts` slices of the frames."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = 1

    def forward(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`hidden_states` `[frames, pixels, C]`, `encoder_hidden_states` `[frames, tokens, D]` ->
        `[frames, pixels, C]`.

        Raises ValueError for a mask, which this model never uses.
        """
        if attention_mask is not None:
            raise ValueError("DynamiCrafter's attention does not support a mask")
        if self.parts == 1:
            return self._attend(attn, hidden_states, encoder_hidden_states)
        result = torch.empty_like(hidden_states)
        targets, pixels = result.chunk(self.parts), hidden_states.chunk(self.parts)
        contexts = None if encoder_hidden_states is None else encoder_hidden_states.chunk(self.parts)
        for index, target in enumerate(targets):
            target.copy_(self._attend(attn, pixels[index], None if contexts is None else contexts[index]))
        return result

    def _attend(self, attn: Attention, pixels: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
        source = pixels if context is None else context
        query = _heads(attn.to_q(pixels), attn.heads)
        return _project_out(attn, _attention(query, attn.to_k(source), attn.to_v(source), attn.heads))


class ImageCrossAttention(FrameAttention):
    """Cross-attention to the prompt plus cross-attention to the image, with separate keys and values.

    The first `text_tokens` of the context are the prompt's, the others the image's. The image's part is
    weighted by `tanh(alpha) + 1` if `alpha` is learned (the 256 model), else by 1.
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
