"""A reader of pcapng files (draft-ietf-opsawg-pcapng), of this machine's byte order."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Block:
    kind: int
    body: bytes
    options: dict[int, bytes]


@dataclass
class CapturedPacket:
    data: bytes
    nanoseconds: int
    direction: str
    dropped: int
    """Packets between the one before and this one that are not in the file."""
    interface: int


@dataclass
class CapturedInterface:
    link_type: int
    name: str
    statistics: dict[str, int] = field(default_factory=dict)


@dataclass
class CaptureFile:
    """What a file holds. AssertionError where it is not sound."""

    path: Path
    packets: list[CapturedPacket] = field(default_factory=list)
    interfaces: list[CapturedInterface] = field(default_factory=list)

    def __post_init__(self) -> None:
        section, *rest = _blocks(self.path.read_bytes())
        assert section.kind == 0x0A0D0D0A
        for block in rest:
            if block.kind == 1:
                assert block.options[9] == b"\x09"
                (link_type,) = struct.unpack_from("=H", block.body)
                self.interfaces.append(CapturedInterface(link_type, block.options[2].decode()))
            elif block.kind == 6:
                self.packets.append(_packet(block))
                assert self.packets[-1].interface < len(self.interfaces)
            else:
                assert block.kind == 5
                numbers = {code: int.from_bytes(value, "little") for code, value in block.options.items()}
                names = {4: "received", 5: "dropped", 7: "lost", 8: "delivered"}
                (number,) = struct.unpack_from("=I", block.body)
                self.interfaces[number].statistics = {name: numbers[code] for code, name in names.items()}
        assert self.interfaces

    @property
    def link_type(self) -> int:
        return self.interfaces[0].link_type

    @property
    def name(self) -> str:
        return self.interfaces[0].name

    @property
    def statistics(self) -> dict[str, int]:
        return self.interfaces[0].statistics


def _packet(block: Block) -> CapturedPacket:
    interface, high, low, captured, length = struct.unpack_from("=5I", block.body)
    assert captured == length
    (flags,) = struct.unpack("=I", block.options[2])
    dropped = int.from_bytes(block.options.get(4, b""), "little")
    data = block.body[20 : 20 + captured]
    assert len(data) == captured
    return CapturedPacket(data, high << 32 | low, {1: "in", 2: "out"}[flags & 3], dropped, interface)


def _blocks(data: bytes) -> list[Block]:
    blocks, at = [], 0
    while at < len(data):
        kind, length = struct.unpack_from("=II", data, at)
        assert length % 4 == 0
        assert data[at + length - 4 : at + length] == struct.pack("=I", length)
        body = data[at + 8 : at + length - 4]
        fixed = {0x0A0D0D0A: 16, 1: 8, 5: 12}.get(kind)
        if fixed is None:
            (captured,) = struct.unpack_from("=I", body, 12)
            fixed = 20 + -(-captured // 4) * 4
        blocks.append(Block(kind, body, _options(body[fixed:])))
        at += length
    return blocks


def _options(data: bytes) -> dict[int, bytes]:
    options, at = {}, 0
    while True:
        code, length = struct.unpack_from("=HH", data, at)
        if code == 0:
            return options
        options[code] = data[at + 4 : at + 4 + length]
        at += 4 + -(-length // 4) * 4
