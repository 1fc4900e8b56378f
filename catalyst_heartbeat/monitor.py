"""Calls out: to a cron monitor, how a cycle goes; to a phone, that a decision is wanted.

Whoever does not answer, or not well, changes nothing but a line of the log.
"""

from __future__ import annotations

import base64
import http.client
import logging
import threading
from typing import Literal
from urllib.error import HTTPError
from urllib.parse import unquote_to_bytes, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

log = logging.getLogger("heartbeat")

CALL_SECONDS = 5


def ping(url: str, event: Literal["", "/start", "/fail"]) -> None:
    """Tell the monitor that a cycle began to work, ended or failed; the event follows the path."""
    path, question, query = url.partition("?")
    call("the monitor did not take the ping", path.rstrip("/") + event + question + query, {})


def notify(url: str, title: str, text: str) -> None:
    """Send a message as ntfy takes it; only for what is committed, since it cannot be recalled."""
    call("no notice was sent", url, {"Title": header(title)}, text.encode(errors="replace"))


def header(text: str) -> str:
    """Return a text as a header may hold it: one line, and encoded where it is not plain ASCII."""
    line = " ".join(text.split())
    if line.isascii() and line.isprintable():
        return line
    return f"=?UTF-8?B?{base64.b64encode(line.encode(errors='replace')).decode()}?="


def call(trouble: str, url: str, headers: dict[str, str], data: bytes | None = None) -> None:
    # A thread: a socket's timeout ends neither a name server's silence nor a dripping answer.
    thread = threading.Thread(target=send, args=(trouble, url, headers, data), daemon=True)
    thread.start()
    thread.join(CALL_SECONDS)
    if thread.is_alive():
        log.warning("%s within %d s", trouble, CALL_SECONDS)


def send(trouble: str, url: str, headers: dict[str, str], data: bytes | None) -> None:
    try:
        netloc = urlsplit(url).netloc
        login, at, host = netloc.rpartition("@")
        request = Request(url.replace(netloc, host, 1), data, headers)  # noqa: S310 - http(s) by settings
        if at:
            encoded = base64.b64encode(unquote_to_bytes(login)).decode()
            request.add_header("Authorization", f"Basic {encoded}")
        build_opener(NoRedirect).open(request, timeout=CALL_SECONDS).close()
    except HTTPError as error:
        log.warning("%s: it answered %d", trouble, error.code)
        error.close()
    except (OSError, ValueError, http.client.HTTPException) as error:
        log.warning("%s: %s", trouble, type(error).__name__)


class NoRedirect(HTTPRedirectHandler):
    """Goes nowhere else: the URL that was set is the one that may learn what is said."""

    def redirect_request(self, *_: object) -> None:
        return None
