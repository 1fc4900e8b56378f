"""How a line of the log looks: its time in UTC, and no secret in it."""

from __future__ import annotations

import io
import logging
import os
import sys
import time

from catalyst_heartbeat.configured_secrets import hide


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
        show = hide if record.levelno < logging.WARNING else clean_trouble
        return show(super().format(record), self.secrets)


def clean_trouble(text: str, secrets: tuple[str, ...]) -> str:
    """Return what went wrong as it may be shown: in another program's words, with any secret."""
    from catalyst_heartbeat.text import clean  # nothing goes wrong in an idle cycle

    return clean(text, secrets)


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
