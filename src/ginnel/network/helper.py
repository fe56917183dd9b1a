"""The process that keeps the rights: it knows nine requests, and takes everything back when its asker ends.

Requests and answers are objects of JSON, one a line, on a stream socket that is standard input. An answer has
``ok``; one without has ``error`` and ``errno``. Descriptors come with the answers to ``device`` and ``names``, and one
goes with ``through``.

- ``recover`` (``keep_guard``): undoes what dead processes left, but for their kill switch where it is to be kept.
- ``device`` (``name`` or null, ``kind``): makes the device.
- ``ports`` (``ports``, ``sockets``): what any kill switch may let through, the servers' ports and protocols, and
  whether ``through`` may be asked for; told once.
- ``guard`` (``servers``): puts the kill switch up, or another in its place.
- ``through``: has the kill switch let a UDP socket through, wherever its datagrams go.
- ``names``: sockets that lead to this machine's own name servers, past the tunnel and the kill switch.
- ``configure`` (``settings``): addresses, routes and name servers, as `plan.Settings` has them; ``told`` are sentences
  on what goes past the tunnel all the same.
- ``masquerade`` (``gate``): a server's way out, as `masquerade.Gate` has it.
- ``release``: takes everything back.
"""

from __future__ import annotations

import contextlib
import errno
import json
import signal
import socket
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

from ginnel.device.address import check_name
from ginnel.device.kernel import KernelDevice
from ginnel.errors import DeviceError, GinnelError
from ginnel.network.apply import Applied
from ginnel.network.journal import Journal
from ginnel.network.kill_switch import NAMES_MARK, TUNNEL_MARK, Port, Server
from ginnel.network.masquerade import Gate
from ginnel.network.plan import MAX_SERVERS, Settings
from ginnel.openvpn.push_values import PLAIN_DNS
from ginnel.threads import MOST_LANES


class Helper:
    """Carries out requests. One device at most."""

    def __init__(self) -> None:
        self._device: KernelDevice | None = None
        self._applied = Applied(Journal())
        self._ports: set[Port] | None = None
        self._marks_sockets = False
        self._lent: list[socket.socket] = []
        self._was_up = False
        self._released = False
        self.has_failed = False
        """Whether something could not be taken back."""

    def answer(self, request: dict[str, Any], given: list[socket.socket]) -> tuple[dict[str, Any], list[int]]:
        """The answer to a request, and the descriptors that go with it. ``given`` came with the request."""
        try:
            match request["do"]:
                case "recover":
                    found = self._applied.recover(keep_guard=bool(request["keep_guard"]))
                    self._was_up = self._applied.guarded
                    return {"ok": True, "found": found, "guarded": self._applied.guarded}, []
                case "device":
                    return self._make_device(request["name"], request["kind"], int(request["queues"]))
                case "ports":
                    if self._ports is not None:
                        raise ValueError("the ports are told already")
                    self._ports = {_port(*entry) for entry in request["ports"]}
                    self._marks_sockets = bool(request["sockets"])
                case "guard":
                    self._changes().guard(self._servers(request["servers"]))
                case "through":
                    self._let_through(*given)
                case "names":
                    self._lent = [*_connected(self._changes().name_servers())]
                    return {"ok": True}, [sock.fileno() for sock in self._lent]
                case "configure":
                    told = self._changes().configure(Settings.parse(request["settings"]))
                    self._was_up = True
                    return {"ok": True, "told": told}, []
                case "masquerade":
                    self._changes().open_way_out(Gate.parse(request["gate"]))
                case "release":
                    self.release(keep_guard=False)
                case _:
                    raise ValueError("no such request")
        except GinnelError as error:
            return {"error": str(error), "errno": getattr(error, "errno", None) or errno.EIO}, []
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            return {"error": f"a request that cannot be: {error}", "errno": errno.EINVAL}, []
        return {"ok": True}, []

    def take_back_lent(self) -> None:
        """Closes what was lent, which the asker has its own descriptors of by now."""
        for sock in self._lent:
            sock.close()
        self._lent = []

    def release(self, *, keep_guard: bool) -> None:
        """Takes everything back. The kill switch stays, where wanted, once the tunnel was up. Idempotent."""
        if self._released:
            return
        self._released = True
        self.has_failed = not self._applied.release(keep_guard=keep_guard and self._was_up)
        if self._device is not None:
            self._device.close()
            self._device = None

    def _make_device(self, name: str | None, kind: str, queues: int) -> tuple[dict[str, Any], list[int]]:
        if self._device is not None or kind not in ("tun", "tap") or queues not in range(1, MOST_LANES + 1):
            raise ValueError("a second device, or one of no kind or too many queues")
        if name is not None:
            check_name(name)
            if name in (known for _, known in socket.if_nameindex()):
                raise DeviceError(errno.EEXIST, f"{name} is there already; take another name with --dev")
        device = KernelDevice(name, "tap" if kind == "tap" else "tun", queues=queues, vnet_header=True)
        self._device = device
        device.set_queue_length(QUEUE_LENGTH)
        self._applied.device = device.name
        descriptors = [queue.fileno() for queue in device.queues]
        return {"ok": True, "name": device.name, "udp_offload": device.offload()}, descriptors

    def _servers(self, entries: list[list[Any]]) -> list[Server]:
        if len(entries) > MAX_SERVERS:
            raise ValueError("too many servers")
        found = [(str(ip_address(host)), *_port(port, protocol)) for host, port, protocol in entries]
        if not {(port, protocol) for _, port, protocol in found} <= (self._ports or set()):
            raise ValueError("a server with a port that was not told before")
        return found

    def _let_through(self, sock: socket.socket) -> None:
        if not self._marks_sockets:
            raise ValueError("a socket, and it was not told that there would be any")
        if sock.type != socket.SOCK_DGRAM or sock.family not in (socket.AF_INET, socket.AF_INET6):
            raise ValueError("no UDP socket")
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, TUNNEL_MARK)
        except OSError as error:
            raise DeviceError(error.errno or errno.EIO, "the tunnel's socket can't be let through") from None

    def _changes(self) -> Applied:
        if self._device is None:
            raise ValueError("there is no device")
        return self._applied


