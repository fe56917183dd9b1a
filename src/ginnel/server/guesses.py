"""Wrong passwords: whoever has sent too many is not asked for a while, so that nobody can try them all."""

from __future__ import annotations

import time
from collections import OrderedDict

from ginnel.errors import AuthError
from ginnel.openvpn.cookies import Limiter
from ginnel.openvpn.server import ClientLogin
from ginnel.openvpn.strangers import origin


class Guesses:
    """Counted for each user and for each place that logins come from, and for each name that is no user's, so that
    nobody learns which are. Of either kind beyond `MAX_KNOWN` those are forgotten that were wrong longest ago."""

    def __init__(self) -> None:
        self._wrong: dict[str, OrderedDict[str, Limiter]] = {kind: OrderedDict() for kind in MOST}

    def check(self, login: ClientLogin, name: str, *, known: bool) -> None:
        """Raises AuthError for who has to wait. The password is not looked at."""
        now = time.monotonic()
        for kind, key in _keys(login, name, known=known):
            wrong = self._wrong[kind].get(key)
            if wrong is not None and wrong.exhausted(now):
                what = f"too many wrong passwords {'from' if kind == 'place' else 'for'} {key}"
                raise AuthError(what, "too many wrong passwords; try again later")

    def count(self, login: ClientLogin, name: str, *, known: bool) -> None:
        """A password is looked at, and counts as wrong until it is `right`: many at a time are no more than one
        after the other."""
        now = time.monotonic()
        for kind, key in _keys(login, name, known=known):
            wrong = self._wrong[kind]
            wrong.setdefault(key, Limiter(MOST[kind], PERIOD)).allow(now)
            wrong.move_to_end(key)
            while len(wrong) > MAX_KNOWN:
                wrong.popitem(last=False)

    def right(self, login: ClientLogin, name: str) -> None:
        """The password that was counted last for this login was not wrong."""
        for kind, key in _keys(login, name, known=True):
            if key in self._wrong[kind]:
                self._wrong[kind][key].give_back()


def _keys(login: ClientLogin, name: str, *, known: bool) -> list[tuple[str, str]]:
    return [("user" if known else "nobody", name), ("place", origin(login.path[1]))]


# So many wrong passwords within so many seconds.
MOST = {"user": 10, "nobody": 10, "place": 20}
PERIOD = 300.0
MAX_KNOWN = 4096
