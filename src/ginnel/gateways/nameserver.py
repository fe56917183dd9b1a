"""Port 53 of a server's own inner addresses: questions go to the host's DNS servers, answers come back as they are."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import secrets
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from ginnel.errors import DeviceError
from ginnel.gateways.clients import Slots, Source
from ginnel.stack import Stack
from ginnel.stack.sockets import Address, DatagramSocket

log = logging.getLogger(__name__)

Ask = Callable[[bytes, Address], Awaitable[bytes]]


class Nameserver:
    """Forwards questions over UDP and TCP. It listens inside the stack only, so that nobody but its clients is served.

    Each question leaves from a port of its own and with an identifier of its own (RFC 5452). What is no question is
    dropped and counted. An asynchronous context manager.
    """

    def __init__(
        self,
        stack: Stack,
        resolvers: Sequence[Address] | None = None,
        on_failure: Callable[[str], None] = lambda reason: None,
        *,
        whose: Callable[[str], Source] = lambda address: address,
        on_crowded: Callable[[str], None] = lambda address: None,
    ) -> None:
        """``resolvers``: DNS servers, as addresses and ports; None: those of /etc/resolv.conf, read each time.
        ``on_failure`` is told why a question was not answered. ``whose`` says which client an address is of, for
        what each may have at a time, and ``on_crowded`` is told of an address that has too much."""
        self._stack = stack
        self._resolvers = resolvers
        self._on_failure = on_failure
        self._whose = whose
        self._on_crowded = on_crowded
        self._questions = Slots(QUESTIONS, CLIENT_QUESTIONS)
        # Apart: who only holds one costs others no answer.
        self._connections = Slots(CONNECTIONS, CLIENT_CONNECTIONS)
        self._tasks: set[asyncio.Task[None]] = set()
        self._counts: Counter[str] = Counter(dict.fromkeys(COUNTERS, 0))
        self._exits = contextlib.AsyncExitStack()

    def statistics(self) -> dict[str, int]:
        return dict(self._counts)

    async def __aenter__(self) -> Self:
        """DeviceError where the port is taken."""
        async with contextlib.AsyncExitStack() as exits:
            exits.push_async_callback(self._cancel)
            try:
                datagrams = await exits.enter_async_context(await self._stack.open_datagram(port=PORT))
                await exits.enter_async_context(await self._stack.start_server(self._converse, port=PORT))
            except OSError as error:
                raise DeviceError(error.errno or errno.EIO, f"cannot answer names on port {PORT}") from error
            self._start(self._listen(datagrams))
            self._exits = exits.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._cancel()
        await self._exits.aclose()

    async def _listen(self, datagrams: DatagramSocket) -> None:
        while True:
            try:
                message, client = await datagrams.recvfrom()
            except OSError:
                return  # the stack is closed
            if not _is_question(message):
                self._counts["dns_malformed"] += 1
            elif (whose := self._enter(self._questions, client[0])) is not None:
                self._start(self._answer_datagram(datagrams, message, client, whose))

    async def _answer_datagram(
        self, datagrams: DatagramSocket, question: bytes, client: Address, whose: Source
    ) -> None:
        try:
            answer = await self._ask(question, _ask_by_datagram)
            with contextlib.suppress(OSError):
                await datagrams.sendto(answer, client)
        finally:
            self._questions.free(whose)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = writer.get_extra_info("peername")[0]
        whose = self._enter(self._connections, client)
        if whose is None:
            writer.transport.abort()
            return
        try:
            while True:
                async with asyncio.timeout(IDLE_SECONDS):
                    question = await _read_message(reader)
                if not _is_question(question):
                    self._counts["dns_malformed"] += 1
                    return
                asking = self._enter(self._questions, client)
                if asking is None:
                    return
                try:
                    answer = await self._ask(question, _ask_by_stream)
                finally:
                    self._questions.free(asking)
                writer.write(len(answer).to_bytes(2, "big") + answer)
                async with asyncio.timeout(IDLE_SECONDS):
                    await writer.drain()
        except (OSError, EOFError):
            pass
        finally:
            self._connections.free(whose)
            writer.close()

    async def _ask(self, question: bytes, ask: Ask) -> bytes:
        """The answer, under the question's own identifier; SERVFAIL where no DNS server gives one."""
        self._counts["dns_questions"] += 1
        resolvers = _system_resolvers() if self._resolvers is None else self._resolvers
        asked = secrets.token_bytes(2) + question[2:]
        for resolver in [*resolvers, *resolvers][:TRIES]:
            try:
                async with asyncio.timeout(TRY_SECONDS):
                    answer = await ask(asked, resolver)
                return question[:2] + answer[2:]
            except (OSError, EOFError) as error:
                log.debug("DNS server %s does not answer: %s", resolver[0], error)
        self._counts["dns_failed"] += 1
        asked_all = ", ".join(dict.fromkeys(address for address, _ in resolvers))
        self._on_failure(f"no answer from {asked_all}" if asked_all else f"{RESOLV_CONF} names no DNS server")
        return _failure(question)

    def _enter(self, slots: Slots, address: str) -> Source | None:
        """Who has taken a slot; None where there is none for him."""
        whose = self._whose(address)
        if slots.take(whose):
            return whose
        self._counts["dns_crowded"] += 1
        self._on_crowded(address)
        return None

    def _start(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _ask_by_datagram(question: bytes, resolver: Address) -> bytes:
    loop = asyncio.get_running_loop()
    with _socket(resolver) as sock:
        sock.connect(resolver)
        await loop.sock_sendall(sock, question)
        while True:
            answer = await loop.sock_recv(sock, LONGEST)
            if _answers(answer, question):
                return answer


async def _ask_by_stream(question: bytes, resolver: Address) -> bytes:
    reader, writer = await asyncio.open_connection(*resolver)
    try:
        writer.write(len(question).to_bytes(2, "big") + question)
        await writer.drain()
        answer = await _read_message(reader)
    finally:
        writer.transport.abort()
    if not _answers(answer, question):
        raise EOFError("an answer to something else")
    return answer


async def _read_message(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))


