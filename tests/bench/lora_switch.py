"""How long a switch of LoRAs takes: on a tiny transformer, and on one with the shapes of Wan 1.3B.

    python tests/bench/lora_switch.py [--tiny]

Prints the median and the longest of ten switches between two LoRAs of rank 32, and of ten removals. The files
are read and their digests computed each time, as for jobs. Weights are zeros in bfloat16: values do not
matter, bytes do.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from app.fields.loras import LoraChoice  # noqa: E402
from app.worker.loras.switch import AppliedLoras  # noqa: E402

RANK = 32
ROUNDS = 10
SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 32},
    "1.3B": {"num_layers": 30, "num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960},
}


def transformer(shape: dict[str, int]) -> Any:
    from accelerate import init_empty_weights
    from diffusers import WanTransformer3DModel

    with init_empty_weights():
        module = WanTransformer3DModel(**shape, in_channels=36, out_channels=16)
    return module.to(torch.bfloat16).to_empty(device="cpu").requires_grad_(False).eval()


def write(path: Path, module: Any) -> int:
    tensors = {}
    for name, layer in module.named_modules():
        if isinstance(layer, torch.nn.Linear) and ("attn" in name or "ffn" in name):
            tensors[f"{name}.lora_A.weight"] = torch.zeros(RANK, layer.in_features, dtype=torch.bfloat16)
            tensors[f"{name}.lora_B.weight"] = torch.zeros(layer.out_features, RANK, dtype=torch.bfloat16)
    save_file(tensors, path)
    return path.stat().st_size


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="only the tiny transformer")
    names = ["tiny"] if parser.parse_args().tiny else list(SHAPES)
    for name in names:
        module = transformer(SHAPES[name])
        with tempfile.TemporaryDirectory() as folder:
            size = max(write(Path(folder, f"{each}.safetensors"), module) for each in ("one", "two"))
            loras = AppliedLoras(SimpleNamespace(components={"transformer": module}), Path(folder))
            choices = [(LoraChoice(name="one"),), (LoraChoice(name="two", scale=0.5),)]
            loras.apply(choices[0])
            switches, removals = [], []
            for number in range(ROUNDS):
                switches.append(seconds(partial(loras.apply, choices[number % 2])))
            for number in range(ROUNDS):
                removals.append(seconds(loras.remove))
                loras.apply(choices[number % 2])
        layers = sum(isinstance(each, torch.nn.Linear) for each in module.modules())
        told = [
            f"{1000 * statistics.median(each):.1f} ms (longest {1000 * max(each):.1f})"
            for each in (switches, removals)
        ]
        print(f"{name}: {layers} linear layers, {size:,} bytes: switch {told[0]}, removal {told[1]}")  # noqa: T201


if __name__ == "__main__":
    main()
