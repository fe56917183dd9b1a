"""Devices: two ends, and packets between them. `base` is the contract, the other modules keep it."""

from ginnel.device.base import Device as Device
from ginnel.device.base import DeviceEnd as DeviceEnd
from ginnel.device.kernel import KernelDevice as KernelDevice
from ginnel.device.memory import MemoryDevice as MemoryDevice
