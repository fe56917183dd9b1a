"""Lends a TUN or TAP device to a program that knows nothing of ginnel and has no rights.

The program opens /dev/net/tun and is handed one side of a socket pair by seccomp user notification; no library is
preloaded, nothing is patched, and no call that moves data is trapped.
"""

from ginnel.device.lend.node import Node as Node
from ginnel.device.lend.program import LentProgram as LentProgram
