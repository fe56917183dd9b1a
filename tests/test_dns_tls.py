"""Names over TLS, through the tunnel: of whom a pushed ``dns server N transport DoT`` names, and of nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ginnel.openvpn.push import PushReply
from ginnel.vpn import configure
from tests.harness.pki import Authority
from tests.test_dns import DnsServer, Stacks
from tests.test_dns import stacks as stacks

NAME = "dns.office.example"


class Case:
    """The stack inside, and a server that is asked over TLS on its other side; `plain` counts what is not."""

    def __init__(self, stacks: Stacks) -> None:
        self.stack, self.right, self.plain = stacks
        self.asked = DnsServer()

    def push(self, *options: str) -> list[str]:
        """Has the stack follow what was pushed."""
        push = PushReply.parse(["ifconfig 10.8.0.1 255.255.255.0", "topology subnet", *options])
        return configure(self.stack, push, PushReply(), "tun")

    @contextlib.asynccontextmanager
    async def serving(self, authority: Authority, *hosts: str, port: int = 853) -> AsyncIterator[None]:
        """TLS ends on a socket of this machine, behind the stack's own."""
        identity = authority.issue("dns", server=True, hosts=hosts)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._folder.joinpath("own").write_text(identity.certificate + identity.key)
        context.load_cert_chain(self._folder / "own")
        async with await asyncio.start_server(self.asked.serve_stream, "127.0.0.1", 0, ssl=context) as behind:
            where = behind.sockets[0].getsockname()

            async def lead(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                there, back = await asyncio.open_connection(*where)
                try:
                    await asyncio.gather(copy(reader, back), copy(there, writer))
                finally:
                    back.close()
                    writer.close()

            server = await self.right.start_server(lead, port=port)
            try:
                yield
            finally:
                server.close()

    _folder = Path()


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
    writer.close()


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """Which this machine trusts."""
    authority = Authority()
    (tmp_path / "ca").write_text(authority.certificate)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca"))
    monkeypatch.setattr(Case, "_folder", tmp_path)
    return authority


DOT = ("dns server 1 address 10.8.0.2", "dns server 1 transport DoT")


@pytest.mark.parametrize(
    ("options", "hosts", "port"),
    [
        ((*DOT, f"dns server 1 sni {NAME}"), (NAME,), 853),
        (DOT, ("10.8.0.2",), 853),
        (("dns server 1 address 10.8.0.2:8853", *DOT[1:], f"dns server 1 sni {NAME}"), (NAME,), 8853),
    ],
    ids=["sni", "address", "port"],
)
async def test_names_are_asked_for_over_tls(
    stacks: Stacks, authority: Authority, options: tuple[str, ...], hosts: tuple[str, ...], port: int
) -> None:
    case = Case(stacks)
    async with case.serving(authority, *hosts, port=port):
        assert case.push("dhcp-option DNS 10.8.0.2", *options) == []
        assert await case.stack.resolve("host.example", socket.AF_INET) == ["10.8.0.2"]
        assert len(await case.stack.resolve("many.example", socket.AF_INET)) == 199
    assert len(case.asked.asked) == 2
    assert case.plain.asked == []


@pytest.mark.parametrize("wrong", ["name", "address", "authority"])
async def test_who_has_another_certificate_is_not_asked(stacks: Stacks, authority: Authority, wrong: str) -> None:
    case = Case(stacks)
    signer = Authority("Another CA") if wrong == "authority" else authority
    hosts = {"name": ("other.example", "10.8.0.2"), "address": (NAME,), "authority": (NAME,)}[wrong]
    async with case.serving(signer, *hosts):
        case.push("dhcp-option DNS 10.8.0.2", *DOT, *([] if wrong == "address" else [f"dns server 1 sni {NAME}"]))
        with pytest.raises(socket.gaierror, match="its certificate is not taken"):
            await case.stack.resolve("host.example", socket.AF_INET)
    assert case.asked.asked == case.plain.asked == []


@pytest.mark.parametrize(
    ("wish", "said"), [("transport DoH", "asked with DoH"), ("dnssec yes", "asked with answers validated by DNSSEC")]
)
async def test_what_cannot_be_done_leaves_the_server_out(
    stacks: Stacks, authority: Authority, wish: str, said: str
) -> None:
    """And what is for other names goes on; nobody else is asked in its place."""
    case = Case(stacks)
    (told,) = case.push("dhcp-option DNS 10.8.0.2", DOT[0], f"dns server 1 {wish}")
    assert said in told
    with pytest.raises(socket.gaierror, match="gave no DNS server"):
        await case.stack.resolve("host.example", socket.AF_INET)
    only = f"dns server 1 {wish}", "dns server 1 resolve-domains corp.example"
    (told,) = case.push("dhcp-option DNS 10.8.0.2", DOT[0], *only)
    assert "for corp.example (10.8.0.2) are not asked" in told
    assert await case.stack.resolve("host.example", socket.AF_INET) == ["10.8.0.2"]
    with pytest.raises(socket.gaierror, match="can't be asked as the tunnel wants"):
        await case.stack.resolve("inside.corp.example", socket.AF_INET)
    assert case.plain.asked == ["host.example. A"]
    (told,) = case.push(DOT[0], f"dns server 1 {wish}", "dns server 2 address 10.8.0.2")
    assert await case.stack.resolve("only4.example", socket.AF_INET) == ["192.0.2.4"]
