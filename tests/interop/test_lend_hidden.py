"""A lent program that hides from its supervisor, which has no more rights than it."""

from __future__ import annotations

from tests.harness.environment import Environment
from tests.harness.lent import Lent
from tests.harness.network import Namespace

HIDES = """
import ctypes, errno, fcntl, os
inherited = os.open("/dev/null", os.O_RDWR)
ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
for act in (lambda: os.open("/dev/net/tun", os.O_RDWR), lambda: fcntl.ioctl(inherited, 0x400454CA, bytes(40))):
    try:
        print("done", act(), flush=True)
    except OSError as error:
        print(errno.errorcode[error.errno], flush=True)
"""


def test_it_can_open_nothing(ordinary_env: Environment) -> None:
    with Namespace() as namespace, Lent(namespace, ordinary_env, ["/usr/bin/python3", "-I", "-c", HIDES]) as program:
        assert program.process.wait(60) == 0
        assert program.process.out.all() == ["EACCES", "EACCES"], str(program.process)