def main() -> None:
    """Serves the socket at standard input until its other end is closed."""
    # A terminal's Ctrl-C, and a service's end, are for the one who asks; its end is what counts here.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=0) as asker:
        try:
            helper = Helper()
        except DeviceError as error:
            asker.sendall(json.dumps({"error": str(error), "errno": error.errno}).encode() + b"\n")
            return
        try:
            while True:
                with contextlib.ExitStack() as given:
                    line, sockets = _read_line(asker, given)
                    if line is None:
                        break
                    request = json.loads(line)
                    reply, descriptors = helper.answer(request if isinstance(request, dict) else {}, sockets)
                data = json.dumps(reply).encode() + b"\n"
                if descriptors:
                    socket.send_fds(asker, [data], descriptors)
                else:
                    asker.sendall(data)
                helper.take_back_lent()
        except (OSError, ValueError):
            pass
        finally:
            # Nobody is left to be told that a journal can't be written.
            with contextlib.suppress(DeviceError):
                helper.release(keep_guard=True)
    if helper.has_failed:
        raise SystemExit(1)


def _port(port: int, protocol: str) -> Port:
    if protocol not in ("udp", "tcp") or not 0 < int(port) < 65536:
        raise ValueError("no port")
    return int(port), str(protocol)


def _connected(servers: list[tuple[str, str]]) -> Iterator[socket.socket]:
    """To those that can be reached: each by its device, whatever the routes say, with the kill switch's mark."""
    for host, device in servers:
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, NAMES_MARK)
            sock.connect((host, PLAIN_DNS))
        except OSError:
            sock.close()
        else:
            yield sock


def _read_line(asker: socket.socket, given: contextlib.ExitStack) -> tuple[bytes | None, list[socket.socket]]:
    """A request, None at the end, and the sockets that came with it, which ``given`` closes. Its asker waits for each
    answer, so there is never more than one."""
    line, sockets = bytearray(), list[socket.socket]()
    while not line.endswith(b"\n"):
        data, descriptors, _, _ = socket.recv_fds(asker, 1 << 16, 1)
        sockets += [given.enter_context(socket.socket(fileno=descriptor)) for descriptor in descriptors]
        if not data:
            return None, sockets
        line += data
        if len(line) > MAX_REQUEST or len(sockets) > 1:
            raise ValueError("a request that is too long")
    return bytes(line), sockets


MAX_REQUEST = 8 << 20
# Packets, as many as an Ethernet device holds: the kernel's 500 for a TUN device are gone in 5 ms of small datagrams.
QUEUE_LENGTH = 1000

if __name__ == "__main__":
    main()
