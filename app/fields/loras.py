"""One LoRA of a job: its name, how strong it is and what it changes. Knows no files, HTTP or torch."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

MOST_LORAS = 8
SCALE_LIMIT = 4.0
NAME_PATTERN = r"^\w[\w .+()-]*$"


def _in_range(scale: float) -> float:
    if abs(scale) > SCALE_LIMIT:
        raise PydanticCustomError(
            "lora_scale_out_of_range",
            "a LoRA's scale is between -{limit} and {limit}, not {scale}",
            {"limit": SCALE_LIMIT, "scale": scale},
        )
    return scale


class LoraChoice(BaseModel):
    """A LoRA that a job uses. The service adds `sha256` and `size_bytes` when it accepts the job."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = Field(
        min_length=1,
        max_length=200,
        pattern=NAME_PATTERN,
        description="A name from GET /loras: the file's name without .safetensors.",
    )
    scale: Annotated[float, AfterValidator(_in_range)] = Field(
        1.0, description=f"How strong it is, from {-SCALE_LIMIT:g} to {SCALE_LIMIT:g}."
    )
    component: Literal["transformer", "transformer_2"] | None = Field(
        None,
        description="The transformer that it changes, for models with two such as Wan 2.2, whose transformer "
        "is for high noise and transformer_2 for low noise. Default: each whose layers it has.",
    )
    sha256: str | None = Field(
        None,
        pattern=r"^[0-9a-f]{64}$",
        description="Digest of the file. The service adds it; a request that gives it is refused if the file "
        "is another.",
    )
    size_bytes: int | None = Field(None, ge=0, description="Size of the file. The service sets it.")

    @property
    def asked(self) -> tuple[str, float, str | None]:
        """What a request asks for, without what the service adds."""
        return self.name, self.scale, self.component


def few_enough(loras: tuple[LoraChoice, ...]) -> tuple[LoraChoice, ...]:
    """The same LoRAs. Raises for too many, and for one that is named twice for a component."""
    if len(loras) > MOST_LORAS:
        raise PydanticCustomError(
            "too_many_loras",
            "a job takes at most {limit} LoRAs, not {count}",
            {"limit": MOST_LORAS, "count": len(loras)},
        )
    used = [(each.name, each.component) for each in loras]
    for name, component in used:
        if used.count((name, component)) > 1 or (component is not None and (name, None) in used):
            raise ValueError(f"LoRA {name} is named twice for the same transformer")
    return loras


Loras = Annotated[tuple[LoraChoice, ...], AfterValidator(few_enough)]
