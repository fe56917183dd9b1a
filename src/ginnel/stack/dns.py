"""Names, resolved through the tunnel and never by the host's own resolver."""

# dnspython hands its timeouts down as arguments.

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import socket
import ssl
import time
import weakref
from typing import TYPE_CHECKING, Any, cast

import dns.asyncbackend
import dns.asyncquery
import dns.asyncresolver
import dns.exception
import dns.message
import dns.name
import dns.nameserver
import dns.rdatatype
import dns.resolver

from ginnel.stack.sockets import Address, DatagramSocket

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ginnel.stack.stack import Stack


class Resolver:
    """Asks the tunnel's DNS servers, with a cache and search domains."""

    def __init__(self, stack: Stack, *, timeout: float = 10.0) -> None:
        """``timeout``: seconds for one name, all servers and retries together."""
        self._backend = _Backend(stack)
        self._timeout = timeout
        self._search: list[dns.name.Name] = []
        # By the domain that they are for, the most specific first; the root is for all names.
        self._routes: list[tuple[dns.name.Name, _Servers]] = []

    def configure(
        self,
        servers: Sequence[str],
        search_domains: Sequence[str] = (),
        domains: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Replaces all of it; see `Stack.set_dns`. ValueError for a domain that is no name, and for no address."""
        search = [_domain(domain) for domain in search_domains]
        given = {_domain(domain): own for domain, own in (domains or {}).items()}
        if servers:
            given[dns.name.root] = servers
        self._routes = [(domain, _Servers(given[domain], self._timeout)) for domain in sorted(given, key=len)[::-1]]
        self._search = search

    @property
    def has_servers(self) -> bool:
        return bool(self._routes)

    async def resolve(self, name: str, families: Sequence[int]) -> list[str]:
        """The addresses of ``name``: those of ``families`` (socket.AF_INET, AF_INET6), in their order.

        Raises socket.gaierror where there is none, the server does not answer, or there is no server.
        """
        if not name.strip("."):
            raise _error(repr(name), "that is no name")
        if name.rstrip(".").lower() == "localhost":
            raise _error(name, "that is this machine, not the tunnel's other side")
        if not self._routes:
            raise _error(name, "the tunnel gave no DNS server (and the host's own is not asked)")
        if not families:
            raise _error(name, "the stack has no address")
        kinds = ["A" if family == socket.AF_INET else "AAAA" for family in families]
        answers = await asyncio.gather(*(self._search_for(name, kind) for kind in kinds), return_exceptions=True)
        found = [address for answer in answers if isinstance(answer, list) for address in answer]
        if found:
            return found
        failures = [answer for answer in answers if isinstance(answer, BaseException)]
        raise failures[0] if failures else _error(name, "it has no address through the tunnel's DNS server")

    async def _search_for(self, name: str, kind: str) -> list[str]:
        """Tries the name with each search domain, and as it is: first where it has a dot in it, else last."""
        end = time.monotonic() + self._timeout
        try:
            asked = dns.name.from_text(name, None)
            candidates = _candidates(asked, self._search)
        except (dns.exception.DNSException, UnicodeError) as error:
            raise _error(name, f"not a name that can be asked for ({error})") from None
        failure: socket.gaierror | None = None
        for candidate in candidates:
            servers = next((servers for domain, servers in self._routes if candidate.is_subdomain(domain)), None)
            if servers is None:
                domains = ", ".join(domain.to_text(omit_final_dot=True) for domain, _ in self._routes)
                failure = failure or _error(name, f"the tunnel's DNS servers are for {domains} alone")
                continue
            if not servers:
                raise _error(name, "the servers for it can't be asked as the tunnel wants it")
            left = end - time.monotonic()
            try:
                return await servers.ask(candidate, kind, self._backend, max(left, 0.001))
            except dns.resolver.NXDOMAIN:
                failure = failure or _error(name, f"name not found{servers}")
            except dns.exception.Timeout:
                raise _error(name, f"no answer{servers}", socket.EAI_AGAIN) from None
            except dns.resolver.NoNameservers as error:
                # Of a domain that it knows nothing of a server may refuse to talk.
                failure = failure or _error(name, f"{_why(error)}{servers}", socket.EAI_AGAIN)
            except dns.exception.DNSException as error:
                raise _error(name, f"not a name that can be asked for ({error})") from None
        raise failure or _error(name, "not a name that can be asked for")


class _Servers:
    """Servers that know the same names, with a cache of their own."""

    def __init__(self, servers: Sequence[str], timeout: float) -> None:
        self._shown = ", ".join(servers)
        self._several = len(servers) > 1
        self._resolver = dns.asyncresolver.Resolver(configure=False)
        self._resolver.cache = dns.resolver.LRUCache(CACHE_SIZE)
        self._resolver.nameservers = [_server(text) for text in servers]
        self._resolver.timeout = min(ATTEMPT_TIMEOUT, timeout)

    def __len__(self) -> int:
        return len(self._resolver.nameservers)

    def __str__(self) -> str:
        return f" through the tunnel's DNS server{'s' if self._several else ''} {self._shown}"

    async def ask(self, name: dns.name.Name, kind: str, backend: _Backend, lifetime: float) -> list[str]:
        """Raises dnspython's exceptions."""
        answer = await self._resolver.resolve(
            name, kind, raise_on_no_answer=False, backend=backend, search=False, lifetime=lifetime
        )
        return [record.address for record in answer] if answer.rrset is not None else []


def _candidates(name: dns.name.Name, search: Sequence[dns.name.Name]) -> list[dns.name.Name]:
    if name.is_absolute():
        return [name]
    longer = []
    for suffix in search:
        # What is too long with it is none of its.
        with contextlib.suppress(dns.name.NameTooLong):
            longer.append(name.concatenate(suffix))
    bare = name.concatenate(dns.name.root)
    return [bare, *longer] if len(name) > 1 else [*longer, bare]


def _domain(text: str) -> dns.name.Name:
    try:
        return dns.name.from_text(text)
    except (dns.exception.DNSException, UnicodeError) as error:
        raise ValueError(f"not a domain: {text!r}: {error}") from None


def _server(text: str) -> dns.nameserver.Nameserver:
    """As `Stack.set_dns` takes it."""
    where, _, name = text.partition("#")
    if name:
        return _OverTls(*_address(where, TLS_PORT), name)
    return dns.nameserver.Do53Nameserver(*_address(where, DNS_PORT))


class _OverTls(dns.nameserver.AddressAndPortNameserver):
    """DNS over TLS (RFC 7858), with the certificate that its name asks for. dnspython's own connects past its caller's
    sockets."""

    def __init__(self, address: str, port: int, name: str) -> None:
        super().__init__(address, port)
        self._name = name
        self._context = ssl.create_default_context()
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._context.set_alpn_protocols(["dot"])

    def kind(self) -> str:
        return "DoT"

    def is_always_max_size(self) -> bool:
        return True

    async def async_query(
        self,
        request: dns.message.QueryMessage,
        timeout: float,
        source: str | None,
        source_port: int,
        max_size: bool,
        backend: Any,
        one_rr_per_rrset: bool = False,
        ignore_trailing: bool = False,
    ) -> dns.message.Message:
        return await dns.asyncquery.tls(
            request,
            self.address,
            timeout,
            self.port,
            backend=backend,
            ssl_context=self._context,
            server_hostname=self._name,
        )


def _why(error: dns.resolver.NoNameservers) -> str:
    """The certificate's fault, if it is."""
    for _, _, _, reason, _ in error.kwargs["errors"]:
        if isinstance(reason, ssl.SSLCertVerificationError):
            return f"its certificate is not taken ({reason.verify_message})"
        if isinstance(reason, ssl.SSLError):
            return f"no TLS ({reason.reason})"
    return "refused or failed"


def _address(text: str, port: int) -> Address:
    """``ADDRESS``, ``ADDRESS:PORT`` or ``[ADDRESS]:PORT``."""
    match = re.fullmatch(r"\[(.+)\]:([0-9]{1,5})|([^:]+):([0-9]{1,5})", text)
    if match is None:
        return str(ipaddress.ip_address(text)), port
    return str(ipaddress.ip_address(match[1] or match[3])), int(match[2] or match[4])


def _error(name: str, why: str, code: int = socket.EAI_NONAME) -> socket.gaierror:
    return socket.gaierror(code, f"{name}: {why}")


# dns.asyncbackend re-exports its base classes in a way that mypy does not take for public.
class _Backend(dns.asyncbackend.Backend):  # type: ignore[name-defined,misc]
    """dnspython's sockets, opened in the stack."""

    def __init__(self, stack: Stack) -> None:
        # Not a cycle: a stack's descriptors go with it, and not when the garbage collector comes by.
        self._stack = weakref.proxy(stack)

    def name(self) -> str:
        return "ginnel"

    async def make_socket(
        self,
        af: int,
        socktype: int,
        proto: int = 0,
        source: Address | None = None,
        destination: Address | None = None,
        timeout: float | None = None,
        ssl_context: Any = None,
        server_hostname: str | None = None,
    ) -> _Datagrams | _Stream:
        if socktype == socket.SOCK_DGRAM:
            return _Datagrams(af, await self._stack.open_datagram())
        host, port = cast(Address, destination)[:2]
        reader, writer = await _within(self._stack.open_connection(host, port), timeout)
        if ssl_context is not None:
            try:
                await _within(writer.start_tls(ssl_context, server_hostname=server_hostname), timeout)
            except BaseException:
                writer.close()
                raise
        return _Stream(af, reader, writer)

    async def sleep(self, interval: float) -> None:
        await asyncio.sleep(interval)

    async def wait_for(self, awaitable: Any, timeout: float | None) -> Any:
        return await _within(awaitable, timeout)


class _Datagrams(dns.asyncbackend.DatagramSocket):  # type: ignore[name-defined,misc]
    def __init__(self, family: int, sock: DatagramSocket) -> None:
        super().__init__(family, socket.SOCK_DGRAM)
        self._sock = sock

    async def sendto(self, what: bytes, destination: Address, timeout: float | None) -> int:
        await _within(self._sock.sendto(what, destination[:2]), timeout)
        return len(what)

    async def recvfrom(self, size: int, timeout: float | None) -> tuple[bytes, tuple[Any, ...]]:
        data, address = await _within(self._sock.recvfrom(), timeout)
        # dnspython compares it with an address as the socket module writes it.
        return data[:size], (*address, 0, 0) if self.family == socket.AF_INET6 else address

    async def close(self) -> None:
        self._sock.close()


class _Stream(dns.asyncbackend.StreamSocket):  # type: ignore[name-defined,misc]
    def __init__(self, family: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__(family, socket.SOCK_STREAM)
        self._reader = reader
        self._writer = writer

    async def sendall(self, what: bytes, timeout: float | None) -> None:
        self._writer.write(what)
        await _within(self._writer.drain(), timeout)

    async def getpeername(self) -> None:
        """dnspython asks whether there is one."""

    async def recv(self, size: int, timeout: float | None) -> bytes:
        return cast(bytes, await _within(self._reader.read(size), timeout))

    async def close(self) -> None:
        self._writer.close()


async def _within(awaitable: Any, timeout: float | None) -> Any:
    try:
        return await asyncio.wait_for(awaitable, timeout)
    except TimeoutError:
        raise dns.exception.Timeout(timeout=timeout or 0.0) from None  # type: ignore[no-untyped-call]


CACHE_SIZE = 1000
DNS_PORT, TLS_PORT = 53, 853
ATTEMPT_TIMEOUT = 3.0
