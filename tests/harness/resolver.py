"""Debian's own keepers of a machine's name servers, each at its place in a mount namespace, as if it were installed."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.harness.network import Namespace

PACKAGES = {
    "systemd-resolved": ("systemd-resolved", "libsystemd-shared"),
    "openresolv": ("openresolv",),
    "resolvconf": ("resolvconf",),
}


class Resolver:
    """One of `PACKAGES`, in charge of /etc/resolv.conf, which knows ``server`` before any tunnel does."""

    def __init__(self, namespace: Namespace, package: str, server: str) -> None:
        self.package = package
        self._namespace = namespace
        subprocess.run([_ROOT / "scripts/unpack", _UNPACKED, *PACKAGES[package]], check=True, timeout=300)
        folders = [str(_UNPACKED / each) for each in PACKAGES[package]]
        lay = _LAY.format(
            usr=":".join(f"{folder}/usr" for folder in folders),
            etc=":".join(f"{folder}/etc" for folder in folders if Path(folder, "etc").is_dir()),
        )
        script = lay + _START[package].format(server=server)
        # Its processes end with the first one of their own PID namespace.
        alone = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        self._process = namespace.start([*alone, "sh", "-ec", script])
        try:
            self._process.wait_line("ready", 20)
            (self.pid,) = map(
                int, Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
            )
        except BaseException:
            self._process.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.close()

    def run(self, *command: str) -> str:
        return self._namespace.run(["nsenter", f"--mount=/proc/{self.pid}/ns/mnt", *command])


_ROOT = Path(__file__).parents[2]
_UNPACKED = _ROOT / "target/debian"

_LAY = """
mount -t tmpfs none /mnt
mkdir /mnt/etc /mnt/work
mount -t overlay none -o lowerdir={usr}:/usr /usr
mount -t overlay none -o lowerdir={etc}:/etc,upperdir=/mnt/etc,workdir=/mnt/work /etc
mount -t tmpfs none -o mode=755 /run
mkdir /run/dbus /run/systemd /run/resolvconf
rm -f /etc/resolv.conf
"""
_START = {
    "systemd-resolved": """
echo 'systemd-resolve:x:984:984::/:/usr/sbin/nologin' >>/etc/passwd
echo 'systemd-resolve:x:984:' >>/etc/group
printf '[Resolve]\\nDNS={server}\\nFallbackDNS=\\nMulticastDNS=no\\nLLMNR=no\\n' >/etc/systemd/resolved.conf
mkdir /run/systemd/resolve
chown systemd-resolve: /run/systemd/resolve
ln -s /run/systemd/resolve/stub-resolv.conf /etc/resolv.conf
cat >/etc/bus.conf <<END
<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*"/>
<allow receive_sender="*"/></policy></busconfig>
END
dbus-daemon --config-file=/etc/bus.conf --nofork --nopidfile --nosyslog &
/lib/systemd/systemd-resolved &
until resolvectl status >/dev/null 2>&1; do sleep 0.02; done
echo ready
wait
""",
    "openresolv": """
echo 'nameserver {server}' | resolvconf -a eth0
echo ready
exec sleep infinity
""",
    "resolvconf": """
mkdir /run/resolvconf/interface
ln -s /run/resolvconf /etc/resolvconf/run
ln -s /run/resolvconf/resolv.conf /etc/resolv.conf
resolvconf --enable-updates
echo 'nameserver {server}' | resolvconf -a eth0
echo ready
exec sleep infinity
""",
}
