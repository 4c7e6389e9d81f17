"""DynamiCrafter's UNet: diffusers' UNet3DConditionModel with image cross-attention and frame-rate embedding.

Owns only the network; must not know prompts, images, schedules or guidance.
"""

import inspect
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_3d_condition import UNet3DConditionModel, UNet3DConditionOutput

from app.pipelines.dynamicrafter.networks.attention import (
    FrameAttention,
    ImageCrossAttention,
    SlicedFeedForward,
)

# diffusers looks up a component's base class in the module that defines the component.
__all__ = ["DynamiCrafterUNet", "ModelMixin"]

_SLICES = {"auto": 2, "max": 16, None: 1}


class DynamiCrafterUNet(UNet3DConditionModel):  # type: ignore[misc]  # diffusers is untyped
    """Predicts noise or velocity for latent frames from a prompt, image tokens and a frame rate.

    `attention_head_dim` is the width of one head (diffusers' name for it in this model). `in_channels` counts
    the noisy latents and the conditioning latents together.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        sample_size: tuple[int, int] | None = None,
        in_channels: int = 8,
        out_channels: int = 4,
        down_block_types: tuple[str, ...] = (*("CrossAttnDownBlock3D",) * 3, "DownBlock3D"),
        up_block_types: tuple[str, ...] = ("UpBlock3D", *("CrossAttnUpBlock3D",) * 3),
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        norm_num_groups: int = 32,
        cross_attention_dim: int = 1024,
        attention_head_dim: int = 64,
        text_tokens: int = 77,
        image_tokens_per_frame: int = 16,  # noqa: ARG002 - kept in the configuration, read by forward
        learnable_image_scale: bool = False,
        default_fs: int = 24,  # noqa: ARG002 - same
    ) -> None:
        # The wrapped initialiser would register the parent's arguments in this configuration.
        inspect.unwrap(UNet3DConditionModel.__init__)(
            self,
            sample_size=sample_size,
            in_channels=in_channels,
            out_channels=out_channels,
            down_block_types=down_block_types,
            up_block_types=up_block_types,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            norm_num_groups=norm_num_groups,
            cross_attention_dim=cross_attention_dim,
            attention_head_dim=attention_head_dim,
        )
        self.fps_embedding = TimestepEmbedding(
            block_out_channels[0], block_out_channels[0] * 4, act_fn="silu"
        )
        for name, attn in self._spatial_attention():
            if name == "attn2":
                attn.set_processor(
                    ImageCrossAttention(
                        cross_attention_dim,
                        attn.inner_dim,
                        text_tokens,
                        learnable_scale=learnable_image_scale,
                    )
                )
            else:
                attn.set_processor(FrameAttention())
        for module in list(self.modules()):
            if isinstance(module, BasicTransformerBlock):
                module.ff = SlicedFeedForward(module.ff)

    def _spatial_attention(self) -> list[tuple[str, Attention]]:
        """Name ("attn1" or "attn2") and module of every attention inside a frame."""
        return [
            (name.rpartition(".")[2], module)
            for name, module in self.named_modules()
            if isinstance(module, Attention) and ".attentions." in name
        ]

    def set_attention_slice(self, slice_size: str | int | list[int] | None) -> None:
        """Run spatial attention and feed-forward layers in that many slices; the result is the same.

        "auto" means two, "max" sixteen (one frame at a time for one video), None one. Temporal attention is
        not sliced: over sixteen frames it is small. Raises ValueError for other values.
        """
        parts = _SLICES.get(slice_size) if isinstance(slice_size, str | None) else slice_size
        if not isinstance(parts, int) or parts < 1:
            raise ValueError(
                f"attention slice is {slice_size!r}; it must be 'auto', 'max', a number of parts or None"
            )
        for module in self.modules():
            if isinstance(module, FrameAttention | SlicedFeedForward):
                module.parts = parts

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        fs: torch.Tensor | int | None = None,
        return_dict: bool = True,
    ) -> UNet3DConditionOutput | tuple[torch.Tensor]:
        """Predict noise or velocity `[B, out_channels, T, h, w]`.

        `sample` is `[B, in_channels, T, h, w]` with h and w multiples of 8; `timestep` and `fs` are numbers
        or `[B]`. `encoder_hidden_states` is `[B, text_tokens + image tokens, D]`. If there are
        `T * image_tokens_per_frame` image tokens, they are divided among the frames; any other number goes
        to every frame. `fs=None` means the model's default. Raises ValueError for sides that are not
        multiples of 8.
        """
        batch, _, frames, height, width = sample.shape
        if height % (step := 2**self.num_upsamplers) or width % step:
            raise ValueError(f"latents are {height}x{width}; both sides must be a multiple of {step}")
        embedding = self._embed(timestep, fs, batch, sample).repeat_interleave(frames, dim=0)
        context = self._frame_context(encoder_hidden_states, frames)

        hidden = self.conv_in(sample.transpose(1, 2).flatten(0, 1))
        hidden = self.transformer_in(hidden, num_frames=frames, return_dict=False)[0]
        skips: tuple[torch.Tensor, ...] = (hidden,)
        for block in self.down_blocks:
            hidden, outputs = block(hidden_states=hidden, **self._inputs(block, embedding, context, frames))
            skips += outputs
        hidden = self.mid_block(hidden, embedding, encoder_hidden_states=context, num_frames=frames)
        for block in self.up_blocks:
            count = len(block.resnets)
            skips, taken = skips[:-count], skips[-count:]
            hidden = block(
                hidden_states=hidden,
                res_hidden_states_tuple=taken,
                **self._inputs(block, embedding, context, frames),
            )
        hidden = self.conv_out(self.conv_act(self.conv_norm_out(hidden)))
        prediction = hidden.reshape(batch, frames, *hidden.shape[1:]).transpose(1, 2)
        return UNet3DConditionOutput(sample=prediction) if return_dict else (prediction,)

    @staticmethod
    def _inputs(block: torch.nn.Module, embedding: Any, context: Any, frames: int) -> dict[str, Any]:
        inputs = {"temb": embedding, "num_frames": frames}
        return inputs | {"encoder_hidden_states": context} if hasattr(block, "attentions") else inputs

    def _embed(
        self,
        timestep: torch.Tensor | float | int,
        fs: torch.Tensor | int | None,
        batch: int,
        sample: torch.Tensor,
    ) -> torch.Tensor:
        def sinusoids(value: torch.Tensor | float | int) -> torch.Tensor:
            values = torch.as_tensor(value, device=sample.device).reshape(-1).expand(batch)
            encoded: torch.Tensor = self.time_proj(values).to(sample.dtype)
            return encoded

        time: torch.Tensor = self.time_embedding(sinusoids(timestep))
        rate: torch.Tensor = self.fps_embedding(sinusoids(self.config.default_fs if fs is None else fs))
        return time + rate

    def _frame_context(self, context: torch.Tensor, frames: int) -> torch.Tensor:
        """`[B, tokens, D]` -> `[B * frames, text_tokens + tokens of the frame, D]`."""
        text_tokens = self.config.text_tokens
        if context.shape[1] != text_tokens + frames * self.config.image_tokens_per_frame:
            return context.repeat_interleave(frames, dim=0)
        text, image = context[:, :text_tokens], context[:, text_tokens:]
        per_frame = image.reshape(len(image) * frames, -1, image.shape[2])
        return torch.cat([text.repeat_interleave(frames, dim=0), per_frame], dim=1)
