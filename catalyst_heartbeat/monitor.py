"""Tells a cron monitor how a cycle ended; a monitor that is down changes nothing."""

from __future__ import annotations

import http.client
import logging
import threading
import urllib.request

log = logging.getLogger("heartbeat")

PING_SECONDS = 5


def ping(url: str, *, failed: bool) -> None:
    """Call the URL, with `/fail` behind its path where the cycle failed."""
    place, question, query = url.partition("?")
    called = place.rstrip("/") + ("/fail" if failed else "") + question + query
    # A thread: a socket's timeout ends neither a name server's silence nor a dripping answer.
    thread = threading.Thread(target=call, args=(called,), daemon=True)
    thread.start()
    thread.join(PING_SECONDS)
    if thread.is_alive():
        log.warning("the monitor did not take the ping within %d s", PING_SECONDS)


def call(url: str) -> None:
    try:
        urllib.request.urlopen(url, timeout=PING_SECONDS).close()  # noqa: S310 - http(s) by settings
    except (OSError, ValueError, http.client.HTTPException) as error:
        log.warning("the monitor did not take the ping: %s", type(error).__name__)
