"""The LoRAs that a pipeline has now, and the switch to those of the next job.

Layers with matrices of low rank stand in place of a transformer's own while they are applied; these hold the
own layers, whose weights stay what they are. Where the weights lie stays as it is, too: matrices go where
their layer is. Must not know jobs beyond their LoRAs.
"""

import logging
import warnings
from pathlib import Path
from typing import Any

import torch

from app.fields.loras import LoraChoice
from app.models.place_weights import TRANSFORMERS
from app.worker.loras.matrices import Matrices, matrices_for, read_lora
from app.worker.loras.not_applied import LoraNotApplied

log = logging.getLogger(__name__)


class AppliedLoras:
    """The LoRAs of one pipeline; none at first."""

    def __init__(self, pipe: Any, folder: Path) -> None:
        self._pipe = pipe
        self._folder = folder
        self._wanted: tuple[LoraChoice, ...] = ()

    @property
    def applied(self) -> tuple[LoraChoice, ...]:
        """Those that the pipeline has now."""
        return self._wanted

    def differ_from(self, wanted: tuple[LoraChoice, ...]) -> bool:
        """Whether a switch to `wanted` would change anything."""
        return wanted != self._wanted

    def remove(self) -> None:
        """Put the transformers' own layers back in their places."""
        self._wanted = ()
        for module in _transformers(self._pipe).values():
            if getattr(module, "peft_config", None):
                module.unload_lora()

    def tensors(self) -> list[torch.Tensor]:
        """The matrices that are applied now."""
        own = {id(each) for module in lora_modules(self._pipe) for each in module.base_layer.parameters()}
        return [
            each for module in lora_modules(self._pipe) for each in module.parameters() if id(each) not in own
        ]

    def apply(self, wanted: tuple[LoraChoice, ...]) -> None:
        """Switch to `wanted`, in place of those that are applied now.

        Where weights are offloaded in groups of layers, they must be placed anew then. If it raises
        `LoraNotApplied`, none is applied.
        """
        self.remove()
        try:
            self._apply(wanted)
        except BaseException:
            self.remove()
            raise
        self._wanted = wanted

    def _apply(self, wanted: tuple[LoraChoice, ...]) -> None:
        scales: dict[str, dict[str, float]] = {}
        for number, lora in enumerate(wanted):
            adapter = f"lora_{number}"
            read = read_lora(lora, self._folder)
            for name, matrices in self._fitting(lora, read).items():
                _inject(lora, name, _transformers(self._pipe)[name], adapter, matrices)
                scales.setdefault(name, {})[adapter] = lora.scale
        for name, each in scales.items():
            _transformers(self._pipe)[name].set_adapters(list(each), list(each.values()))

    def _fitting(self, lora: LoraChoice, read: Matrices) -> dict[str, Matrices]:
        """The LoRA's matrices for each transformer that it changes. Raises `LoraNotApplied`."""
        modules = _transformers(self._pipe)
        asked = modules if lora.component is None else {lora.component: modules.get(lora.component)}
        found = {
            name: matrices
            for name, module in asked.items()
            if module is not None and (matrices := matrices_for(module, read, type(self._pipe))) is not None
        }
        if not found:
            layers = list(dict.fromkeys(key.rpartition(".lora_")[0] for key in read))
            message = (
                f"LoRA {lora.name} changes layers such as {', '.join(layers[:3])}, which the model's "
                f"{lora.component or ' and '.join(modules) or 'pipeline'} does not have"
            )
            raise LoraNotApplied("lora_not_for_model", message, {"name": lora.name})
        return found


def lora_modules(pipe: Any) -> list[Any]:
    """The layers of the pipeline that LoRAs have replaced."""
    return [
        each
        for module in _transformers(pipe).values()
        for each in module.modules()
        if hasattr(each, "base_layer")
    ]


def _transformers(pipe: Any) -> dict[str, Any]:
    return {name: pipe.components[name] for name in TRANSFORMERS if pipe.components.get(name) is not None}


def _inject(lora: LoraChoice, name: str, module: Any, adapter: str, matrices: Matrices) -> None:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several are meant
            module.load_lora_adapter(matrices, prefix=None, adapter_name=adapter, low_cpu_mem_usage=True)
    except (ValueError, TypeError, NotImplementedError, AttributeError) as error:
        # peft refuses layers that it cannot wrap, such as some quantized ones.
        raise LoraNotApplied(
            "lora_not_for_model",
            f"peft cannot apply LoRA {lora.name} to the model's {name}: {error}",
            {"name": lora.name},
        ) from error
