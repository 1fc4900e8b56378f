"""What server this is, and which indexes its tables have."""

from __future__ import annotations

from catalyst_heartbeat.queue.connection import Database

SERVER = """
SELECT current_setting('server_version'), EXTRACT(EPOCH FROM clock_timestamp())::float8
"""

INDEXES = """
SELECT relname FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
 WHERE indrelid = to_regclass('claude_messages') AND indisvalid
"""


def server(database: Database) -> tuple[str, float]:
    """Return the server's version and its clock, in seconds since 1970."""
    version, clock = database.fetch(SERVER)[0]
    return version, clock


def indexes(database: Database) -> set[str]:
    """Return the names of the indexes on claude_messages that can be used."""
    return {name for (name,) in database.fetch(INDEXES)}
