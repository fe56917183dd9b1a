"""A network stack in user space: streams, datagrams, ping and names through a device."""

from ginnel.stack.sockets import DatagramSocket, Flow, Server
from ginnel.stack.stack import Neighbour, Stack
from ginnel.stack.transparent import Arrival, Capture, DatagramFlow, Echo

__all__ = [
    "Arrival",
    "Capture",
    "DatagramFlow",
    "DatagramSocket",
    "Echo",
    "Flow",
    "Neighbour",
    "Server",
    "Stack",
]
