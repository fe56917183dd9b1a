"""Programs on ginnel's own parts, for what no command of its own does yet.

``python -m tests.harness.ours server FOLDER``: an `Endpoint` on a data plane, a stack at 10.8.0.1 behind
it; every client gets 10.8.0.(2 + its number), and is pinged there. ``client FOLDER`` is `ginnel.connect` with the
wrap that the folder has, which pings the office.

The folder has ``settings.json`` and PEM files; ``seconds`` says how long there is pinging. What happens is
written as one JSON object a line.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import ginnel
from ginnel._core import DataPlane
from ginnel.device.memory import MemoryDevice
from ginnel.openvpn import events
from ginnel.openvpn.endpoint import Endpoint, Limits
from ginnel.openvpn.ovpn_file import read_ovpn
from ginnel.openvpn.push import PushReply
from ginnel.openvpn.server import ServerPolicy, ServerSettings
from ginnel.openvpn.tls import TlsContext, TlsSettings
from ginnel.openvpn.tls_crypt_v2 import ClientKey, ServerKey, TlsCryptV2, TlsCryptV2Server
from ginnel.openvpn.wrap import NoWrap, StaticKey, TlsAuth, TlsCrypt, Wrap
from ginnel.stack.stack import Stack
from ginnel.testing import REPORTS


def say(event: str, **fields: Any) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


class Server:
    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self._folder = folder
        self._options = settings
        self._loop = asyncio.get_running_loop()
        self._device = MemoryDevice("tun")
        self._device.set_up(True)
        self._stack = Stack(self._device.interface, budget=16 << 20)
        self._stack.set_addresses(["10.8.0.1/24"])
        self._plane = DataPlane(self._device.application)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
            bound.setblocking(False)
            bound.bind((settings["address"], settings["port"]))
            self._plane.add_udp(bound.detach())
        self._settings = self._server_settings()
        self._endpoint = Endpoint(
            self._settings,
            self._make_policy,
            random=os.urandom,
            unix_time=time.time(),
            now=self._loop.time(),
            limits=Limits(connect_freq_initial=(1000, 10)),
        )
        self._timer: asyncio.TimerHandle | None = None
        self._pinging: list[asyncio.Task[None]] = []
        self._loop.add_reader(self._plane.fileno(), self._receive)
        say("ready")

    def statistics(self) -> dict[str, int]:
        return self._endpoint.statistics()

    def _server_settings(self) -> ServerSettings:
        read = self._read
        tls = TlsSettings(ca=read("ca.pem"), cert=read("server.pem"), key=read("server.key"), remote_cert_tls="client")
        return ServerSettings(
            tls=TlsContext(tls, server=True),
            wrap=self._wrap(),
            reneg_sec=self._options.get("reneg_sec", 3600),
            auth="SHA256",
        )

    def _wrap(self) -> Wrap:
        match self._options["wrap"]:
            case "tls-auth":
                return TlsAuth(StaticKey.parse(self._read("static.key")), "SHA256", 0)
            case "tls-crypt":
                return TlsCrypt(StaticKey.parse(self._read("static.key")))
            case "tls-crypt-v2":
                key = ServerKey.parse(self._read("v2-server.key"))
                return TlsCryptV2Server(key, force_cookie=self._options.get("force_cookie", True), max_age=1)
        return NoWrap()

    def _make_policy(self, *, peer: int, path: events.Path, unix_time: float) -> ServerPolicy:
        push = PushReply.parse([f"ifconfig 10.8.0.{2 + peer % 250} 255.255.255.0", "topology subnet"])
        return ServerPolicy(self._settings, push, unix_time=unix_time, peer=peer, peer_id=peer)

    def _receive(self) -> None:
        now = self._loop.time()
        for kind, *fields in self._plane.events():
            if kind == "control":
                self._endpoint.receive_datagram(fields[0], fields[1], now)
            else:
                self._endpoint.data_event(REPORTS[kind](*fields), now)
        self._advance()

    def _fire(self) -> None:
        self._endpoint.handle_timer(self._loop.time())
        self._advance()

    def _advance(self) -> None:
        while (entry := self._endpoint.next_event()) is not None:
            self._carry_out(*entry)
        for datagram, path in self._endpoint.datagrams_to_send(self._loop.time()):
            self._plane.send_control(datagram, path)
        if self._timer is not None:
            self._timer.cancel()
        at = self._endpoint.get_timer()
        self._timer = None if at is None else self._loop.call_at(at, self._fire)

    def _carry_out(self, peer: int, event: events.Event) -> None:
        plane = self._plane
        match event:
            case events.NewPeer(peer, path, peer_id):
                plane.new_peer(peer, path, peer_id)
                plane.set_routes(peer, [f"10.8.0.{2 + peer % 250}/32"], None)
            case events.SetPeer(peer, ping, ping_restart, mss, framing):
                plane.set_peer(peer, ping, ping_restart, mss, framing)
            case events.NewKey(peer, handle, key_id, cipher, encrypt, decrypt, auth, epochs):
                plane.new_key(peer, handle, key_id, cipher, encrypt, decrypt, auth=auth, epochs=epochs)
            case events.DelPeer(peer):
                plane.del_peer(peer)
            case events.DelKey(peer, handle):
                plane.del_key(peer, handle)
            case events.Swap(peer, handle):
                plane.swap(peer, handle)
            case events.SendDataMessage(peer, data):
                plane.send_data_message(peer, data)
            case events.Established():
                say("established", peer=peer, name=event.server, tls=event.tls, flags=event.push.protocol_flags)
                pinging = ping_for(self._stack, f"10.8.0.{2 + peer % 250}", self._options.get("seconds", 0.5))
                self._pinging.append(self._loop.create_task(pinging))
            case events.Rekeyed(key_id):
                say("rekeyed", peer=peer, key_id=key_id)
            case events.Closed(error):
                say("closed", peer=peer, error=str(error))
            case events.Notice(text):
                say("notice", peer=peer, text=text)

    def _read(self, name: str) -> str:
        return (self._folder / name).read_text()


async def ping_for(stack: Stack, host: str, seconds: float) -> None:
    """Several at a time, so that something is on its way at any moment."""
    end = time.monotonic() + seconds

    async def run() -> tuple[int, int]:
        sent = lost = 0
        while time.monotonic() < end:
            sent += 1
            try:
                await stack.ping(host, timeout=3)
            except TimeoutError:
                lost += 1
        return sent, lost

    results = await asyncio.gather(*(run() for _ in range(8)))
    say("pinged", sent=sum(sent for sent, _ in results), lost=sum(lost for _, lost in results))


async def run_client(folder: Path, settings: dict[str, Any]) -> None:
    config = read_ovpn(folder / "client.ovpn")
    if settings["wrap"] == "tls-crypt-v2":
        key = ClientKey.parse((folder / "v2-client.key").read_text())
        config = dataclasses.replace(config, wrap=TlsCryptV2(key))  # type: ignore[arg-type]
    async with ginnel.connect(config) as vpn:
        say("up", tls=vpn.info.tls)
        await ping_for(vpn.stack, "10.77.0.1", settings.get("seconds", 0.5))


async def main() -> None:
    role, folder = sys.argv[1], Path(sys.argv[2])
    settings = json.loads((folder / "settings.json").read_text())
    if role == "client":
        await run_client(folder, settings)
        return
    server = Server(folder, settings)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    say("statistics", **server.statistics())


if __name__ == "__main__":
    asyncio.run(main())
