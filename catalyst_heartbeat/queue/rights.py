"""The rights in effect: whether the identity that roles.sql promises holds, and the ids left."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from catalyst_heartbeat.queue.connection import Database

ROLES = Path(__file__).resolve().parent.parent / "sql" / "roles.sql"
# Half of what an INTEGER counts: nobody gets there by sending messages.
FEW_IDS = 2**30

# An operator that somebody made beside the tables must not answer in the server's place, and no
# setting have it spell a policy in another way than where roles.sql was run.
NAMES_OF_THE_SERVER = """\
SET TRANSACTION READ ONLY; \
SELECT pg_catalog.set_config(
    'claude.schema', pg_catalog.quote_ident(pg_catalog.current_schema()), true); \
SET LOCAL search_path = pg_catalog, pg_temp; SET LOCAL quote_all_identifiers = off; """

IDS = """
-- The numbers that each table's id can still be given: by its type, and by its sequence.
SELECT attrelid::regclass::text,
       LEAST(seqmax, CASE atttypid WHEN 'integer'::regtype THEN 2147483647
                                   ELSE 9223372036854775807 END)
       - COALESCE(pg_sequence_last_value(seqrelid), seqmin - 1),
       'ALTER SEQUENCE ' || seqrelid::regclass || ' AS bigint; ALTER TABLE '
       || attrelid::regclass || ' ALTER id TYPE bigint'
       || CASE attrelid WHEN to_regclass('claude_messages')
               THEN ', ALTER reply_to_id TYPE bigint, ALTER thread_id TYPE bigint' ELSE '' END
  FROM pg_attribute
  JOIN pg_sequence ON seqrelid = pg_get_serial_sequence(attrelid::regclass::text, 'id')::regclass
 WHERE attrelid IN (to_regclass('claude_messages'), to_regclass('claude_observations'))
   AND attname = 'id'
 ORDER BY 1
"""


class Rights(NamedTuple):
    """Whose login this is, whether row-level security holds for it, and what undoes it."""

    login: str
    enforced: bool
    faults: list[str]


class IdsLeft(NamedTuple):
    """What a table can still number, and the statement that makes its ids BIGINT."""

    table: str
    left: int
    remedy: str

    @property
    def few(self) -> bool:
        return self.left < FEW_IDS


def rights(database: Database) -> Rights:
    """Read what this login and the other agents may do, in one statement.

    Each fault is one line for a person. There are none where roles.sql was never run: then nobody
    claims that from_agent is an identity.
    """
    statement = ROLES.read_text(encoding="utf-8").split("$rights$")[1]
    ((login, _, enforced, faults, *_),) = database.fetch(NAMES_OF_THE_SERVER + statement)
    lines = [f"{fault}; run roles.sql again" for fault in faults]
    if enforced and login != database.agent:
        lines.insert(0, f"login {login} cannot write as {database.agent}")
    return Rights(login, enforced, lines)


def ids_left(database: Database) -> list[IdsLeft]:
    """Count what the tables' sequences can still give."""
    return [IdsLeft(*row) for row in database.query(IDS, {})]
