"""A device of the kernel's: /dev/net/tun. Its interface end belongs to the kernel's own network stack.

Sources: ``Documentation/networking/tuntap.rst``, ``linux/if_tun.h``, ``drivers/net/tun.c``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface, ip_network
from typing import TYPE_CHECKING, Any, TypeVar

from ginnel._core import DataPlane, DescriptorEnd
from ginnel.device.address import MAIN_TABLE as MAIN_TABLE
from ginnel.device.address import MAX_NAME, Address, Route
from ginnel.device.base import DEFAULT_MTU, Kind
from ginnel.errors import DeviceError

if TYPE_CHECKING:
    from typing import Self

    from pyroute2 import IPRoute

T = TypeVar("T")


class KernelDevice:
    """A `ginnel.device.base.Device` of the kernel's, in the network namespace of the calling thread.

    The application end is a descriptor of /dev/net/tun: its ``fileno()`` can be read and written.
    Several ``queues`` are several descriptors, among which the kernel distributes flows; the first is
    `application`. With ``vnet_header`` each packet has a ``struct virtio_net_hdr`` (10 bytes) in
    front, which the device neither reads nor writes for its caller.

    A device that was there before, persistent, is attached to, and left as it is found at the end.
    """

    def __init__(
        self,
        name: str | None = None,
        kind: Kind = "tun",
        *,
        mtu: int = DEFAULT_MTU,
        queues: int = 1,
        vnet_header: bool = False,
        persist: bool = False,
        owner: int | None = None,
        group: int | None = None,
    ) -> None:
        """``name``: ``tun0``, or with ``%d`` in it for the next free number; None: ``tun%d``, ``tap%d``.

        ``persist``: it stays when this process ends; ``owner`` and ``group`` (numbers) may attach to it
        without privileges. Raises DeviceError: EPERM, EBUSY when another program has it, EINVAL for a
        name or kind that cannot be, ENOENT without /dev/net/tun.
        """
        if kind not in FLAGS:
            raise ValueError(f"device kind {kind!r}; write 'tun' or 'tap'")
        if queues < 1:
            raise ValueError("a device has at least one queue")
        self._kind: Kind = kind
        self._flags = FLAGS[kind] | IFF_NO_PI
        self._flags |= (IFF_MULTI_QUEUE if queues > 1 else 0) | (IFF_VNET_HDR if vnet_header else 0)
        wanted = f"{kind}%d" if name is None else name
        self._closed = False
        self._queues: list[DescriptorEnd] = []
        self._found = wanted in (known for _, known in socket.if_nameindex())
        self.name = wanted
        try:
            for _ in range(queues):
                self._queues.append(self._attach())
            self.index = socket.if_nametoindex(self.name)
            self._set(TUNSETOWNER, owner)
            self._set(TUNSETGROUP, group)
            self._set(TUNSETPERSIST, 1 if persist else None)
            if mtu != self.mtu:
                self.set_mtu(mtu)
        except BaseException:
            for queue in self._queues:
                queue.close()
            raise

    @property
    def kind(self) -> Kind:
        return self._kind

    @property
    def application(self) -> DescriptorEnd:
        """The first queue's descriptor. A device that is still there is attached to again when it was closed.

        DeviceError (EBADFD) for one that went with its last descriptor: it was not persistent.
        """
        if self.closed:
            raise DeviceError(errno.EBADFD, f"{self.name} was deleted")
        if self._queues[0].closed:
            if (self.index, self.name) not in socket.if_nameindex():
                raise DeviceError(errno.EBADFD, f"{self.name} went with its last descriptor; make it with persist=True")
            self._queues[0] = self._attach()
        return self._queues[0]

    @property
    def queues(self) -> tuple[DescriptorEnd, ...]:
        return tuple(self._queues)

    @property
    def interface(self) -> DescriptorEnd:
        """Raises DeviceError (EBUSY): the kernel holds it."""
        raise DeviceError(errno.EBUSY, f"the interface end of {self.name} belongs to the kernel; use a socket")

    def data_plane(self) -> DataPlane:
        """A data plane that reads and writes the device from now on, a lane for each queue.

        With a ``vnet_header`` what the kernel's TCP sends is cut into packets there, and what belongs
        together is given to the kernel in one piece. The device stays this object's to configure.
        """
        vnet = bool(self._flags & IFF_VNET_HDR)
        udp = self.offload() if vnet else False
        queues = [os.dup(queue.fileno()) for queue in (self.application, *self._queues[1:])]
        return DataPlane.on_kernel_device(queues, self._kind, vnet, udp)

    def offload(self) -> bool:
        """Takes over what the kernel would do before it hands a packet over: checksums, and cutting what is long.
        Returns whether UDP's is part of it (Linux 6.2). For a device with a ``vnet_header``."""
        # What is longer would not fit into one datagram train, and go out as a long and a short one.
        self._change(gso_max_size=TRAIN, gso_ipv4_max_size=TRAIN)
        for udp in (TUN_F_USO4 | TUN_F_USO6, 0):
            with contextlib.suppress(OSError):
                flags = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | udp
                fcntl.ioctl(self.application.fileno(), TUNSETOFFLOAD, flags)
                return bool(udp)
        return False

    @property
    def up(self) -> bool:
        return bool(self._link()["flags"] & IFF_UP)

    def set_up(self, up: bool) -> None:
        self._change(state="up" if up else "down")

    @property
    def mtu(self) -> int:
        return int(self._link().get_attr("IFLA_MTU"))

    def set_mtu(self, mtu: int) -> None:
        self._change(mtu=mtu)

    @property
    def queue_length(self) -> int:
        return int(self._link().get_attr("IFLA_TXQLEN"))

    def set_queue_length(self, packets: int) -> None:
        self._change(txqlen=packets)

    @property
    def mac(self) -> bytes:
        """Of a TAP device: 6 bytes."""
        return bytes.fromhex(self._link().get_attr("IFLA_ADDRESS").replace(":", ""))

    def set_mac(self, mac: bytes) -> None:
        self._change(address=mac.hex(":"))

    @property
    def addresses(self) -> tuple[Address, ...]:
        messages = self._netlink(lambda ip: list(ip.get_addr(index=self.index)))
        return tuple(_address(message) for message in messages)

    def add_address(self, address: Address) -> None:
        """EEXIST when it is there already."""
        words = self._address_words(address)
        if self._kind == "tun" and address.interface.version == 6:
            # Nobody on such a device could have the same: it need not be asked for first.
            words["flags"] = IFA_F_NODAD
        self._netlink(lambda ip: ip.addr("add", **words), f"cannot be given the address {address.interface}")

    def remove_address(self, interface: IPv4Interface | IPv6Interface) -> None:
        """EADDRNOTAVAIL when the device does not have it."""
        own = next((each for each in self.addresses if each.interface == interface), None)
        if own is None:
            raise DeviceError(errno.EADDRNOTAVAIL, f"{self.name} does not have the address {interface}")
        words = self._address_words(own)
        self._netlink(lambda ip: ip.addr("del", **words), f"keeps the address {interface}")

    @property
    def routes(self) -> tuple[Route, ...]:
        """Those of the main table that were not made by the kernel itself."""
        messages = self._netlink(lambda ip: list(ip.get_routes(oif=self.index, table=MAIN_TABLE)))
        return tuple(_route(message) for message in messages if message["proto"] != MADE_BY_KERNEL)

    def add_route(self, route: Route) -> None:
        """EEXIST when there is one to this destination with this metric, ENETUNREACH while it cannot be."""
        words = self._route_words(route)
        self._netlink(lambda ip: ip.route("add", **words), f"cannot be given the route to {route.destination}")

    def remove_route(self, route: Route) -> None:
        """ESRCH when there is none such."""
        words = self._route_words(route)
        self._netlink(lambda ip: ip.route("del", **words), f"has no such route to {route.destination}")

    def statistics(self) -> dict[str, int]:
        """The kernel's counters. Writes that it refused are among ``rx_dropped``."""
        counted = self._link().get_attr("IFLA_STATS64")
        kinds = ("packets", "bytes", "dropped", "errors")
        return {f"{way}_{kind}": counted[f"{way}_{kind}"] for way in ("rx", "tx") for kind in kinds}

    def close(self) -> None:
        """Deletes the device, unless it was there before. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if not self._found:
            # Now, and not when the last of the threads that read has let go of it.
            with contextlib.suppress(DeviceError):
                self._netlink(lambda ip: ip.link("del", index=self.index))
        for queue in self._queues:
            queue.close()

    @property
    def closed(self) -> bool:
        return self._closed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<KernelDevice {self.name} {self.kind}{' deleted' if self.closed else ''}>"

    def _attach(self) -> DescriptorEnd:
        queue, self.name = attach(self.name, self._flags)
        return queue

    def _set(self, request: int, value: int | None) -> None:
        if value is None:
            return
        try:
            fcntl.ioctl(self._queues[0].fileno(), request, value)
        except OSError as error:
            raise _explained(error, self.name) from None

    def _change(self, **what: Any) -> None:
        wanted = " and ".join(f"{name} {value}" for name, value in what.items())
        self._netlink(lambda ip: ip.link("set", index=self.index, **what), f"cannot be set to {wanted}")

    def _link(self) -> Any:
        return self._netlink(lambda ip: ip.link("get", index=self.index))[0]

    def _address_words(self, address: Address) -> dict[str, Any]:
        interface = address.interface
        words: dict[str, Any] = {"index": self.index, "prefixlen": interface.network.prefixlen}
        if address.peer is None:
            return {**words, "address": str(interface.ip)}
        return {**words, "local": str(interface.ip), "address": str(address.peer)}

    def _route_words(self, route: Route) -> dict[str, Any]:
        words: dict[str, Any] = {"dst": str(route.destination), "oif": self.index}
        if route.gateway is not None:
            words["gateway"] = str(route.gateway)
        if route.metric:
            words["priority"] = route.metric
        if route.table != MAIN_TABLE:
            words["table"] = route.table
        return words

    def _netlink(self, call: Callable[[IPRoute], T], refusal: str = "cannot be asked about") -> T:
        """Asks the kernel; ``refusal`` says of the device what it means when that refuses. In a thread of its own,
        which is in the same namespace: pyroute2 runs an event loop for each call, and the caller's thread may have
        one running."""
        outcome: list[Any] = []
        thread = threading.Thread(target=_ask, args=(call, outcome))
        thread.start()
        thread.join()
        (result,) = outcome
        if isinstance(result, DeviceError):
            number = result.errno or errno.EIO
            remedy = f"; {_REMEDIES[number]}" if number in _REMEDIES else ""
            raise DeviceError(number, f"{self.name} {refusal}{remedy}")
        if isinstance(result, BaseException):
            raise result
        return result  # type: ignore[no-any-return]


def attach(name: str, flags: int) -> tuple[DescriptorEnd, str]:
    """A new queue of the device ``name``, which is made where there is none, and the device's name.

    ``flags``: IFF_TUN or IFF_TAP and what else TUNSETIFF knows. Raises DeviceError as `KernelDevice` does.
    """
    if len(name.encode()) > MAX_NAME:
        raise DeviceError(errno.EINVAL, f"{name} is too long for a device's name: {MAX_NAME} bytes at most")
    try:
        descriptor = os.open(NODE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _explained(error, name) from None
    try:
        answer = fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    except OSError as error:
        os.close(descriptor)
        raise _explained(error, name) from None
    except BaseException:
        os.close(descriptor)
        raise
    return DescriptorEnd(descriptor), answer[:16].rstrip(b"\0").decode()


def is_tun(descriptor: int) -> bool:
    """Whether it is one of a kernel's TUN device."""
    try:
        answer = fcntl.ioctl(descriptor, TUNGETIFF, bytes(40))
    except OSError:
        return False
    return bool(struct.unpack_from("16xH", answer)[0] & FLAGS["tun"])


