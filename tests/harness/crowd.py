"""Many clients in one process: sessions and data channels without threads, each on a UDP socket of its own."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from typing import Any

from ginnel._core import DataChannel
from ginnel.device.forge import Echo, parse
from ginnel.openvpn import events, settings
from ginnel.openvpn.client import ClientPolicy
from ginnel.openvpn.commands import REPORTS
from ginnel.openvpn.config import ClientConfig
from ginnel.openvpn.session import Session
from ginnel.openvpn.tls import TlsContext


class CrowdClient:
    """One client. ``sent`` and ``answered`` count echo requests and their replies; ``address`` is the inner one,
    None before the tunnel is up."""

    def __init__(self, config: ClientConfig, tls: TlsContext) -> None:
        self._loop = asyncio.get_running_loop()
        remote = config.remotes[0]
        self._path = (0, remote.host, remote.port)
        self._sock = self._open()
        self._channel = DataChannel()
        policy = ClientPolicy(
            settings.client_settings(config, remote, tls), settings.login(config, None), unix_time=time.time()
        )
        self._session = Session(policy, path=self._path, random=os.urandom, now=self._loop.time())
        self._timer: asyncio.TimerHandle | None = None
        self.up: asyncio.Future[float] = self._loop.create_future()
        self.began = self._loop.time()
        self.address: bytes | None = None
        self.sent = self.answered = 0
        self._advance()

    def ask(self, destination: bytes) -> None:
        assert self.address is not None
        self.sent += 1
        packet = Echo(self.address, destination, 1, self.sent & 0xFFFF, bytes(200)).emit()
        self._send(self._channel.send_packet(packet, self._loop.time()))

    def move(self) -> None:
        """Sends from another port from now on."""
        self._close()
        self._sock = self._open()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._close()

    def _open(self) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.connect(self._path[1:])
        self._loop.add_reader(sock, self._receive)
        return sock

    def _close(self) -> None:
        self._loop.remove_reader(self._sock)
        self._sock.close()

    def _receive(self) -> None:
        now = self._loop.time()
        for _ in range(64):
            try:
                datagram = self._sock.recv(4096)
            except OSError:
                break
            for packet in self._channel.receive_datagram(datagram, self._path, now):
                answer = parse(packet)
                self.answered += isinstance(answer, Echo) and answer.is_reply
        self._advance()

    def _fire(self) -> None:
        now = self._loop.time()
        self._timer = None
        if (at := self._session.get_timer()) is not None and at <= now:
            self._session.handle_timer(now)
        if (at := self._channel.get_timer()) is not None and at <= now:
            self._send(self._channel.handle_timer(now))
        self._advance()

    def _advance(self) -> None:
        now = self._loop.time()
        for kind, *fields in self._channel.events():
            if kind == "control":
                self._session.receive_datagram(fields[0], self._path, now)
            else:
                self._session.data_event(REPORTS[kind](*fields), now)
        while (event := self._session.next_event()) is not None:
            self._follow(event, now)
        self._send(self._session.datagrams_to_send(now))
        if self._timer is not None:
            self._timer.cancel()
        times = [at for at in (self._session.get_timer(), self._channel.get_timer()) if at is not None]
        self._timer = self._loop.call_at(min(times), self._fire) if times else None

    def _follow(self, event: events.Event, now: float) -> None:
        channel = self._channel
        match event:
            case events.NewPeer(peer, path, peer_id):
                channel.new_peer(peer, path, peer_id, now)
            case events.SetPeer(peer, ping, ping_restart, mss, framing):
                channel.set_peer(peer, ping, ping_restart, mss, now, framing)
            case events.NewKey(peer, handle, key_id, cipher, encrypt, decrypt, auth, epochs):
                channel.new_key(peer, handle, key_id, cipher, encrypt, decrypt, auth=auth, epochs=epochs)
            case events.Swap(peer, handle):
                channel.swap(peer, handle)
            case events.DelKey(peer, handle):
                channel.del_key(peer, handle)
            case events.Established(push=push) if push.ifconfig is not None:
                self.address = push.ifconfig.local.packed
                self.up.set_result(now - self.began)
            case events.Closed(error=error) if not self.up.done():
                self.up.set_exception(error or RuntimeError("closed"))

    def _send(self, datagrams: list[tuple[bytes, Any]]) -> None:
        for datagram, _ in datagrams:
            try:
                self._sock.send(datagram)
            except OSError:
                return