def _socket(resolver: Address) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in resolver[0] else socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    return sock


def _is_question(message: bytes) -> bool:
    """Whether it is one standard query with one question (RFC 1035, 4.1)."""
    return (
        HEADER <= len(message) <= LONGEST_QUESTION
        and not message[2] & (RESPONSE | OPCODE)
        and message[4:6] == b"\0\1"
        and _question(message) is not None
    )


def _answers(answer: bytes, question: bytes) -> bool:
    """Whether it has the question's identifier, and repeats it where it repeats one (a failure may not)."""
    if len(answer) < HEADER or answer[:2] != question[:2] or not answer[2] & RESPONSE:
        return False
    return answer[4:6] == b"\0\0" or _question(answer) == _question(question)


def _question(message: bytes) -> bytes | None:
    """The first question: a name in lower case, type and class. None where it is cut off, or compressed."""
    at = HEADER
    while at < len(message) and 0 < message[at] < COMPRESSED:
        at += 1 + message[at]
    end = at + 5
    if end > len(message) or message[at] or at - HEADER > LONGEST_NAME:
        return None
    return message[HEADER:at].lower() + message[at:end]


def _failure(question: bytes) -> bytes:
    """SERVFAIL, with the question and nothing else."""
    repeated = _question(question) or b""
    flags = bytes([question[2] | RESPONSE, RECURSION_AVAILABLE | SERVFAIL])
    return question[:2] + flags + b"\0\1\0\0\0\0\0\0" + question[HEADER : HEADER + len(repeated)]


def _system_resolvers() -> list[Address]:
    try:
        lines = RESOLV_CONF.read_text(errors="replace").splitlines()
    except OSError as error:
        log.warning("cannot read %s: %s; names are not answered", RESOLV_CONF, error.strerror)
        return []
    words = [line.split() for line in lines]
    return [(line[1], PORT) for line in words if len(line) > 1 and line[0] == "nameserver"][:MOST_RESOLVERS]


COUNTERS = ("dns_questions", "dns_failed", "dns_malformed", "dns_crowded")
RESOLV_CONF = Path("/etc/resolv.conf")
# As the C library does (resolv.h, MAXNS).
MOST_RESOLVERS = 3
PORT = 53
QUESTIONS = 512
CLIENT_QUESTIONS = 64
CONNECTIONS = 512
CLIENT_CONNECTIONS = 64
TRIES = 4
TRY_SECONDS = 2.5
IDLE_SECONDS = 15.0
HEADER = 12
LONGEST = 65_535
LONGEST_QUESTION = 4096
LONGEST_NAME = 254
RESPONSE, OPCODE, COMPRESSED, RECURSION_AVAILABLE, SERVFAIL = 0x80, 0x78, 0x40, 0x80, 2
