"""Devices: two ends, and packets between them. `base` is the contract, the other modules keep it."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ginnel.device.base import Device, DeviceEnd
    from ginnel.device.capture import Capture
    from ginnel.device.kernel import KernelDevice
    from ginnel.device.memory import MemoryDevice
    from ginnel.device.named import (
        NamedEnd,
        add_address,
        delete,
        list_devices,
        open,
        remove_address,
        set_mtu,
        set_up,
        show,
    )
    from ginnel.device.service import Service, create

__all__ = [
    "Capture",
    "Device",
    "DeviceEnd",
    "KernelDevice",
    "MemoryDevice",
    "NamedEnd",
    "Service",
    "add_address",
    "create",
    "delete",
    "list_devices",
    "open",
    "remove_address",
    "set_mtu",
    "set_up",
    "show",
]

_HOMES = {
    "Device": "base",
    "DeviceEnd": "base",
    "Capture": "capture",
    "KernelDevice": "kernel",
    "MemoryDevice": "memory",
    "Service": "service",
    "create": "service",
}


def __getattr__(name: str) -> Any:
    # Who needs one kind of device does without the others' memory: the helper of `--tun` has the kernel's alone.
    if name in __all__:
        return getattr(importlib.import_module(f"ginnel.device.{_HOMES.get(name, 'named')}"), name)
    raise AttributeError(f"module 'ginnel.device' has no attribute {name!r}")


def __dir__() -> list[str]:
    # What is not imported yet is among it.
    return [name for name in (*globals(), *__all__) if name.startswith("__") or name in __all__]
