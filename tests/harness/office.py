"""The machines behind the VPN, in one small program: HTTP, echo, and the names of the zone ``office``.

It listens on addresses that the outside has no route to. Run it with ``python -m tests.harness.office``;
it says ``ready`` when it serves.

HTTP: ``/`` is a page, ``/body/SIZE`` is SIZE bytes that `body` gives, ``/endless`` is zeros until the
reader leaves. PUT takes whatever comes and answers with its SHA-256. ``/uploads`` counts the bytes
that came by PUT so far.
"""

from __future__ import annotations

import functools
import hashlib
import random
import socket
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset


@functools.lru_cache(maxsize=2)
def body(size: int) -> bytes:
    """Bytes without a pattern, the same for everybody who asks."""
    return random.Random(size).randbytes(size)


@functools.lru_cache(maxsize=2)
def body_hash(size: int) -> str:
    return hashlib.sha256(body(size)).hexdigest()


class Web(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    uploaded = 0
    _counting = threading.Lock()

    def do_GET(self) -> None:
        if self.path == "/":
            self._answer(PAGE)
        elif self.path == "/uploads":
            self._answer(str(Web.uploaded).encode())
        elif self.path.startswith("/body/"):
            self._answer(body(int(self.path.removeprefix("/body/"))))
        elif self.path == "/endless":
            self._answer_endlessly()
        else:
            self.send_error(404)

    def do_PUT(self) -> None:
        digest = hashlib.sha256()
        # What is only measured need not be hashed: that would measure the hash.
        hashed = self.path != "/sink"
        for piece in self._pieces():
            if hashed:
                digest.update(piece)
            with self._counting:
                Web.uploaded += len(piece)
        self._answer(digest.hexdigest().encode())

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _answer_endlessly(self) -> None:
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        zeros = bytes(1 << 18)
        while True:
            self.connection.sendall(zeros)

    def _pieces(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding") != "chunked":
            yield from self._read(int(self.headers["Content-Length"]))
            return
        while size := int(self.rfile.readline(), 16):
            yield from self._read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _read(self, size: int) -> Iterator[bytes]:
        while size:
            piece = self.rfile.read1(min(size, 1 << 18))
            if not piece:
                raise ConnectionAbortedError
            size -= len(piece)
            yield piece


class WebServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, address: str) -> None:
        self.address_family = _family(address)
        super().__init__((address, 80), Web)

    def handle_error(self, request: object, client_address: object) -> None:
        """Readers leave; that is no news."""


class EchoServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 1024

    def __init__(self, address: str) -> None:
        self.address_family = _family(address)
        super().__init__((address, 7), EchoHandler)

    def handle_error(self, request: object, client_address: object) -> None:
        pass


class EchoHandler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(1 << 16):
            self.request.sendall(data)


def echo_datagrams(address: str) -> None:
    with socket.socket(_family(address), socket.SOCK_DGRAM) as sock:
        sock.bind((address, 7))
        while True:
            sock.sendto(*sock.recvfrom(1 << 16))


def serve_names(address: str) -> None:
    with socket.socket(_family(address), socket.SOCK_DGRAM) as sock:
        sock.bind((address, 53))
        while True:
            query, asker = sock.recvfrom(4096)
            sock.sendto(answer(query), asker)


class NameServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: str) -> None:
        self.address_family = _family(address)
        super().__init__((address, 53), NameHandler)


class NameHandler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        while length := self.rfile.read(2):
            response = answer(self.rfile.read(int.from_bytes(length)))
            self.wfile.write(len(response).to_bytes(2) + response)


def answer(wire: bytes) -> bytes:
    query = dns.message.from_wire(wire)
    response = dns.message.make_response(query)
    response.flags |= dns.flags.AA
    question = query.question[0]
    if question.name not in ZONE:
        in_zone = question.name.is_subdomain(dns.name.from_text("office"))
        response.set_rcode(dns.rcode.NXDOMAIN if in_zone else dns.rcode.REFUSED)
        return response.to_wire()
    address = ZONE[question.name].get(dns.rdatatype.to_text(question.rdtype))
    if address is not None:
        response.answer.append(dns.rrset.from_text(question.name, 60, "IN", question.rdtype, address))
    return response.to_wire()


def main() -> None:
    for address in (ADDRESS, ADDRESS6):
        for server in (WebServer(address), EchoServer(address), NameServer(address)):
            threading.Thread(target=server.serve_forever, daemon=True).start()
        for serve in (echo_datagrams, serve_names):
            threading.Thread(target=serve, args=(address,), daemon=True).start()
    print("ready", flush=True)
    threading.Event().wait()


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


ADDRESS, ADDRESS6 = "10.77.0.1", "fd77::1"
PAGE = b"<h1>The office wiki</h1>\n"
ZONE = {
    dns.name.from_text(name): addresses
    for name, addresses in {
        "wiki.office": {"A": ADDRESS, "AAAA": ADDRESS6},
        "files.office": {"A": ADDRESS, "AAAA": ADDRESS6},
        "echo.office": {"A": ADDRESS, "AAAA": ADDRESS6},
        "four.office": {"A": ADDRESS},
        "six.office": {"AAAA": ADDRESS6},
    }.items()
}

if __name__ == "__main__":
    main()
