"""Runs a program on a lent device and then uses its stack. Run as text, as an ordinary user: COMMAND ACTIONS, JSON.

Each action happens when the one before it has, and is reported as an object a line; the program's output is
forwarded between them. Ends with the program, with its status.
"""

import asyncio
import hashlib
import json
import select
import signal
import sys
import time

from ginnel.device.interface import Interfaces
from ginnel.device.lend import LentProgram


async def main():
    command, actions = json.loads(sys.argv[1]), json.loads(sys.argv[2])
    interfaces = Interfaces(first_index=1 << 20)
    async with LentProgram(command, interfaces) as program:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, program.send_signal, signal.SIGTERM)
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, program.send_signal, signal.SIGUSR1)
        doing = asyncio.create_task(act(program, interfaces, actions))
        status = await program.wait()
        doing.cancel()
        await asyncio.gather(doing, return_exceptions=True)
    say(done="end", left=[own.name for own in interfaces], left_behind=program.left_behind)
    await interfaces.aclose()
    return status


async def act(program, interfaces, actions):
    for name, *arguments in actions:
        try:
            result = await ACTIONS[name](program, interfaces, *arguments)
            say(done=name, **(result or {}))
        except Exception as error:
            say(done=name, error=repr(error))


async def up(program, interfaces, *addresses):
    """Until an interface is up and has these addresses, and is not the one of the last time."""
    while True:
        for own in interfaces:
            has = {str(address.interface.ip) for address in own.addresses}
            if own.up and has >= set(addresses) and own not in seen:
                seen.append(own)
                return describe(own)
        await asyncio.sleep(0.02)


async def show(program, interfaces):
    return describe(seen[-1]) | {"calls": program.calls, "statistics": seen[-1].statistics()}


async def ping(program, interfaces, host, count=1):
    async with asyncio.timeout(30):
        while True:
            try:
                first = await seen[-1].stack.ping(host, timeout=0.5)
                break
            except (TimeoutError, OSError):
                pass
    times = [first] + [await seen[-1].stack.ping(host) for _ in range(count - 1)]
    return {"median": sorted(times)[count // 2]}


async def rtt(program, interfaces, host, count):
    """The median of echoes one after the other, without an event loop between."""
    core = seen[-1].stack._core
    asyncio.get_running_loop().remove_reader(core.fileno())
    poller = select.poll()
    poller.register(core.fileno(), select.POLLIN)
    times = []
    for number in range(count):
        began = time.perf_counter()
        core.ping(host, 77, number, bytes(56))
        answered = False
        while not answered:
            poller.poll(10_000)
            answered = any(event[0] == "pong" and event[3] == number for event in core.events())
        times.append(time.perf_counter() - began)
    return {"median": sorted(times)[count // 2]}


async def serve(program, interfaces, port):
    """What comes is hashed, and the hash is the answer."""

    async def take(reader, writer):
        digest = hashlib.sha256()
        while data := await reader.read(1 << 18):
            digest.update(data)
        writer.write(digest.hexdigest().encode())
        await writer.drain()
        writer.close()

    await seen[-1].stack.start_server(take, None, port)


async def page(program, interfaces):
    """A page on port 80."""

    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\n\r\nthe other side")
        await writer.drain()
        writer.close()

    await seen[-1].stack.start_server(answer, None, 80)


async def send(program, interfaces, host, port, size):
    reader, writer = await seen[-1].stack.open_connection(host, port)
    digest, block = hashlib.sha256(), bytes(range(256)) * 1024
    calls = sum(program.calls.values())
    for offset in range(0, size, len(block)):
        part = offset.to_bytes(8, "big") + block[8 : min(len(block), size - offset)]
        digest.update(part)
        writer.write(part)
        await writer.drain()
    writer.write_eof()
    answer = (await reader.read()).decode()
    writer.close()
    return {"same": answer == digest.hexdigest(), "calls": sum(program.calls.values()) - calls}


async def configure(program, interfaces, path, text):
    """Tells a WireGuard what to do."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(text.encode())
    answer = await reader.readuntil(b"\n\n")
    writer.close()
    assert answer == b"errno=0\n\n", answer


def describe(own):
    return {
        "name": own.name,
        "kind": own.kind,
        "mtu": own.mtu,
        "addresses": [str(address.interface) for address in own.addresses],
        "routes": [str(route.destination) for route in own.routes],
    }


def say(**what):
    print(json.dumps(what), flush=True)


seen = []
ACTIONS = {
    "up": up,
    "show": show,
    "ping": ping,
    "ping6": ping,
    "rtt": rtt,
    "serve": serve,
    "page": page,
    "send": send,
    "configure": configure,
}

sys.exit(asyncio.run(main()))
