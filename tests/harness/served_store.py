"""``python -m tests.harness.served_store DIRECTORY CONFIG [NOTING]``: a server with its store on a disk, as a program.

CONFIG is an expression: the keywords of a `ServerConfig` as a dict. Events are written as one JSON object a line.
NOTING, if given, is how many seconds a client waits until its address is on disk.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
from ipaddress import IPv4Network
from pathlib import Path

from ginnel.server import Listen, Server, ServerConfig, admission
from ginnel.server.monitor import Monitor
from ginnel.server.running import opened
from tests.harness.served import Reporter


async def main(directory: Path, text: str) -> None:
    config = eval(text, {"Listen": Listen, "IPv4Network": IPv4Network})
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with opened(directory) as store, Server(store, ServerConfig(**config)) as server:
        monitor = Monitor(server, directory)
        print(json.dumps({"event": "ready", "listen": [str(place) for place in server.places]}), flush=True)
        await stop.wait()
        await monitor.aclose()


if __name__ == "__main__":
    logging.getLogger("ginnel.server").addHandler(Reporter())
    logging.getLogger("ginnel.server").setLevel(logging.INFO)
    if len(sys.argv) > 3:
        admission.NOTING = float(sys.argv[3])
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
