"""Traffic through a stack to addresses that are not its own: every connection, every flow of datagrams and every
echo request is put before somebody who decides what becomes of it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ginnel.stack.sockets import Address, Flow

if TYPE_CHECKING:
    import socket

    from ginnel.stack.stack import Stack

#: Why something is refused: what the ICMP message says of the destination. "prohibited" by whoever runs this.
Unreachable = Literal["network", "host", "port", "prohibited"]


class Arrival:
    """A TCP connection that ``source`` wants with ``destination``: its SYN is not answered yet."""

    def __init__(self, stack: Stack, number: int, source: Address, destination: Address) -> None:
        self._stack = stack
        self._number = number
        self.source = source
        self.destination = destination
        self.decided = False

    def reserve(self) -> None:
        """Keeps the memory that the connection needs, so that it can be accepted.

        OSError: ENOTCONN where the source has given up, ENOBUFS past the stack's budget.
        """
        self._stack.reserve_arrival(self._number)

    async def accept(self) -> Flow:
        """Answers the SYN and waits until the connection is open; then it is for :meth:`Stack.attach`.

        OSError: ENOTCONN where the source has given up, ENOBUFS past the stack's budget, where it can be refused
        still, ETIMEDOUT, ECONNREFUSED where it took its SYN back meanwhile.
        """
        self.decided = True
        try:
            return await self._stack.accept_arrival(self._number, self.source)
        except OSError as error:
            self.decided = error.errno != errno.ENOBUFS
            raise

    def refuse(self, reason: Unreachable | Literal["reset"] = "reset") -> None:
        """Answers the SYN with a reset, or with an ICMP message. Harmless once it is decided."""
        if not self.decided:
            self.decided = True
            self._stack.refuse_arrival(self._number, reason)


class DatagramFlow:
    """The datagrams that ``source`` sends to ``destination``. The first ones wait for a decision."""

    def __init__(self, stack: Stack, number: int, source: Address, destination: Address) -> None:
        self._stack = stack
        self._number = number
        self.source = source
        self.destination = destination
        self.decided = False
        #: Done when the flow was idle for too long, or was closed, or refused some time ago.
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def attach(self, sock: socket.socket) -> None:
        """Joins the flow with a connected UDP socket, which it takes over: payloads go between them in Rust.

        What the socket is told of ports that nobody holds is told to the source. OSError (ENOTCONN) where the
        flow has ended; the socket is closed then.
        """
        self.decided = True
        self._stack.attach_datagram_flow(self._number, sock)

    def refuse(self, reason: Unreachable = "port") -> None:
        """Answers its datagrams with an ICMP message, for 10 seconds. Harmless once it is decided."""
        if not self.decided:
            self.decided = True
            self._stack.refuse_datagram_flow(self._number, reason)

    def close(self) -> None:
        """Ends the flow; the next datagram begins another. Idempotent."""
        self._stack.close_datagram_flow(self._number)


class Echo:
    """An echo request of ``source`` to ``destination``."""

    def __init__(
        self, stack: Stack, source: str, destination: str, identifier: int, sequence: int, payload: bytes
    ) -> None:
        self._stack = stack
        self.source = source
        self.destination = destination
        self.identifier = identifier
        self.sequence = sequence
        self.payload = payload

    def reply(self) -> None:
        """Answers as the destination would."""
        self._stack.echo_reply(self.destination, self.source, self.identifier, self.sequence, self.payload)


Decidable = TypeVar("Decidable", Arrival, DatagramFlow)


class Interception:
    """Takes what comes through a stack for others' addresses. An asynchronous context manager that stops deciding.

    Each callback runs in a task of its own. Who returns from ``on_arrival`` or ``on_datagrams`` without a decision,
    or fails, has refused ("prohibited"). The task of a connection that its source gives up before it is decided is
    cancelled. How many wait at a time is bounded by the stack, for each source and for all; the rest is counted as
    ``dropped_crowded``.
    """

    def __init__(
        self,
        stack: Stack,
        on_arrival: Callable[[Arrival], Awaitable[object]],
        on_datagrams: Callable[[DatagramFlow], Awaitable[object]],
        on_echo: Callable[[Echo], Awaitable[object]],
        *,
        idle: float = 60.0,
    ) -> None:
        """``idle``: seconds without a datagram either way after which a flow of them ends."""
        self._stack = stack
        self._loop = asyncio.get_running_loop()
        self._on_arrival = on_arrival
        self._on_datagrams = on_datagrams
        self._on_echo = on_echo
        self._arrivals: dict[int, tuple[Arrival, asyncio.Task[None]]] = {}
        self._flows: dict[int, DatagramFlow] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        stack.capture_flows(self, idle)

    @property
    def datagram_flows(self) -> list[DatagramFlow]:
        """Those that have not ended."""
        return list(self._flows.values())

    def arrived(self, number: int, source: Address, destination: Address) -> None:
        """For :class:`Stack`."""
        arrival = Arrival(self._stack, number, source, destination)
        if self._closed:
            arrival.refuse("prohibited")
            return
        task = self._start(self._decide(self._on_arrival, arrival))
        self._arrivals[number] = (arrival, task)
        task.add_done_callback(lambda _: self._arrivals.pop(number, None))

    def withdrawn(self, number: int) -> None:
        """For :class:`Stack`."""
        arrival, task = self._arrivals.pop(number, (None, None))
        if arrival is not None and task is not None and not arrival.decided:
            arrival.decided = True
            task.cancel()

    def datagrams(self, number: int, source: Address, destination: Address) -> None:
        """For :class:`Stack`."""
        flow = DatagramFlow(self._stack, number, source, destination)
        if self._closed:
            flow.refuse("prohibited")
            return
        self._flows[number] = flow
        self._start(self._decide(self._on_datagrams, flow))

    def datagrams_ended(self, number: int) -> None:
        """For :class:`Stack`."""
        flow = self._flows.pop(number, None)
        if flow is not None and not flow.ended.done():
            flow.decided = True
            flow.ended.set_result(None)

    def echo(self, source: str, destination: str, identifier: int, sequence: int, payload: bytes) -> None:
        """For :class:`Stack`."""
        if not self._closed:
            self._start(self._answer(Echo(self._stack, source, destination, identifier, sequence, payload)))

    async def aclose(self) -> None:
        """Cancels what is undecided and refuses what comes from now on; what is open goes on. Idempotent."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def __aenter__(self) -> Interception:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def _decide(self, decide: Callable[[Decidable], Awaitable[object]], asked: Decidable) -> None:
        try:
            await decide(asked)
        finally:
            # The stack may be closed by now, and then has refused by itself.
            with contextlib.suppress(OSError):
                asked.refuse("prohibited")

    async def _answer(self, echo: Echo) -> None:
        await self._on_echo(echo)

    def _start(self, work: Any) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            context = {"message": "deciding on captured traffic failed", "exception": error, "task": task}
            self._loop.call_exception_handler(context)
