"""Which part of jobs a worker does: it denoises, it decodes, or both.

Owns the names of the roles and the text of FRAMEFIT_ROLES. Knows neither devices nor processes.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any


class Role(StrEnum):
    """What a worker does."""

    BOTH = "both"
    DENOISE = "denoise"  # it decodes only what no other worker could decode
    DECODE = "decode"  # it loads the VAE alone

    @property
    def denoises(self) -> bool:
        """Whether a worker of this role denoises."""
        return self is not Role.DECODE


def role_of(device: Mapping[str, Any]) -> Role:
    """The role in a worker's device report; reports of earlier versions have none."""
    told = device.get("role")
    return Role(told) if told in list(Role) else Role.BOTH


def parse_roles(entries: Sequence[str]) -> dict[str, Role]:
    """The role of each device that `entries` name, such as cuda:1=decode. Raises `ValueError`."""
    roles: dict[str, Role] = {}
    for entry in entries:
        name, equals, role = (part.strip() for part in entry.rpartition("="))
        if not (equals and name) or role not in list(Role):
            raise ValueError(
                f"{entry!r} gives no device a role: write a device as in FRAMEFIT_DEVICES and denoise, "
                "decode or both, such as cuda:1=decode"
            )
        if name in roles:
            raise ValueError(f"{name} has two roles")
        roles[name] = Role(role)
    return roles