def _ask(call: Callable[[IPRoute], T], outcome: list[Any]) -> None:
    # Late, for it takes as long to import as all else that ginnel starts with.
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as ip:
            outcome.append(call(ip))
    except NetlinkError as error:
        outcome.append(DeviceError(error.code, "netlink"))
    except BaseException as error:
        outcome.append(error)


def _address(message: Any) -> Address:
    local, other = message.get_attr("IFA_LOCAL"), message.get_attr("IFA_ADDRESS")
    own = local or other
    peer = ip_address(other) if other != own else None
    return Address(ip_interface(f"{own}/{message['prefixlen']}"), peer)


def _route(message: Any) -> Route:
    unspecified = "::" if message["family"] == socket.AF_INET6 else "0.0.0.0"
    destination = message.get_attr("RTA_DST") or unspecified
    gateway = message.get_attr("RTA_GATEWAY")
    return Route(
        ip_network(f"{destination}/{message['dst_len']}"),
        ip_address(gateway) if gateway else None,
        message.get_attr("RTA_PRIORITY") or 0,
    )


def _explained(error: OSError, name: str) -> DeviceError:
    number = error.errno or errno.EIO
    # A pattern stands for whichever is free.
    name = name.replace("%d", "N")
    without = "use `ginnel connect` without --tun, or `ginnel lend`"
    what = {
        errno.EPERM: f"{name}: a kernel device takes CAP_NET_ADMIN; without it {without}",
        errno.EBUSY: f"{name} is held by another program; end it, or take another name",
        errno.EINVAL: f"{name} cannot be the name of such a device, or is one of another kind or with other queues",
        errno.ENOENT: f"there is no {NODE} here; `modprobe tun`, or {without}",
    }
    same = {errno.EACCES: errno.EPERM, errno.ENODEV: errno.ENOENT, errno.ENXIO: errno.ENOENT}
    return DeviceError(number, what.get(same.get(number, number), name))


_REMEDIES = {
    errno.EPERM: "that takes CAP_NET_ADMIN",
    errno.ENODEV: "somebody has deleted it",
    errno.ENETDOWN: "set it up first",
    errno.ENETUNREACH: "give it an address that reaches the gateway first",
}
NODE = "/dev/net/tun"
IFF_UP = 0x1
FLAGS: dict[Kind, int] = {"tun": 0x1, "tap": 0x2}
IFF_NO_PI = 0x1000
IFF_MULTI_QUEUE = 0x0100
IFF_VNET_HDR = 0x4000
TUNSETIFF = 0x400454CA
TUNSETPERSIST = 0x400454CB
TUNGETIFF = 0x800454D2
TUNSETOFFLOAD = 0x400454D0
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_USO4, TUN_F_USO6 = 0x01, 0x02, 0x04, 0x20, 0x40
# Bytes of a long packet that come to one train of datagrams (64 KiB), headers and tags among them.
TRAIN = 62_000
TUNSETOWNER = 0x400454CC
TUNSETGROUP = 0x400454CE
IFA_F_NODAD = 0x02
MADE_BY_KERNEL = 2
