"""A memory profile with round numbers, so that a test's arithmetic can be read, and nothing learned yet."""

import pytest

from adaptive.memory import learned_costs
from adaptive.memory.profile import Curve, MemoryProfile
from adaptive.types import VaeTraits

LTX_TRAITS = VaeTraits("ltx", "AutoencoderKLLTXVideo", 128, 32, 8, True, True, False)
ALONE_TRAITS = VaeTraits("unknown", "SomeVae", 16, 8, 4, True, False, False)


@pytest.fixture
def ltx_profile() -> MemoryProfile:
    """1000 bytes a latent pixel and frame in one call; streamed 500 + 1000 a latent frame of the chunk."""
    return MemoryProfile(
        traits=LTX_TRAITS,
        dtype="float32",
        config_digest="test",
        batched=Curve((1, 2, 16), (1000.0, 2000.0, 16000.0)),
        streamed={n: Curve((n + 1,), (500.0 + 1000 * n,)) for n in (1, 2, 4)},
    )


@pytest.fixture
def alone_profile() -> MemoryProfile:
    """A VAE that decodes in one call or not at all."""
    return MemoryProfile(ALONE_TRAITS, "float32", "test", Curve((1, 2), (1000.0, 2000.0)), {})


@pytest.fixture(autouse=True)
def nothing_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decodes of earlier tests teach this test's process nothing."""
    monkeypatch.setattr(learned_costs, "_of_process", {})
