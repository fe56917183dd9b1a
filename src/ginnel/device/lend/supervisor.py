"""Answers the trapped calls of a lent program.

Everything that cannot be answered fails closed: the program gets an errno, and never the real device. That is no
fence against a program that means harm, which can change a path after it was read here; an ioctl on the real device
is refused all the same.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import stat
import struct
from collections import Counter, OrderedDict
from dataclasses import dataclass

from ginnel.device.address import Address
from ginnel.device.interface import SEND_BUFFER, Interfaces
from ginnel.device.ioctls import (
    IFREQ_SIZE,
    SIOCSIFADDR,
    TUNSETIFF,
    TUNSETQUEUE,
    Descriptor,
    argument_size,
    socket_ioctl,
    takes_number,
)
from ginnel.device.lend.memory import AT_FDCWD, Caller, Inode
from ginnel.device.lend.messages import RouteEntry
from ginnel.device.lend.netlink import NetlinkSocket
from ginnel.device.lend.network_ioctls import (
    IN6_IFREQ,
    IN6_RTMSG,
    RTENTRY,
    SIOCADDRT,
    SIOCDELRT,
    SIOCDIFADDR,
    is_about_the_network,
    only_reads,
    unpack_address6,
    unpack_route,
    unpack_route6,
)
from ginnel.device.lend.node import Node, find
from ginnel.device.lend.numbers import Machine
from ginnel.device.lend.rtnetlink import RouteNetlink
from ginnel.device.lend.seccomp import SO_DOMAIN, SO_PROTOCOL, SO_TYPE, Listener, Notification

log = logging.getLogger(__name__)


class Supervisor:
    """Serves a listener from the running event loop until all of the program's tasks are gone.

    ``interfaces`` are what the program sees and makes; ``node`` is the path it opens.
    """

    def __init__(self, listener: Listener, machine: Machine, interfaces: Interfaces, node: Node) -> None:
        self.counts: Counter[str] = Counter()
        self._listener = listener
        self._interfaces = interfaces
        self._node = node
        self._loop = asyncio.get_running_loop()
        self._routes = RouteNetlink(interfaces)
        self._descriptors: OrderedDict[Inode, Descriptor] = OrderedDict()
        self._netlink: dict[Inode, NetlinkSocket] = {}
        self._ports = 0
        self._caller: tuple[Caller, int] | None = None
        handlers = {
            "open": self._open,
            "openat": self._openat,
            "openat2": self._openat2,
            "ioctl": self._ioctl,
            "socket": self._socket,
            "bind": self._bind,
            "connect": self._connect,
            "getsockname": self._getsockname,
            "setsockopt": self._setsockopt,
            "getsockopt": self._getsockopt,
        }
        self._handlers = {
            machine.calls[name]: (name, handler) for name, handler in handlers.items() if name in machine.calls
        }
        self._loop.add_reader(listener.fileno(), self._serve)

    def close(self) -> None:
        """Stops serving; whoever is trapped gets ENOSYS. Idempotent."""
        if self._listener.fileno() < 0:
            return
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()
        for netlink in list(self._netlink.values()):
            netlink.close()
        for descriptor in self._descriptors.values():
            descriptor.close()
        self._routes.close()

    def _serve(self) -> None:
        try:
            notification = self._listener.receive()
        except OSError as error:
            # Without anybody left the listener is readable, and has nothing to say.
            log.debug("the listener: %s", error)
            notification = None
        if notification is None:
            if self._listener.has_ended():
                self._loop.remove_reader(self._listener.fileno())
            return
        name, handler = self._handlers[notification.number]
        self.counts[name] += 1
        call = _Call(self._listener, notification, Caller(notification.thread))
        try:
            if notification.thread == 0:
                raise OSError(errno.EACCES, "the caller is in a place that cannot be seen from here")
            handler(call)
        except OSError as error:
            call.fail(error.errno or errno.EIO)
        except Exception:
            log.exception("%s could not be answered", name)
            call.fail(errno.EIO)
        log.debug("%s by %d: %s", name, notification.thread, call.outcome)

    def _open(self, call: _Call) -> None:
        path, flags = call.arguments[:2]
        self._open_path(call, AT_FDCWD, path, flags)

    def _openat(self, call: _Call) -> None:
        folder, path, flags = call.arguments[:3]
        self._open_path(call, _signed(folder), path, flags)

    def _openat2(self, call: _Call) -> None:
        folder, path, how = call.arguments[:3]
        (flags,) = struct.unpack("=Q", call.caller.read(how, 8))
        self._open_path(call, _signed(folder), path, flags)

    def _open_path(self, call: _Call, folder: int, address: int, flags: int) -> None:
        path = call.caller.read_path(address)
        call.check()
        if flags & (os.O_PATH | os.O_DIRECTORY):
            call.let_pass()
            return
        path = find(call.caller, folder, path)
        if not self._node.is_meant(path):
            if flags & os.O_ACCMODE and os.path.realpath(path).startswith(b"/proc/sys/net/"):
                raise OSError(errno.EPERM, "the machine's network is not for lent programs")
            call.let_pass()
            return
        uid, gids = call.caller.identity()
        if self._node.attaches:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            descriptor = Descriptor(self._interfaces, uid, gids, uid == 0, connect=lambda: ours)
            with ours, theirs:
                self._node.attach(descriptor, self._interfaces)
                self._give(call, descriptor, theirs, flags)
            return
        # Connected to nobody yet: reading and writing fail at once, as on the kernel's device before TUNSETIFF.
        descriptor = Descriptor(self._interfaces, uid, gids, uid == 0, connect=self._join_caller)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as theirs:
            self._give(call, descriptor, theirs, flags)

    def _give(self, call: _Call, descriptor: Descriptor, theirs: socket.socket, flags: int) -> None:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        if flags & os.O_NONBLOCK:
            theirs.setblocking(False)
        if not call.give(theirs, close_on_exec=bool(flags & os.O_CLOEXEC)):
            descriptor.close()
            return
        self._forget_closed()
        self._descriptors[_inode(os.fstat(theirs.fileno()))] = descriptor

    def _forget_closed(self) -> None:
        for inode, descriptor in list(self._descriptors.items()):
            if descriptor.closed:
                del self._descriptors[inode]
        # Nothing tells when one is closed that was never attached: the oldest of very many is.
        while len(self._descriptors) >= MAX_DESCRIPTORS:
            unattached = next((key for key, value in self._descriptors.items() if value.interface is None), None)
            if unattached is None:
                break
            del self._descriptors[unattached]

    def _ioctl(self, call: _Call) -> None:
        number, request, argument = call.arguments[0], call.arguments[1] & 0xFFFFFFFF, call.arguments[2]
        status = call.caller.stat(_signed(number))
        call.check()
        descriptor = self._descriptors.get(_inode(status))
        if descriptor is not None:
            self._caller = call.caller, _signed(number)
            if request in (TUNSETIFF, TUNSETQUEUE):
                uid, gids = call.caller.identity()
                call.check()
                descriptor.set_caller(uid, gids, uid == 0)
            data = struct.pack("=Q", argument)
            if not takes_number(request):
                data = call.read_if_there(argument, argument_size(request))
            answer = descriptor.ioctl(request, data)
            if answer:
                call.caller.write(argument, answer)
            call.end()
        elif self._node.is_real_device(status):
            raise OSError(errno.EPERM, "the real device is not for lent programs")
        elif not is_about_the_network(request):
            call.let_pass()
        elif stat.S_ISSOCK(status.st_mode) and self._answer_ours(call, _signed(number), request, argument):
            call.end()
        elif only_reads(request):
            call.let_pass()
        else:
            raise OSError(errno.EPERM, "the machine's network is not for lent programs")

    def _answer_ours(self, call: _Call, number: int, request: int, argument: int) -> bool:
        """Answers what a socket is asked about our interfaces, and about routes; False: it was about something else."""
        if request in (SIOCADDRT, SIOCDELRT):
            change = self._routes.add_route if request == SIOCADDRT else self._routes.remove_route
            change(self._read_route(call, number, argument))
            return True
        if request in (SIOCSIFADDR, SIOCDIFADDR) and self._family(call, number) == socket.AF_INET6:
            index, address = unpack_address6(call.read(argument, IN6_IFREQ.size))
            if request == SIOCSIFADDR:
                self._routes.add_address(index, Address(address))
            else:
                self._routes.remove_address(index, address)
            return True
        data = call.read_if_there(argument, IFREQ_SIZE)
        answer = socket_ioctl(self._interfaces, request, data) if len(data) == IFREQ_SIZE else None
        if answer:
            call.caller.write(argument, answer)
        return answer is not None

    def _read_route(self, call: _Call, number: int, argument: int) -> RouteEntry:
        if self._family(call, number) == socket.AF_INET6:
            return unpack_route6(call.read(argument, IN6_RTMSG.size))
        entry = unpack_route(call.read(argument, RTENTRY.size), call.caller.read_path, self._index_of)
        call.check()
        return entry

    def _family(self, call: _Call, number: int) -> int:
        with call.caller.copy_socket(number) as sock:
            return sock.family

    def _index_of(self, name: str) -> int:
        interface = self._interfaces.get(name)
        if interface is not None:
            return interface.index
        try:
            return socket.if_nametoindex(name)
        except OSError:
            raise OSError(errno.ENODEV, f"no interface {name}") from None

    def _join_caller(self) -> socket.socket:
        """Our half of what becomes a pair: connects the socket that the caller of TUNSETIFF holds."""
        assert self._caller is not None
        caller, number = self._caller
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, caller.copy_socket(number) as theirs:
            # An abstract address of the kernel's choice. Others might find it: our own connection is told by its pid.
            listener.bind("")
            listener.listen(8)
            theirs.connect(listener.getsockname())
            while True:
                ours, _ = listener.accept()
                credentials = ours.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
                if struct.unpack("=i", credentials[:4])[0] == os.getpid():
                    return ours
                ours.close()

    def _socket(self, call: _Call) -> None:
        kind = call.arguments[1]
        if kind & 0xF not in (socket.SOCK_RAW, socket.SOCK_DGRAM):
            raise OSError(errno.ESOCKTNOSUPPORT, "not a kind of netlink socket")
        self._ports += 1
        process = call.caller.process()
        taken = any(netlink.port == process for netlink in self._netlink.values())
        port = 0x80000000 + self._ports if taken else process
        netlink, theirs = NetlinkSocket.make(self._routes, port, kind & 0xF)
        with theirs:
            if kind & socket.SOCK_NONBLOCK:
                theirs.setblocking(False)
            if len(self._netlink) >= MAX_DESCRIPTORS:
                netlink.close()
                raise OSError(errno.ENFILE, "too many netlink sockets")
            inode = _inode(os.fstat(theirs.fileno()))
            if not call.give(theirs, close_on_exec=bool(kind & socket.SOCK_CLOEXEC)):
                netlink.close()
                return
        self._netlink[inode] = netlink
        netlink.serve(lambda: self._netlink.pop(inode, None))

    def _netlink_of(self, call: _Call) -> NetlinkSocket | None:
        status = call.caller.stat(_signed(call.arguments[0]))
        call.check()
        return self._netlink.get(_inode(status))

    def _bind(self, call: _Call) -> None:
        netlink = self._netlink_of(call)
        if netlink is None:
            call.let_pass()
            return
        family, _, _, groups = struct.unpack("=HHII", call.caller.read(call.arguments[1], 12))
        call.check()
        if family != socket.AF_NETLINK:
            raise OSError(errno.EINVAL, "no netlink address")
        netlink.join_groups(groups)
        call.end()

    def _connect(self, call: _Call) -> None:
        if self._netlink_of(call) is None:
            call.let_pass()
        else:
            call.end()

    def _getsockname(self, call: _Call) -> None:
        netlink = self._netlink_of(call)
        if netlink is None:
            call.let_pass()
            return
        name = struct.pack("=HHII", socket.AF_NETLINK, 0, netlink.port, netlink.groups)
        call.hand_out(name, *call.arguments[1:3])

    def _getsockopt(self, call: _Call) -> None:
        netlink = self._netlink_of(call)
        if netlink is None:
            call.let_pass()
            return
        option, value, length = call.arguments[2:5]
        answer = {SO_TYPE: netlink.kind, SO_PROTOCOL: NETLINK_ROUTE, SO_DOMAIN: socket.AF_NETLINK}[option & 0xFFFFFFFF]
        call.hand_out(struct.pack("=i", answer), value, length, cut=True)

    def _setsockopt(self, call: _Call) -> None:
        netlink = self._netlink_of(call)
        if netlink is None:
            call.let_pass()
            return
        option, value, size = call.arguments[2:5]
        if option & 0xFFFFFFFF in (NETLINK_ADD_MEMBERSHIP, NETLINK_DROP_MEMBERSHIP):
            if size < 4:
                raise OSError(errno.EINVAL, "no number of a group")
            (group,) = struct.unpack("=I", call.caller.read(value, 4))
            call.check()
            netlink.change_membership(group, option & 0xFFFFFFFF == NETLINK_ADD_MEMBERSHIP)
        call.end()


@dataclass(slots=True)
class _Call:
    """A trapped call, answered once."""

    listener: Listener
    notification: Notification
    caller: Caller
    outcome: str = ""

    @property
    def arguments(self) -> tuple[int, ...]:
        return self.notification.arguments

    def check(self) -> None:
        """To be called after reading and before using what was read: what was read may be another's by then."""
        if not self.listener.is_waiting(self.notification):
            raise OSError(errno.ESRCH, "the caller is gone")

    def read(self, address: int, size: int) -> bytes:
        """Memory; EFAULT where there is none."""
        data = self.caller.read(address, size)
        self.check()
        return data

    def read_if_there(self, address: int, size: int) -> bytes:
        """Memory, or nothing where there is none: the answer to a bad pointer depends on what it is for."""
        if not size:
            return b""
        try:
            return self.read(address, size)
        except OSError as error:
            if error.errno != errno.EFAULT:
                raise
            return b""

    def hand_out(self, data: bytes, address: int, length: int, *, cut: bool = False) -> None:
        """Ends the call with data as long as the caller has room for, and its length: as it is, or as it was cut."""
        (room,) = struct.unpack("=i", self.caller.read(length, 4))
        if room < 0:
            raise OSError(errno.EINVAL, "a negative length")
        self.check()
        self.caller.write(address, data[:room])
        self.caller.write(length, struct.pack("=i", min(len(data), room) if cut else len(data)))
        self.end()

    def end(self, value: int = 0) -> None:
        self.outcome = str(value)
        self.listener.respond(self.notification, value)

    def fail(self, code: int) -> None:
        if not self.outcome:
            self.outcome = errno.errorcode.get(code, str(code))
            self.listener.respond(self.notification, error=code)

    def let_pass(self) -> None:
        self.outcome = "passed on"
        self.listener.let_pass(self.notification)

    def give(self, sock: socket.socket, *, close_on_exec: bool) -> bool:
        self.outcome = "given"
        return self.listener.give_descriptor(self.notification, sock.fileno(), close_on_exec=close_on_exec)


def _signed(argument: int) -> int:
    """An int argument; the upper half of its register means nothing."""
    value = argument & 0xFFFFFFFF
    return value - (1 << 32) if value & 0x80000000 else value


def _inode(status: os.stat_result) -> Inode:
    return status.st_dev, status.st_ino


MAX_DESCRIPTORS = 1024
NETLINK_ROUTE = 0
NETLINK_ADD_MEMBERSHIP, NETLINK_DROP_MEMBERSHIP = 1, 2
