"""The cards of a pretended machine: a file that every process maps, so that a test steers all of them.

The layout is that of `device/cards.h`. The stub NVML driver (`tests/stub/nvml_stub.c`) answers from the same
file, so its used and free bytes are those of the cards at every moment.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MIB = 2**20
_MAGIC = b"PCARDS1"
_MOST_CARDS, _MOST_PROCESSES, _TEXT = 8, 32, 48


class _Process(ctypes.Structure):
    _fields_ = [("pid", ctypes.c_int64), ("used_bytes", ctypes.c_uint64)]


class Card(ctypes.Structure):
    """One card. Every field may be set at any time; a process sees it at its next allocation or call.

    `ballast_bytes` are held by other programs. `fail_in` allocations succeed, then one fails; -1: none fails.
    After a `fault` every call fails as after an illegal memory access. `lost`: the driver no longer reaches
    the card. `hides_processes`: the driver has no figures by process. `poison`: new memory is full of NaN.
    """

    _fields_ = [
        ("_uuid", ctypes.c_char * _TEXT),
        ("_name", ctypes.c_char * _TEXT),
        ("capacity_bytes", ctypes.c_uint64),
        ("ballast_bytes", ctypes.c_uint64),
        ("context_bytes", ctypes.c_uint64),
        ("fail_in", ctypes.c_int64),
        ("fault", ctypes.c_int32),
        ("lost", ctypes.c_int32),
        ("hides_processes", ctypes.c_int32),
        ("poison", ctypes.c_int32),
        ("_processes", _Process * _MOST_PROCESSES),
    ]

    @property
    def uuid(self) -> str:
        return str(self._uuid.decode())

    @property
    def name(self) -> str:
        return str(self._name.decode())

    @property
    def used_by(self) -> dict[int, int]:
        """Bytes by process id, of processes that live."""
        return {each.pid: each.used_bytes for each in self._processes if each.pid and _lives(each.pid)}

    @property
    def free_bytes(self) -> int:
        return max(0, self.capacity_bytes - self.ballast_bytes - sum(self.used_by.values()))

    def leave(self, free_bytes: int) -> None:
        """A neighbour takes all but so many of the card's bytes."""
        self.ballast_bytes = max(0, self.capacity_bytes - sum(self.used_by.values()) - free_bytes)


@dataclass(frozen=True, slots=True)
class CardSpec:
    """What a card is at the start."""

    capacity_bytes: int = 4096 * MIB
    name: str = "PretendedCard"
    context_bytes: int = 8 * MIB
    hides_processes: bool = False


class Machine(ctypes.Structure):
    """The cards in the file `path`."""

    _fields_ = [("_magic", ctypes.c_char * 8), ("count", ctypes.c_int64), ("_cards", Card * _MOST_CARDS)]
    path: Path

    @classmethod
    def create(cls, path: Path, cards: Sequence[CardSpec]) -> Machine:
        """Write a new machine; processes that mapped an earlier one in this file see the new one."""
        assert 1 <= len(cards) <= _MOST_CARDS
        with path.open("a+b") as file:
            file.truncate(ctypes.sizeof(cls))
        machine = cls.open(path)
        for index, spec in enumerate(cards):
            card = machine._cards[index]
            ctypes.memset(ctypes.addressof(card), 0, ctypes.sizeof(card))
            card._uuid = b"GPU-00000000-0000-0000-0000-%012x" % (index + 1)
            card._name, card.capacity_bytes = spec.name.encode(), spec.capacity_bytes
            card.context_bytes, card.hides_processes = spec.context_bytes, spec.hides_processes
            card.fail_in = -1
        machine.count, machine._magic = len(cards), _MAGIC
        return machine

    @classmethod
    def open(cls, path: Path) -> Machine:
        """The machine that another process created."""
        with path.open("r+b") as file:
            machine = cls.from_buffer(mmap.mmap(file.fileno(), ctypes.sizeof(cls)))
        machine.path = path
        return machine

    @property
    def cards(self) -> list[Card]:
        return [self._cards[index] for index in range(self.count)]

    def visible(self) -> list[int]:
        """Numbers of the cards that CUDA_VISIBLE_DEVICES shows, in its order."""
        listed = os.environ.get("CUDA_VISIBLE_DEVICES")
        if listed is None:
            return list(range(self.count))
        by_uuid = {card.uuid: number for number, card in enumerate(self.cards)}
        entries = [each.strip() for each in listed.split(",") if each.strip()]
        return [int(each) if each.isdecimal() else by_uuid[each] for each in entries]


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
