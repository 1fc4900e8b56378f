"""Disks that forget what was not flushed, served to a virtual machine by the protocol of NBD."""

from __future__ import annotations

import math
import random
import socket
import struct
import threading
import time
from pathlib import Path

HELLO = struct.Struct(">8sQQI124x")
OLD_STYLE = 0x00420281861253
REQUEST = struct.Struct(">IHHQQI")
REPLY = struct.Struct(">IIQ")
REPLY_MAGIC = 0x67446698
# There are flags, and there is FLUSH: the machine must say what it cannot afford to lose.
FLAGS = 1 << 0 | 1 << 2
READ, WRITE, DISCONNECT, FLUSH = range(4)
# What a disk writes wholly or not at all.
BLOCK_BYTES = 4096
# How much of what was not flushed is on the disk all the same: nothing, any half, nearly all.
SURVIVING = (0.0, 0.5, 0.95)


class Supply:
    """The power of a machine, which fails some time after a certain write or flush of its disks."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.requests = 0
        self.restore()

    def restore(self) -> None:
        self.last_request: int | None = None
        self.seconds = 0.0
        self.end = math.inf

    def fail_after(self, requests: int, seconds: float) -> None:
        with self.lock:
            self.last_request, self.seconds = self.requests + requests, seconds

    def cut(self) -> None:
        self.end = -math.inf

    def count(self) -> None:
        self.requests += 1
        if self.requests == self.last_request:
            self.end = time.monotonic() + self.seconds

    def failed(self) -> bool:
        return time.monotonic() >= self.end


class Disk:
    """A disk with a volatile cache."""

    def __init__(self, image: Path, supply: Supply) -> None:
        self.durable = bytearray(image.read_bytes())
        self.content = bytearray(self.durable)
        self.unflushed: list[tuple[int, bytes]] = []
        self.supply = supply

    def serve(self) -> tuple[socket.socket, threading.Thread]:
        """Serve one machine until it is gone; return the machine's end of the connection."""
        ours, machines = socket.socketpair()
        thread = threading.Thread(target=self.answer, args=(ours,), daemon=True)
        thread.start()
        return machines, thread

    def answer(self, machine: socket.socket) -> None:
        with machine, machine.makefile("rb") as requests:
            machine.sendall(HELLO.pack(b"NBDMAGIC", OLD_STYLE, len(self.content), FLAGS))
            while len(header := requests.read(REQUEST.size)) == REQUEST.size:
                _, _, kind, handle, offset, length = REQUEST.unpack(header)
                data = requests.read(length) if kind == WRITE else b""
                if kind == DISCONNECT:
                    return
                if not self.do(kind, offset, data):
                    requests.read()  # no answer at all: an error would be one
                    return
                found = self.content[offset : offset + length] if kind == READ else b""
                machine.sendall(REPLY.pack(REPLY_MAGIC, 0, handle) + found)

    def do(self, kind: int, offset: int, data: bytes) -> bool:
        """Write or flush; return whether there was power for it."""
        if kind == READ:
            return True
        with self.supply.lock:
            self.supply.count()
            if self.supply.failed():
                return False
            if kind == FLUSH:
                self.keep(self.unflushed)
            else:
                self.write(offset, data)
        return True

    def write(self, offset: int, data: bytes) -> None:
        self.content[offset : offset + len(data)] = data
        for start in range(0, len(data), BLOCK_BYTES):
            self.unflushed.append((offset + start, data[start : start + BLOCK_BYTES]))

    def keep(self, blocks: list[tuple[int, bytes]]) -> None:
        """Let these blocks be on the disk for good; the cache is empty then."""
        for offset, block in blocks:
            self.durable[offset : offset + len(block)] = block
        self.unflushed.clear()

    def forget(self, chance: random.Random) -> None:
        """Lose what was not flushed, but for what was written by chance."""
        surviving = chance.choice(SURVIVING)
        self.keep([block for block in self.unflushed if chance.random() < surviving])
        self.content[:] = self.durable
