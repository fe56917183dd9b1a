"""The Rust half of ginnel, as Python sees it."""

from ginnel._core.bridge import Bridge as Bridge
from ginnel._core.control import ControlCipher as ControlCipher
from ginnel._core.device import Capture as Capture
from ginnel._core.device import DescriptorEnd as DescriptorEnd
from ginnel._core.device import Device as Device
from ginnel._core.device import End as End
from ginnel._core.device import Link as Link
from ginnel._core.plane import DataChannel as DataChannel
from ginnel._core.plane import DataPlane as DataPlane
from ginnel._core.stack import NetStack as NetStack

def processors() -> int:
    """For how many threads there are processors: what this process may run on, and its container's quota."""
