"""The newest lines of a log that may be endless: bounded, and without half a secret."""

from __future__ import annotations

import os

from catalyst_heartbeat.redaction import redact
from catalyst_heartbeat.text import without_start

BLOCK_BYTES = 64 * 1024
# So far back a log is read: a hundred lines may be one endless one.
TAIL_BYTES = 1024 * 1024
# So many lines more than are shown are read, for what stands above a secret; a key has fewer.
LINES_ABOVE = 100


def newest_lines(tail: bytes, cut: bool, count: int, secrets: tuple[str, ...]) -> list[str]:
    """Return the last lines of a log's end, redacted; `cut` says that it had a start too."""
    if not tail:
        return []
    lines = tail.decode(errors="replace").removesuffix("\n").split("\n")
    if cut:
        lines[0] = without_start(lines[0], secrets)
    # As one text, before the newest are taken: what tells a secret may stand lines above it.
    shown = redact("\n".join(line.rstrip("\r") for line in lines), secrets)
    return shown.split("\n")[-count:]


def last_lines(descriptor: int, count: int, secrets: tuple[str, ...]) -> list[str]:
    """Read a file's last lines from its end backwards, at most 1 MiB of them."""
    start = os.fstat(descriptor).st_size
    tail = b""
    while start > 0 and tail.count(b"\n") <= count + LINES_ABOVE and len(tail) < TAIL_BYTES:
        step = min(BLOCK_BYTES, start)
        start -= step
        block = os.pread(descriptor, step, start)
        if not block:  # the file was cut off meanwhile
            break
        tail = block + tail
    return newest_lines(tail, start > 0, count, secrets)
