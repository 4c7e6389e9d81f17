"""A model's own way of sampling, such as a distilled model's schedule. Knows no files, HTTP or torch."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.fields.loras import Loras

# The request fields that a recipe governs.
GOVERNED = ("num_inference_steps", "guidance_scale", "negative_prompt", "loras")
Governed = Literal["num_inference_steps", "guidance_scale", "negative_prompt", "loras"]


class Recipe(BaseModel):
    """How a model is sampled, where that is part of it: a distilled model's schedule, scheduler and LoRAs.

    `open` names the governed fields that a job may still set; without it all are, but the number of steps of
    a fixed schedule.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sigmas: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        default=(), description="One value a step; the scheduler shifts them."
    )
    timesteps: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        default=(), description="In place of sigmas."
    )
    shift: float | None = Field(default=None, gt=0, description="The scheduler's constant shift; 1: none.")
    scheduler: str | None = Field(default=None, description="A scheduler class of diffusers.")
    guidance_scale: float | None = Field(default=None, ge=0)
    num_inference_steps: int | None = Field(default=None, ge=1)
    loras: Loras = ()
    open: frozenset[Governed] | None = None

    @model_validator(mode="after")
    def _one_schedule(self) -> "Recipe":
        if self.sigmas and self.timesteps:
            raise ValueError("give either sigmas or timesteps")
        if self.schedule and self.num_inference_steps not in (None, len(self.schedule)):
            raise ValueError(f"the schedule has {len(self.schedule)} steps, not {self.num_inference_steps}")
        if self.schedule and self.open is not None and "num_inference_steps" in self.open:
            raise ValueError("a fixed schedule has its number of steps: open cannot name it")
        return self

    @property
    def schedule(self) -> tuple[float, ...]:
        """The sigmas or timesteps; () if the scheduler chooses them."""
        return self.sigmas or self.timesteps

    @property
    def fixed(self) -> tuple[str, ...]:
        """The request fields that a job may not set otherwise."""
        if self.open is None:
            return ("num_inference_steps",) if self.schedule else ()
        return tuple(name for name in GOVERNED if name not in self.open)

    @property
    def values(self) -> dict[str, Any]:
        """The defaults that the recipe gives, by request field."""
        steps = len(self.schedule) or self.num_inference_steps
        given = {"num_inference_steps": steps, "guidance_scale": self.guidance_scale}
        return {name: value for name, value in given.items() if value is not None}
