"""A session's commands, carried out on a data plane, and the plane's reports as a session takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ginnel.openvpn import events

if TYPE_CHECKING:
    from ginnel._core import DataPlane


def carry_out(plane: DataPlane, command: events.Event) -> events.Report | None:
    """Carries a command out; the report is that of a command which asks for one. News are left alone."""
    match command:
        case events.NewPeer(peer, path, peer_id):
            plane.new_peer(peer, path, peer_id)
        case events.SetPeer(peer, ping, ping_restart, mss, framing):
            plane.set_peer(peer, ping, ping_restart, mss, framing)
        case events.DelPeer(peer):
            plane.del_peer(peer)
        case events.NewKey(peer, handle, key_id, cipher, encrypt, decrypt, auth, epochs):
            plane.new_key(peer, handle, key_id, cipher, encrypt, decrypt, auth=auth, epochs=epochs)
        case events.DelKey(peer, handle):
            plane.del_key(peer, handle)
        case events.Swap(peer, handle):
            plane.swap(peer, handle)
        case events.SendDataMessage(peer, data):
            plane.send_data_message(peer, data)
        case events.CountBytes(peer):
            counted = plane.peer_statistics(peer)
            return events.BytesCounted(peer, counted["rx_bytes"] + counted["tx_bytes"])
    return None


REPORTS: dict[str, Callable[..., events.Report]] = {
    "data_message": events.DataMessage,
    "float": events.PeerFloat,
    "expired": events.PeerExpired,
    "key_limit": events.KeyLimit,
    "closed": events.PathClosed,
}
