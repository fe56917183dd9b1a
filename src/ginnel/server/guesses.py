"""Wrong passwords: whoever has sent too many is not asked for a while, so that nobody can try them all."""

from __future__ import annotations

import time
from collections import OrderedDict

from ginnel.errors import AuthError
from ginnel.openvpn.cookies import Limiter
from ginnel.openvpn.server import ClientLogin
from ginnel.openvpn.strangers import origin


class Guesses:
    """Counted for each user and for each place that logins come from; of the places and users beyond `MAX_KNOWN` those
    are forgotten that were wrong longest ago."""

    def __init__(self) -> None:
        self._wrong: OrderedDict[tuple[str, str], Limiter] = OrderedDict()

    def check(self, login: ClientLogin, name: str) -> None:
        """Raises AuthError for who has to wait. The password is not looked at."""
        now = time.monotonic()
        for key in _keys(login, name):
            if key in self._wrong and self._wrong[key].exhausted(now):
                what = f"too many wrong passwords {'for' if key[0] == 'user' else 'from'} {key[1]}"
                raise AuthError(what, "too many wrong passwords; try again later")

    def count(self, login: ClientLogin, name: str) -> None:
        """The password was wrong."""
        now = time.monotonic()
        for key in _keys(login, name):
            self._wrong.setdefault(key, Limiter(MOST[key[0]], PERIOD)).allow(now)
            self._wrong.move_to_end(key)
        while len(self._wrong) > MAX_KNOWN:
            self._wrong.popitem(last=False)


def _keys(login: ClientLogin, name: str) -> list[tuple[str, str]]:
    return [("user", name), ("place", origin(login.path[1]))]


# So many wrong passwords within so many seconds.
MOST = {"user": 10, "place": 20}
PERIOD = 300.0
MAX_KNOWN = 4096
