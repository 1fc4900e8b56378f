"""How a line of the log looks: its time in UTC, and no secret in it."""

from __future__ import annotations

import io
import logging
import os
import sys
import time

from catalyst_heartbeat.settings import hide


def configure_logging(secrets: tuple[str, ...]) -> None:
    """Log to stderr, one line a transition, UTC, without any secret."""
    handler = logging.StreamHandler()
    handler.setFormatter(RedactingFormatter(secrets))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("heartbeat").setLevel(logging.INFO)


class RedactingFormatter(logging.Formatter):
    """Formats with UTC times and takes the configured secrets out, also of tracebacks."""

    converter = staticmethod(time.gmtime)

    def __init__(self, secrets: tuple[str, ...]) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
        self.secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        text = hide(super().format(record), self.secrets)
        if record.levelno < logging.WARNING:
            return text
        # What went wrong is told in another program's words, which may quote any secret.
        from catalyst_heartbeat.redaction import redact  # an idle cycle has no need of it

        return redact(text, self.secrets)


def open_missing_streams() -> None:
    """Open what a parent closed: a connection would get its number, and print would fail."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - to the end of the process


def show_any_character() -> None:
    """Write what the terminal has no character for as an escape, instead of ending there."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
