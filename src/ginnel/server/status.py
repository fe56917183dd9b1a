"""What a running server looks like: for people, for programs, and for monitors that read OpenVPN's status file."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ginnel.openvpn.words import escape

if TYPE_CHECKING:
    from ginnel.server.service import Server


def describe(server: Server) -> dict[str, Any]:
    """For JSON, as of this moment. Times are in seconds since 1970, rates in bytes a second."""
    server.count()
    return {
        "name": server.store.identity.name,
        "since": round(server.started, 3),
        "listen": [str(place) for place in server.places],
        "clients": [client.described() for client in server.clients],
        "users": {name: {"rx": rx, "tx": tx} for name, (rx, tx) in server.traffic().items()},
        "counters": server.statistics(),
    }


def status_file(description: Mapping[str, Any], version: str) -> str:
    """OpenVPN's status file, format 3: fields between tabs (``multi.c``, multi_print_status)."""
    now = time.time()
    lines: list[Sequence[object]] = [("TITLE", f"ginnel {version}"), ("TIME", _local(now), int(now))]
    lines.append(("HEADER", "CLIENT_LIST", *CLIENT_LIST))
    lines += [_client_line(client) for client in description["clients"]]
    lines.append(("HEADER", "ROUTING_TABLE", *ROUTING_TABLE))
    for client in description["clients"]:
        for address in filter(None, (client["address"], client["address6"])):
            lines.append(("ROUTING_TABLE", address, client["name"], client["remote"], _local(now), int(now)))
    lines += [("GLOBAL_STATS", "Max bcast/mcast queue length", 0), ("GLOBAL_STATS", "dco_enabled", 0), ("END",)]
    # Some of it was said by clients: none may begin a field or a line of their own.
    return "".join("\t".join(escape(str(field)) for field in line) + "\n" for line in lines)


def table(description: Mapping[str, Any], width: int | None = None) -> str:
    """For people, a line a client. Of what has no room in ``width`` characters the columns `SPARED` are left out."""
    clients = description["clients"]
    if not clients:
        return f"{description['name']}: nobody is connected\n"
    rows = [("NAME", "ADDRESS", "FROM", "SINCE", "IN", "OUT", "IN/s", "OUT/s", "CIPHER", "CLIENT")]
    for client in clients:
        rows.append(
            (
                client["name"],
                client["address"],
                f"{client['remote']} {client['transport']}",
                _local(client["since"]),
                *(size(client[key]) for key in ("rx", "tx", "rx_rate", "tx_rate")),
                client["cipher"],
                client["version"],
            )
        )
    columns = list(zip(*rows, strict=True))
    for name in SPARED:
        if width is None or sum(max(map(len, column)) + 2 for column in columns) - 2 <= width:
            break
        columns = [column for column in columns if column[0] != name]
    padded = [[cell.ljust(max(map(len, column))) for cell in column] for column in columns]
    return "".join("  ".join(row).rstrip() + "\n" for row in zip(*padded, strict=True))


def size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _client_line(client: Mapping[str, Any]) -> list[object]:
    since = client["since"]
    places = (client["remote"], client["address"], client["address6"] or "")
    return [
        *("CLIENT_LIST", client["name"], *places, client["rx"], client["tx"], _local(since), int(since)),
        *(client["username"] or "UNDEF", client["peer"], client["peer"], client["cipher"]),
    ]


def _local(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


# In the order in which a terminal does without them.
SPARED = ("CLIENT", "CIPHER", "SINCE", "OUT", "IN", "OUT/s", "IN/s")
CLIENT_LIST = (
    *("Common Name", "Real Address", "Virtual Address", "Virtual IPv6 Address", "Bytes Received", "Bytes Sent"),
    *("Connected Since", "Connected Since (time_t)", "Username", "Client ID", "Peer ID", "Data Channel Cipher"),
)
ROUTING_TABLE = ("Virtual Address", "Common Name", "Real Address", "Last Ref", "Last Ref (time_t)")
