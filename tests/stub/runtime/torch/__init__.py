"""The accelerator runtime for tests: torch's calls that list and open CUDA devices, answered from a file.

A process that has this folder on its path imports it as `torch`. SCRIPTED_RUNTIME names a JSON file:

    {"cuda": "13.0", "error": null, "cards": [
        {"uuid": "GPU-1", "name": "Card", "total": 1000, "free": 400, "bus": 0, "error": null,
         "instances": [{"uuid": "MIG-1", "name": "Slice", "total": 100, "free": 40}]}]}

`cards` are in CUDA's own order, fastest first; `bus` is the place of a card on the bus. CUDA_VISIBLE_DEVICES
and CUDA_DEVICE_ORDER have the effects that the CUDA programming guide describes. A card with instances (MIG)
shows its first one only, unless the variable names another.
"""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

_SCRIPT = json.loads(Path(os.environ["SCRIPTED_RUNTIME"]).read_text())
version = SimpleNamespace(cuda=_SCRIPT.get("cuda"), hip=None)


def _in_order() -> list[dict[str, Any]]:
    cards: list[dict[str, Any]] = _SCRIPT["cards"]
    if os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
        return sorted(cards, key=lambda card: int(card["bus"]))
    return cards


def _meant(entry: str) -> dict[str, Any] | None:
    """The card or instance that an entry of the variable names; None where it is not valid."""
    cards = _in_order()
    if entry.startswith("MIG-"):
        instances = [one for card in cards for one in card.get("instances", ())]
        return next((one for one in instances if one["uuid"] == entry), None)
    if entry.startswith("GPU-"):
        found = [card for card in cards if card["uuid"].startswith(entry)]
        return found[0] if len(found) == 1 else None
    number = int(entry) if entry.lstrip("+").isdecimal() else -1
    return cards[number] if 0 <= number < len(cards) else None


def _visible() -> list[dict[str, Any]]:
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return _in_order()
    found: list[dict[str, Any]] = []
    for entry in listed.split(","):
        card = _meant(entry.strip())
        if card is None:
            break
        if card in found:
            return []
        found.append(card)
    return found


def _init() -> None:
    if version.cuda is None:
        raise AssertionError("Torch not compiled with CUDA enabled")
    if _SCRIPT.get("error"):
        raise RuntimeError(_SCRIPT["error"])
    if not _visible():
        raise RuntimeError("No CUDA GPUs are available")


def _opened(ordinal: int) -> dict[str, Any]:
    card = _visible()[ordinal]
    if card.get("error"):
        raise RuntimeError(f"CUDA error: {card['error']}\nCompile with `TORCH_USE_CUDA_DSA`.")
    instances: list[dict[str, Any]] = card.get("instances", [])
    return instances[0] if instances else card


class _Properties:
    def __init__(self, card: dict[str, Any]) -> None:
        self._card = card
        self.total_memory = card["total"]
        self.uuid = card["uuid"].partition("-")[2]

    @property
    def name(self) -> str:
        name: str = self._card["name"]
        if name == "not UTF-8":
            return b"\xf8\x95\xa0\x81".decode()
        return name


def _properties(ordinal: int) -> _Properties:
    card = _visible()[ordinal]
    return _Properties((card.get("instances") or [card])[0])


def _memory(ordinal: int) -> tuple[int, int]:
    card = _opened(ordinal)
    return card["free"], card["total"]


cuda = SimpleNamespace(
    init=_init,
    is_available=lambda: version.cuda is not None and not _SCRIPT.get("error") and bool(_visible()),
    device_count=lambda: len(_visible()),
    get_device_properties=_properties,
    get_device_name=lambda ordinal: _properties(ordinal).name,
    get_device_capability=lambda _ordinal: (9, 0),
    get_arch_list=lambda: ["sm_90"],
    mem_get_info=_memory,
)
