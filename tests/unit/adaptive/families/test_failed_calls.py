"""A call of a VAE that fails in the middle leaves nothing behind for the next one."""

import pytest
import torch
from stream_vaes import build, latents_of

from adaptive.stream import decode_whole


@torch.no_grad()
def test_magvit_forgets_the_frames_of_a_call_that_failed() -> None:
    vae = build("magvit")
    latents = latents_of(vae, 3)
    expected = decode_whole(vae, latents)

    def fails(*_: object) -> None:
        raise MemoryError("no memory left")

    hook = vae.decoder.conv_out.register_forward_pre_hook(fails)
    with pytest.raises(MemoryError):
        decode_whole(vae, latents)
    hook.remove()
    assert torch.equal(decode_whole(vae, latents), expected)
