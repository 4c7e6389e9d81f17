"""Exact streaming: a video goes through a VAE in chunks and comes out as if in one call. Imports torch."""

from adaptive.stream.approximate import BlendedTiles, IndependentChunks
from adaptive.stream.decode_stream import DecodeStream, decode_whole, gathered, open_decode
from adaptive.stream.self_test import self_test

__all__ = [
    "BlendedTiles",
    "DecodeStream",
    "IndependentChunks",
    "decode_whole",
    "gathered",
    "open_decode",
    "self_test",
]
