"""``python -m tests.harness.served FOLDER``: a `ginnel.server.Server` as a program, for stock clients.

FOLDER has ``people.pickle`` and ``config.pickle``, a `People` and the fields of a `ServerConfig`. Events are
written as one JSON object a line. SIGUSR1 revokes the first user.
Port 7 of its inner addresses echoes.
"""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import signal
import sys
from pathlib import Path

from ginnel.server import Server, ServerConfig


class Reporter(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if hasattr(record, "event"):
            print(json.dumps({"event": record.event, **record.fields}, default=str), flush=True)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def main(folder: Path) -> None:
    people = pickle.loads((folder / "people.pickle").read_bytes())
    config = pickle.loads((folder / "config.pickle").read_bytes())
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    # The store stands for one on a disk, which another process writes to.
    loop.add_signal_handler(signal.SIGUSR1, lambda: people.revoke(next(iter(people.users))))
    async with Server(people, ServerConfig(**config)) as server:
        await server.stack.start_server(echo, port=7)
        print(json.dumps({"event": "ready", "listen": [str(place) for place in server.places]}), flush=True)
        await stop.wait()
    print(json.dumps({"event": "ended", "sessions": people.sessions}), flush=True)


if __name__ == "__main__":
    logging.getLogger("ginnel.server").addHandler(Reporter())
    logging.getLogger("ginnel.server").setLevel(logging.INFO)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    asyncio.run(main(Path(sys.argv[1])))
