"""A server's counters as Prometheus reads them (text format 0.0.4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ginnel.release import VERSION

Sample = tuple[Mapping[str, str], float]


def metrics(description: Mapping[str, Any]) -> str:
    """``description`` is `ginnel.server.status.describe`'s. Bytes are labelled with the user's name, so that there are
    no more series than users; they count all of a user's sessions since the server's start."""
    clients, users, counters = description["clients"], description["users"], description["counters"]
    lines = [
        *_family("ginnel_info", "gauge", "The server's version.", [({"version": VERSION}, 1)]),
        *_family("ginnel_clients", "gauge", "Clients that are connected.", [({}, len(clients))]),
    ]
    for part, counter, name, text in GAUGES:
        if counter in counters[part]:
            lines += _family(name, "gauge", text, [({}, counters[part][counter])])
    for key, name, text in PER_USER:
        lines += _family(name, "counter", text, [({"name": user}, counted[key]) for user, counted in users.items()])
    lines += _family("ginnel_client_sessions", "gauge", "Sessions of a user.", _by(clients, ("name",)))
    since: dict[str, float] = {}
    for client in clients:
        since[client["name"]] = min(client["since"], since.get(client["name"], client["since"]))
    connected = [({"name": name}, at) for name, at in since.items()]
    text = "When the oldest session of a user began, in seconds since 1970."
    lines += _family("ginnel_client_connected_since_seconds", "gauge", text, connected)
    text = "Sessions by what they use, and what the client says that it is."
    lines += _family("ginnel_client_info", "gauge", text, _by(clients, ("name", *INFO)))
    for part, text in (("endpoint", "Control packets and sessions"), ("plane", "Data packets"), ("egress", "Flows")):
        gauges = {counter for where, counter, _, _ in GAUGES if where == part}
        counted = [({"event": event}, value) for event, value in counters[part].items() if event not in gauges]
        lines += _family(f"ginnel_{part}_total", "counter", f"{text}, by what became of them.", counted)
    return "\n".join([*lines, ""])


def _family(name: str, kind: str, text: str, samples: Iterable[Sample]) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    for labels, value in samples:
        shown = ",".join(f'{label}="{_escape(word)}"' for label, word in labels.items())
        yield f"{name}{{{shown}}} {value}" if shown else f"{name} {value}"


def _by(clients: Iterable[Mapping[str, Any]], labels: tuple[str, ...]) -> list[Sample]:
    """How many clients have the same words for all of these."""
    counted = Counter(tuple(client[label] for label in labels) for client in clients)
    return [(dict(zip(labels, words, strict=True)), count) for words, count in counted.items()]


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


PER_USER = (
    ("rx", "ginnel_client_received_bytes_total", "Bytes of inner packets from a user."),
    ("tx", "ginnel_client_sent_bytes_total", "Bytes of inner packets to a user."),
)
INFO = ("transport", "cipher", "tls", "version")
GAUGES = (
    ("endpoint", "sessions", "ginnel_sessions", "Sessions of all kinds."),
    ("endpoint", "negotiating", "ginnel_sessions_negotiating", "Sessions whose tunnel is not open yet."),
    ("egress", "open", "ginnel_egress_open", "Connections and flows of clients that are open outside."),
)
