"""A network stack in user space: streams, datagrams, ping and names through a device."""

from ginnel.stack.sockets import DatagramSocket, Flow, Server
from ginnel.stack.stack import Neighbour, Stack
from ginnel.stack.transparent import Arrival, DatagramFlow, Echo, Interception

__all__ = [
    "Arrival",
    "DatagramFlow",
    "DatagramSocket",
    "Echo",
    "Flow",
    "Interception",
    "Neighbour",
    "Server",
    "Stack",
]
