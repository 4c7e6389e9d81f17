"""Where Wan 2.2 from quantized files goes on cards of 8 to 24 GB, as a Markdown table.

    python tests/bench/own_weights.py

The files are headers with a hole in place of the tensors; neither a GPU nor weights are needed. They stand
for two GGUF files of the kind Q4_K_M and a text encoder in scaled fp8. Of the transformers' blocks, values
and the second matrix of each feed-forward are in Q6_K, other matrices in Q4_K; all else is in F16 and F32.
Published files may differ by some percent.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from gguf import GGMLQuantizationType as Kind

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from weight_files import write_gguf_hole, write_hole  # noqa: E402

from adaptive.types import VideoShape  # noqa: E402
from app.config import Settings  # noqa: E402
from app.models.components import Component, build_component, components_of  # noqa: E402
from app.models.entries import load_models  # noqa: E402
from app.models.forecast import Unfeasible, forecast  # noqa: E402

CARDS_GB = (8, 12, 16, 24)
HOSTS_GB = (32, 64)
CONTEXT_BYTES = 600 * 2**20
ENTRY = """
[models.wan]
base = "wan22-i2v-a14b"
transformer = "{folder}/high.gguf"
transformer_2 = "{folder}/low.gguf"
text_encoder = "{folder}/umt5.safetensors"
"""


def tensors_of(component: Component) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        module = build_component(component)
    return dict(module.state_dict())


def kind_of(name: str, tensor: torch.Tensor) -> Kind:
    if tensor.ndim != 2:
        return Kind.F32
    if not name.startswith("blocks."):
        return Kind.F16
    return Kind.Q6_K if ".to_v." in name or "ffn.net.2" in name else Kind.Q4_K


def write_text_encoder(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """The matrices of its layers in fp8, each with a scale; embeddings and norms in bfloat16."""
    forms: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and "shared" not in name and "relative" not in name:
            forms[name] = ("F8_E4M3", tuple(tensor.shape))
            forms[name.removesuffix("weight") + "scale_weight"] = ("F32", (1,))
        elif name != "encoder.embed_tokens.weight":
            forms[name] = ("BF16", tuple(tensor.shape))
    write_hole(path, forms)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        published = load_models(Settings(data_dir=folder / "data"))["wan22-i2v-a14b"]
        parts = components_of(published, Settings(data_dir=folder / "data"))
        for each, file in (("transformer", "high.gguf"), ("transformer_2", "low.gguf")):
            tensors = tensors_of(parts[each])
            kinds = {name: (kind_of(name, one), tuple(one.shape)) for name, one in tensors.items()}
            write_gguf_hole(folder / file, kinds)
        write_text_encoder(folder / "umt5.safetensors", tensors_of(parts["text_encoder"]))
        (folder / "models.toml").write_text(ENTRY.format(folder=folder))
        settings = Settings(data_dir=folder / "data", models_file=folder / "models.toml")
        entry = load_models(settings)["wan"]
        given = entry.defaults
        video = VideoShape(given.num_frames, given.height, given.width)
        lines = ["| card | " + " | ".join(f"{host} GB host" for host in HOSTS_GB) + " |"]
        lines.append("|---|" + "---|" * len(HOSTS_GB))
        for card in CARDS_GB:
            cells = []
            for host in HOSTS_GB:
                try:
                    found = forecast(
                        settings,
                        entry,
                        video,
                        device_bytes=card * 10**9 - CONTEXT_BYTES,
                        host_bytes=host * 10**9,
                    )
                except Unfeasible as refusal:
                    cells.append(f"no: {refusal}")
                    continue
                placement, decode = found["placement"], found["decode"]
                cells.append(
                    f"{placement['kind'].replace('_', ' ')}, decode {decode['strategy']} of "
                    f"{decode['frames_per_chunk']}, peak {placement['device_bytes'] / 2**30:.1f} GiB"
                )
            lines.append(f"| {card} GB | " + " | ".join(cells) + " |")
        for part in found["components"]:
            lines.append(f"{part['name']}: {part['format']}, {part['weight_bytes'] / 1e9:.2f} GB")
        sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
