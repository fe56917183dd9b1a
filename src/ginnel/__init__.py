"""ginnel: a VPN from end to end in Python, in user space, without root.

>>> async with ginnel.connect("office.ovpn") as vpn:
...     reader, writer = await vpn.open_connection("wiki.office", 80)
"""

import importlib

from ginnel.errors import (
    AuthError,
    ConfigError,
    DeviceError,
    GinnelError,
    LocalProtocolError,
    RemoteProtocolError,
    UnreachableError,
)

# That of `typing` takes longer to import than all the rest of this.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from ginnel import blocking
    from ginnel.openvpn.ovpn_file import parse_ovpn
    from ginnel.server import Server, ServerConfig, serve
    from ginnel.vpn import Change, Down, Info, OpenUrl, Prompt, Reconnecting, State, Up, Vpn, connect

__all__ = [
    "AuthError",
    "Change",
    "ConfigError",
    "DeviceError",
    "Down",
    "GinnelError",
    "Info",
    "LocalProtocolError",
    "OpenUrl",
    "Prompt",
    "Reconnecting",
    "RemoteProtocolError",
    "Server",
    "ServerConfig",
    "State",
    "UnreachableError",
    "Up",
    "Vpn",
    "blocking",
    "connect",
    "parse_ovpn",
    "serve",
]

_HOMES = {
    "Server": "ginnel.server",
    "ServerConfig": "ginnel.server",
    "parse_ovpn": "ginnel.openvpn.ovpn_file",
    "serve": "ginnel.server",
}


def __getattr__(name: str) -> object:
    # TLS, X.509 and DNS take a third of a second to import; `ginnel --help` needs none of them.
    if name == "blocking":
        return importlib.import_module("ginnel.blocking")
    if name in __all__:
        home = _HOMES.get(name, "ginnel.vpn")
        return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module 'ginnel' has no attribute {name!r}")


def __dir__() -> list[str]:
    # What is not imported yet is among it: notebooks complete names by this.
    return sorted({name for name in globals() if name.startswith("__")} | {*__all__})
