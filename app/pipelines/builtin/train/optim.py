"""The optimiser of both trainings: Muon on hidden weights, AdamW on the rest, a schedule, a moving average.

Knows nothing of what is trained.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Generic, TypeVar

import torch
from torch import nn

ModelT = TypeVar("ModelT", bound=nn.Module)

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
MUON_MOMENTUM = 0.95
BLOCK_ROWS = 64
WARM_UP_STEPS = 60


class Muon:
    """Momentum whose update is made orthogonal (Jordan et al., "Muon", 2024), scaled to AdamW's size of step
    (Liu et al., "Muon is scalable", 2025: 0.2 sqrt(max side)). Convolutions are matrices [out, in * kernel].

    Wide outputs are made orthogonal in blocks of 64 rows: an eighth of the arithmetic for the upsamplers,
    whose eight sub-pixel phases need not be orthogonal to each other.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._parameters = list(parameters)
        self._momentum = [torch.zeros_like(p) for p in self._parameters]

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Apply one update to every parameter that has a gradient."""
        for parameter, momentum in zip(self._parameters, self._momentum, strict=True):
            if parameter.grad is None:
                continue
            momentum.lerp_(parameter.grad, 1 - MUON_MOMENTUM)
            matrix = parameter.grad.lerp(momentum, MUON_MOMENTUM).flatten(1)
            rows = BLOCK_ROWS if matrix.shape[0] % BLOCK_ROWS == 0 and parameter.ndim > 2 else matrix.shape[0]
            update = _orthogonal(matrix.view(-1, rows, matrix.shape[1]))
            scale = 0.2 * math.sqrt(max(update.shape[1:]))
            parameter.add_(update.view_as(parameter), alpha=-learning_rate * scale)


def _orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """The nearest (semi-)orthogonal matrices to [n, rows, columns], roughly, by Newton-Schulz iterations."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-8)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: torch.Tensor = x.mT if tall else x
    return result.contiguous()


class Trainer(Generic[ModelT]):
    """Takes gradients to weights: Muon for `hidden`, AdamW for the rest, a moving average beside them."""

    def __init__(
        self, model: ModelT, hidden: list[nn.Parameter], *, peak: float, steps: int, hold_steps: int
    ) -> None:
        self._model, self._peak, self._steps, self._hold = model, peak, steps, hold_steps
        held = {id(p) for p in hidden}
        self._rest = [p for p in model.parameters() if p.requires_grad and id(p) not in held]
        self._muon = Muon(hidden)
        self._adam = torch.optim.AdamW(self._rest, lr=peak, betas=(0.9, 0.98), weight_decay=1e-4)
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        self.step_index = 0

    @property
    def learning_rate(self) -> float:
        """Warm up, hold, then a cosine down to one fiftieth of the peak."""
        past = min(1.0, max(0.0, (self.step_index - self._hold) / (self._steps - self._hold)))
        fall = 0.5 * (1 + math.cos(math.pi * past))
        return self._peak * min(1.0, (self.step_index + 1) / WARM_UP_STEPS) * (0.02 + 0.98 * fall)

    def step(self, loss: torch.Tensor) -> None:
        """Backward, clip, update, average."""
        self._model.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._rest, 1.0)
        rate = self.learning_rate
        for group in self._adam.param_groups:
            group["lr"] = rate
        self._adam.step()
        self._muon.step(rate)
        self.step_index += 1
        decay = min(0.995, (1 + self.step_index) / (20 + self.step_index))
        with torch.no_grad():
            for slow, fast in zip(self.average.parameters(), self._model.parameters(), strict=True):
                slow.lerp_(fast, 1 - decay)
