"""All errors that the library raises on purpose. They carry the numbers that a caller needs to react.

AdaptiveError
├── DoesNotFit          no allowed plan fits the memory budget          (needed_bytes, budget_bytes)
├── DecodeOutOfMemory   the smallest allowed chunk ran out of memory    (frames_per_chunk, retries,
│                                                                      needed_bytes, free_bytes)
├── UnsupportedVae      the VAE does not support what was requested      (vae_class, wanted)
├── DtypeMismatch       the input has another dtype than the VAE         (input_dtype, vae_dtype)
├── NonFiniteValues     NaN or infinite values where finite ones must be (stage, values, of)
└── NoDevice            the device is absent, lost, or cannot be read   (device, state)
"""


class AdaptiveError(Exception):
    """Base of the library's errors."""


class DoesNotFit(AdaptiveError):
    """No plan that the policy allows fits into the budget; `hint` says what would need less."""

    def __init__(self, what: str, *, needed_bytes: int, budget_bytes: int, hint: str = "") -> None:
        self.what = what
        self.needed_bytes = needed_bytes
        self.budget_bytes = budget_bytes
        numbers = f"{what} needs {needed_bytes:,} bytes, the budget is {budget_bytes:,} bytes"
        super().__init__(f"{numbers}; {hint}" if hint else numbers)


class DecodeOutOfMemory(AdaptiveError):
    """Decoding ran out of memory at the smallest chunk that the policy allows; the latents are unchanged.

    `needed_bytes` are what that chunk was expected to allocate, of `free_bytes`; 0 where they are not known.
    """

    def __init__(
        self,
        *,
        frames_per_chunk: int,
        retries: int,
        frames_done: int,
        needed_bytes: int = 0,
        free_bytes: int = 0,
    ) -> None:
        self.frames_per_chunk = frames_per_chunk
        self.retries = retries
        self.frames_done = frames_done
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes
        super().__init__(
            f"out of memory at {frames_per_chunk} latent frames a chunk after {retries} retries; "
            f"{frames_done} video frames were done.{_numbers(needed_bytes, free_bytes)} The latents are "
            "unchanged: decode them again when more memory is free"
        )


def _numbers(needed_bytes: int, free_bytes: int) -> str:
    if not needed_bytes:
        return ""
    return f" The next chunk needs about {needed_bytes:,} bytes, {free_bytes:,} bytes are free."


class UnsupportedVae(AdaptiveError):
    """The VAE is unknown, or does not support what was requested."""

    def __init__(self, vae_class: str, wanted: str) -> None:
        self.vae_class = vae_class
        self.wanted = wanted
        super().__init__(f"{vae_class} does not support {wanted}")


class DtypeMismatch(AdaptiveError, RuntimeError):
    """torch refused an input of another dtype than the VAE's: a `RuntimeError`, as torch's own error."""

    def __init__(self, name: str, input_dtype: str, vae_dtype: str, message: str) -> None:
        self.input_dtype = input_dtype
        self.vae_dtype = vae_dtype
        super().__init__(
            f"the {name} have dtype {input_dtype} and the VAE has {vae_dtype}: convert one of them, for "
            f"example with .to(vae.dtype). torch says: {message}"
        )


class NonFiniteValues(AdaptiveError):
    """`values` of `of` values are NaN or infinite. `stage` is what made them, for example "decoding".

    `subject` names the values in the message; `dtype` is theirs, such as "float16".
    """

    def __init__(self, stage: str, subject: str, *, values: int, of: int, dtype: str = "float32") -> None:
        self.stage = stage
        self.values = values
        self.of = of
        self.dtype = dtype
        super().__init__(f"{values:,} of {of:,} values of {subject} are not finite (NaN or infinite)")


class NoDevice(AdaptiveError):
    """The device cannot be used or read; `state` is the reason (see `adaptive.device.nvml.NvmlState`)."""

    def __init__(self, device: str, state: str) -> None:
        self.device = device
        self.state = state
        super().__init__(f"device {device} cannot be used: {state}")
