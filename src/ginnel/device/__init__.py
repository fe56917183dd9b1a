"""Devices: two ends, and packets between them. `base` is the contract, the other modules keep it."""

from ginnel.device.base import Device as Device
from ginnel.device.base import DeviceEnd as DeviceEnd
from ginnel.device.capture import Capture as Capture
from ginnel.device.kernel import KernelDevice as KernelDevice
from ginnel.device.memory import MemoryDevice as MemoryDevice
from ginnel.device.named import NamedEnd as NamedEnd
from ginnel.device.named import add_address as add_address
from ginnel.device.named import delete as delete
from ginnel.device.named import list_devices as list_devices
from ginnel.device.named import open as open
from ginnel.device.named import set_mtu as set_mtu
from ginnel.device.named import set_up as set_up
from ginnel.device.named import show as show
from ginnel.device.service import Service as Service
from ginnel.device.service import create as create
