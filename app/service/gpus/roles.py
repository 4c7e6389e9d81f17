"""Which role the worker of each device has: the choice behind FRAMEFIT_ROLES. Imports no torch."""

from collections.abc import Sequence

from app.config import ConfigError
from app.fields.roles import Role, parse_roles
from app.service.gpus.devices import DeviceChoice, Devices, choose_devices


def roles_of(devices: Devices, entries: Sequence[str]) -> dict[str, Role]:
    """The role of each chosen device, by its identity.

    Raises `ConfigError` for a role of a device that has no worker, and for two roles of one device.
    """
    roles = dict.fromkeys((choice.identity for choice in devices.chosen), Role.BOTH)
    named: dict[str, str] = {}
    for name, role in parse_roles(entries).items():
        identity = _identity(name, devices.chosen)
        if identity not in roles:
            known = ", ".join(choice.identity for choice in devices.chosen)
            raise ConfigError(
                f"FRAMEFIT_ROLES: {name} has a role and no worker; FRAMEFIT_DEVICES gives workers to {known}"
            )
        if identity in named:
            raise ConfigError(f"FRAMEFIT_ROLES: {named[identity]} and {name} are one device: name it once")
        named[identity] = name
        roles[identity] = role
    return roles


def _identity(name: str, chosen: Sequence[DeviceChoice]) -> str:
    if name in {choice.identity for choice in chosen}:
        return name
    try:
        return choose_devices(name).chosen[0].identity
    except ConfigError as error:
        raise ConfigError(str(error).replace("FRAMEFIT_DEVICES", "FRAMEFIT_ROLES", 1)) from None
