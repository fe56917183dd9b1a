"""A server's counters as Prometheus reads them (text format 0.0.4)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any


def metrics(description: Mapping[str, Any]) -> str:
    """``description`` is `ginnel.server.status.describe`'s. A client's sessions have the user's name and the peer's
    number as labels, so that two of one user are two."""
    clients = description["clients"]
    lines = [*_family("ginnel_clients", "gauge", "Clients that are connected.", [({}, len(clients))])]
    for name, kind, text, key in PER_CLIENT:
        lines += _family(name, kind, text, [(_labels(client), client[key]) for client in clients])
    for part, text in (("endpoint", "Control packets and sessions"), ("plane", "Data packets"), ("egress", "Flows")):
        counted = description["counters"][part].items()
        lines += _family(f"ginnel_{part}_total", "counter", f"{text}, by what became of them.", _by_event(counted))
    return "\n".join([*lines, ""])


def _family(name: str, kind: str, text: str, samples: Iterable[tuple[dict[str, str], float]]) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    for labels, value in samples:
        shown = ",".join(f'{label}="{_escape(word)}"' for label, word in labels.items())
        yield f"{name}{{{shown}}} {value}" if shown else f"{name} {value}"


def _labels(client: Mapping[str, Any]) -> dict[str, str]:
    return {"name": client["name"], "peer": str(client["peer"]), "transport": client["transport"]}


def _by_event(counted: Iterable[tuple[str, int]]) -> Iterator[tuple[dict[str, str], float]]:
    return (({"event": event}, value) for event, value in counted if event not in GAUGES)


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


PER_CLIENT = (
    ("ginnel_client_received_bytes_total", "counter", "Bytes of inner packets from a client.", "rx"),
    ("ginnel_client_sent_bytes_total", "counter", "Bytes of inner packets to a client.", "tx"),
    ("ginnel_client_connected_since_seconds", "gauge", "When a client connected, in seconds since 1970.", "since"),
)
GAUGES = ("sessions", "negotiating", "open")
