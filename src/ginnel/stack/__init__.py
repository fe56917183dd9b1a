"""A network stack in user space: streams, datagrams, ping and names through a device."""

from ginnel.stack.sockets import DatagramSocket, Flow, Server
from ginnel.stack.stack import Neighbour, Stack

__all__ = ["DatagramSocket", "Flow", "Neighbour", "Server", "Stack"]
