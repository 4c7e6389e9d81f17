"""Exact streaming: decode or encode a video chunk by chunk, with the result of a single call. Imports torch.

Start with `decode_stream`, the loop over chunks. `engines` runs one chunk through a network; `layers` holds
the arithmetic of single layers.

Terms used throughout this room:

- *Rule*: a function that runs in place of a layer's `forward` in a step. A *dispatcher* on the layer calls
  it, in the thread that streams only (`intercept`).
- *Chunk*: consecutive frames fed in one step. *Latent frame*: one frame of the VAE's latents.
- *Window*: the input frames that one output frame of a temporal convolution needs. A layer keeps the last
  frames of a chunk, because the windows of the next chunk begin with them.
- *Delayed residual add*: a non-causal convolution emits its frames later than it receives them. The block's
  shortcut then waits in a queue until the matching frames arrive.
- *Stage*: one of the modules that a network calls one after another. After an out-of-memory, a step resumes
  at the stage that failed.
- *Strip*: a horizontal band of a frame. Running the last layers on one strip at a time lowers peak memory.
- *Layer sweep*: one layer runs over the whole video before the next begins, for norms that span all frames.
"""

from adaptive.stream.approximate import BlendedTiles, IndependentChunks
from adaptive.stream.decode_stream import DecodeStream, join_chunks, open_decode
from adaptive.stream.self_test import self_test
from adaptive.stream.vae_view import VaeView, video_frames_of, view_of
from adaptive.stream.whole import decode_whole

__all__ = [
    "BlendedTiles",
    "DecodeStream",
    "IndependentChunks",
    "VaeView",
    "decode_whole",
    "join_chunks",
    "open_decode",
    "self_test",
    "video_frames_of",
    "view_of",
]
