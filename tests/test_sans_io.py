"""The rule that the protocol does no I/O, held against every module's imports."""

import ast
from pathlib import Path

import pytest

import ginnel.openvpn

FOLDER = Path(ginnel.openvpn.__file__).parent
WITH_A_LOOP = {"aio.py", "attempt.py"}
FORBIDDEN = {
    *("asyncio", "concurrent", "datetime", "io", "multiprocessing", "os", "pathlib", "random", "secrets"),
    *("select", "selectors", "signal", "socket", "ssl", "subprocess", "threading", "time"),
}
# The configuration's reader opens the files that a configuration names; it is no part of a session.
EXCEPTIONS = {"ovpn_file.py": {"os", "pathlib"}, "config.py": {"os", "pathlib"}, "advice.py": {"datetime"}}
MODULES = sorted(path.name for path in FOLDER.glob("*.py") if path.name not in WITH_A_LOOP)


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("module", MODULES)
def test_a_protocol_module_imports_no_clock_socket_thread_or_loop(module: str) -> None:
    assert imports(FOLDER / module) & FORBIDDEN <= EXCEPTIONS.get(module, set())


@pytest.mark.parametrize("module", [name for name in MODULES if name not in ("tls.py", "tls_settings.py")])
def test_openssl_is_used_by_tls_alone(module: str) -> None:
    assert "OpenSSL" not in imports(FOLDER / module)


def test_there_are_modules_to_look_at() -> None:
    assert {"session.py", "handshake.py", "tls.py", "client.py", "server.py"} <= set(MODULES)
