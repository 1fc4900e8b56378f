"""The rights in effect, on databases that had a life before roles.sql and on ones that go on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from subprocess import CompletedProcess

import psycopg2
import pytest
from support.cycles import Cycles
from support.lives import LIVES, Life
from support.postgres import (
    PROGRAM_FOLDER,
    SCHEMAS,
    Database,
    drop,
    messages,
    new_database,
    own_server,
    send,
    state,
)
from support.role_actions import AGENTS, fill, reaches_a_row

from catalyst_heartbeat.demo.embedded_postgres import EmbeddedPostgres
from catalyst_heartbeat.queue import connection
from catalyst_heartbeat.queue.rights import FEW_IDS, Rights, ids_left, rights

pytestmark = pytest.mark.slow

ROLES = (PROGRAM_FOLDER / "catalyst_heartbeat/sql/roles.sql").read_text()
PRODUCTION = SCHEMAS[1]
GROUPS = ("claude_agents", "claude_approvers")
TABLES = ("claude_messages", "claude_state", "claude_observations")


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    """Roles belong to a whole server, so these tests have one of their own."""
    with own_server() as server:
        yield server


@pytest.fixture
def schema(request: pytest.FixtureRequest) -> str:
    return getattr(request, "param", PRODUCTION)


@pytest.fixture
def lived(server: EmbeddedPostgres, schema: str) -> Iterator[Database]:
    """A database that everybody may read, with every agent's role, before roles.sql."""
    admin = Database(server.url())
    for role in AGENTS:
        admin.execute(f"CREATE ROLE {role} LOGIN")
    for role in GROUPS:
        admin.execute(f"CREATE ROLE {role}")
    database = new_database(server, "lived", schema)
    try:
        fill(database)
        database.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO PUBLIC")
        yield database
    finally:
        drop(server, "lived")
        # All at once: who granted a membership cannot go before it.
        admin.execute(
            "DO $$BEGIN EXECUTE (SELECT 'DROP ROLE ' || string_agg(quote_ident(rolname), ', ')"
            " FROM pg_roles WHERE rolname !~ '^pg_' AND rolname <> 'postgres'); END$$"
        )


def live(database: Database, life: Life) -> None:
    database.execute(life.before.format(db="lived"))


def can(server: EmbeddedPostgres, statement: str, role: str = "big_bro") -> bool:
    with closing(psycopg2.connect(server.url("lived", role))) as conn:
        return reaches_a_row(conn, statement, role)


def seen_by(
    server: EmbeddedPostgres, login: str = "public_claude", agent: str = "public_claude"
) -> Rights:
    with closing(connection.Database(server.url("lived", login), agent)) as database:
        return rights(database)


def refusal(database: Database) -> str:
    with pytest.raises(psycopg2.Error) as caught:
        database.execute(ROLES)
    return str(caught.value).partition("\nCONTEXT:")[0]


@pytest.mark.parametrize("life", LIVES, ids=lambda life: life.name)
def test_rights_from_before_end_or_stop_it(
    life: Life, server: EmbeddedPostgres, lived: Database
) -> None:
    live(lived, life)
    assert can(server, life.attempt, life.login)

    if life.stops:
        line = refusal(lived)
        assert life.stops.format(db="lived") in line
        assert "\n" not in line
        assert not seen_by(server).enforced
    else:
        lived.execute(ROLES)
        assert not can(server, life.attempt, life.login)
        assert seen_by(server) == Rights("public_claude", True, [])


@pytest.mark.parametrize("life", LIVES, ids=lambda life: life.name)
def test_rights_given_afterwards_are_found_by_every_agent(
    life: Life, server: EmbeddedPostgres, lived: Database
) -> None:
    lived.execute(ROLES)
    live(lived, life)

    faults = seen_by(server).faults

    assert faults
    assert all(re.fullmatch(r"[^\n]+; run roles\.sql again", fault) for fault in faults)
    assert faults == seen_by(server, "postgres").faults
    if not life.stops:
        lived.execute(ROLES)
        assert not can(server, life.attempt, life.login)
        assert seen_by(server) == Rights("public_claude", True, [])


def test_a_login_that_is_no_agent_goes_on_reading_and_keeps_what_is_its_own(
    server: EmbeddedPostgres, lived: Database
) -> None:
    lived.execute(
        "CREATE ROLE app LOGIN; CREATE SCHEMA app AUTHORIZATION app;"
        "CREATE FUNCTION take_a_number() RETURNS bigint SECURITY DEFINER LANGUAGE sql AS"
        " 'SELECT nextval(''public.claude_messages_id_seq'')';"
        "GRANT EXECUTE ON FUNCTION take_a_number() TO app;"
        "GRANT TEMPORARY ON DATABASE lived TO app;"
        "GRANT SELECT ON ALL TABLES IN SCHEMA public TO app;"
        "GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO app"
    )
    attempts = [
        *(f"SELECT FROM {table}" for table in TABLES),
        "SELECT last_value FROM claude_messages_id_seq",
        "SELECT take_a_number()",
        "CREATE TEMPORARY TABLE x ()",
        "CREATE TABLE app.x ()",
    ]

    lived.execute(ROLES)

    assert [can(server, attempt, "app") for attempt in attempts] == [True] * len(attempts)
    assert seen_by(server) == Rights("public_claude", True, [])


def test_the_owners_triggers_stay(server: EmbeddedPostgres, lived: Database) -> None:
    lived.execute(
        "CREATE ROLE app LOGIN; GRANT TRIGGER ON claude_messages TO app;"
        "CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN NOTIFY told; RETURN NULL; END';"
        "CREATE TRIGGER tell AFTER INSERT ON claude_messages FOR EACH ROW EXECUTE FUNCTION tell();"
        "CREATE FUNCTION trap() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
        "ALTER FUNCTION trap() OWNER TO app;"
        "CREATE TRIGGER trap AFTER INSERT ON claude_state FOR EACH ROW EXECUTE FUNCTION trap()"
    )

    lived.execute(ROLES)

    kept = "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1"
    assert lived.execute(kept) == [("guard_claude_message",), ("tell",)]
    lived.execute(
        "CREATE TRIGGER trap AFTER INSERT ON claude_state FOR EACH ROW EXECUTE FUNCTION trap()"
    )
    fault = "trigger trap on public.claude_state calls public.trap(), which app owns"
    assert f"{fault}; run roles.sql again" in seen_by(server).faults


def test_check_names_what_another_login_may_do(
    server: EmbeddedPostgres, lived: Database, heartbeat: Callable[..., CompletedProcess[str]]
) -> None:
    lived.execute(ROLES)
    lived.execute("CREATE ROLE app LOGIN; GRANT TRUNCATE ON claude_messages TO app")

    check = heartbeat("--check", RESEARCH_DATABASE_URL=server.url("lived", "public_claude"))

    fault = "app has TRUNCATE on TABLE public.claude_messages; run roles.sql again"
    assert check.returncode == 1
    assert re.findall(r"(.+\S) +identity +(.+)", check.stdout) == [("FAIL", fault)]


WHAT_AGENTS_MAY_DO = """
SELECT 'database', has_database_privilege(agent, current_database(), 'CREATE, TEMPORARY')
  FROM unnest(%(agents)s) AS agent
UNION
SELECT 'schema', has_schema_privilege(agent, 'public', 'CREATE') FROM unnest(%(agents)s) AS agent
UNION
SELECT name || ' ' || which, has_table_privilege(agent, name, which)
  FROM unnest(%(agents)s) AS agent, unnest(%(tables)s) AS name, unnest(%(rights)s) AS which
UNION
SELECT name || ' ' || which || ' ' || attname, has_column_privilege(agent, name, attname, which)
  FROM unnest(%(agents)s) AS agent, unnest(%(tables)s) AS name,
       unnest('{INSERT,UPDATE,REFERENCES}'::text[]) AS which, pg_attribute
 WHERE attrelid = name::regclass AND attnum > 0
UNION
SELECT name || ' ' || which, has_sequence_privilege(agent, name || '_id_seq', which)
  FROM unnest(%(agents)s) AS agent, unnest('{claude_messages,claude_observations}'::text[]) AS name,
       unnest('{USAGE,UPDATE}'::text[]) AS which
"""


def what_agents_may_do(database: Database) -> tuple[set[str], set[str]]:
    """Return what some agent may do, and what some agent may not."""
    version = int(database.execute("SHOW server_version_num")[0][0])
    rows = database.execute(
        WHAT_AGENTS_MAY_DO,
        {
            "agents": list(AGENTS),
            "tables": list(TABLES),
            "rights": ["SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER"]
            + ["MAINTAIN"] * (version >= 170000),
        },
    )
    return {name for name, may in rows if may}, {name for name, may in rows if not may}


@pytest.mark.parametrize("schema", SCHEMAS, indirect=True)
def test_the_server_says_the_same_of_every_agent_whatever_was_given(
    server: EmbeddedPostgres, lived: Database
) -> None:
    lived.execute(ROLES)
    meant, kept_back = what_agents_may_do(lived)
    for given in ("big_bro", "PUBLIC", "claude_agents", "claude_approvers"):
        lived.execute(
            f"GRANT ALL ON DATABASE lived TO {given}; GRANT ALL ON SCHEMA public TO {given};"
            f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {given};"
            f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {given};"
            f"GRANT ALL (id, body) ON claude_messages TO {given}"
        )
    lived.execute("GRANT pg_write_all_data TO claude_agents; GRANT big_bro TO claude_approvers")
    control, _ = what_agents_may_do(lived)

    lived.execute(ROLES)

    assert control > meant
    assert (meant, kept_back) == what_agents_may_do(lived)
    assert not meant & kept_back
    assert meant & {f"{name} {right}" for name in TABLES for right in ("INSERT", "UPDATE")} == set()
    assert "claude_messages UPDATE body" in kept_back
    assert "claude_state UPDATE agent_id" in kept_back


def test_default_privileges_of_the_owner_are_taken_from_what_they_made(
    server: EmbeddedPostgres, lived: Database
) -> None:
    lived.execute("DROP TABLE claude_messages, claude_state, claude_observations")
    for kind in ("TABLES", "SEQUENCES", "FUNCTIONS"):
        lived.execute(f"ALTER DEFAULT PRIVILEGES GRANT ALL ON {kind} TO big_bro, PUBLIC")
    lived.execute((PROGRAM_FOLDER / SCHEMAS[2]).read_text())
    fill(lived)
    attempts = ("TRUNCATE claude_messages", "SELECT setval('claude_messages_id_seq', 1)")
    assert [can(server, attempt) for attempt in attempts] == [True, True]

    lived.execute(ROLES)

    assert [can(server, attempt) for attempt in attempts] == [False, False]
    assert seen_by(server).faults == []


@pytest.mark.parametrize(
    "setting",
    [
        "SELECT",
        "ALTER ROLE public_claude SET search_path = evil, public",
        "ALTER ROLE public_claude IN DATABASE lived SET search_path = evil, public",
        "ALTER DATABASE lived SET search_path = evil, public",
        "ALTER ROLE ALL SET search_path = evil, public",
    ],
)
def test_no_setting_and_no_schema_leads_an_agent_to_other_tables(
    setting: str,
    server: EmbeddedPostgres,
    lived: Database,
    request: pytest.FixtureRequest,
) -> None:
    lived.execute("CREATE ROLE shadow")
    for shadow in ("public_claude", "evil"):
        lived.execute(
            f"CREATE SCHEMA {shadow}; GRANT USAGE ON SCHEMA {shadow} TO PUBLIC;"
            f"CREATE VIEW {shadow}.claude_messages AS SELECT;"
            f"ALTER VIEW {shadow}.claude_messages OWNER TO shadow"
        )
    lived.execute(setting)
    request.addfinalizer(lambda: Database(server.url()).execute("ALTER ROLE ALL RESET ALL"))
    found = "SELECT 'claude_messages'::regclass = 'public.claude_messages'::regclass"
    public_claude = Database(server.url("lived", "public_claude"))
    assert public_claude.execute(found) == [(False,)]

    Database(lived.url + "&options=-csearch_path%3Dpublic").execute(ROLES)

    assert public_claude.execute(found) == [(True,)]
    assert seen_by(server).faults == []


def test_it_stops_where_its_own_owner_would_find_two_of_the_tables(lived: Database) -> None:
    lived.execute("CREATE SCHEMA postgres; CREATE TABLE postgres.claude_messages ()")

    assert refusal(lived) == (
        'claude_messages stands in 2 of the schemas searched ("$user", public):'
        " SET search_path to its own"
    )


def test_it_stops_for_what_only_the_owner_of_the_database_can_take_away(
    server: EmbeddedPostgres, lived: Database
) -> None:
    lived.execute("CREATE ROLE bus LOGIN CREATEROLE; GRANT CREATE ON DATABASE lived TO big_bro")
    lived.execute("GRANT claude_agents, claude_approvers TO bus WITH ADMIN OPTION")
    for role in AGENTS:
        lived.execute(f"GRANT {role} TO bus WITH ADMIN OPTION")
    for table in TABLES:
        lived.execute(f"ALTER TABLE {table} OWNER TO bus")
    lived.execute("GRANT CREATE ON SCHEMA public TO bus; REVOKE TEMP ON DATABASE lived FROM PUBLIC")
    bus = Database(server.url("lived", "bus"))

    line = refusal(bus)
    lived.execute("REVOKE CREATE ON DATABASE lived FROM big_bro")
    bus.execute(ROLES)

    assert line == (
        "big_bro has CREATE on DATABASE lived:"
        " its owner must REVOKE CREATE ON DATABASE lived FROM big_bro CASCADE"
    )
    assert seen_by(server) == Rights("public_claude", True, [])


@pytest.mark.parametrize(
    ("undone", "fault"),
    [
        (
            "ALTER TABLE claude_state DISABLE ROW LEVEL SECURITY",
            "row-level security is off on public.claude_state",
        ),
        (
            "ALTER TABLE claude_messages DISABLE TRIGGER guard_claude_message",
            "the trigger guard_claude_message on claude_messages is missing or off",
        ),
        (
            "DROP TRIGGER guard_claude_message ON claude_messages",
            "the trigger guard_claude_message on claude_messages is missing or off",
        ),
        *(
            (undone, "the policies or the guard are not as this roles.sql makes them")
            for undone in (
                "ALTER POLICY own_mail_and_own_escalations ON claude_messages USING (true)",
                "ALTER POLICY send_as_oneself ON claude_messages WITH CHECK (true)",
                "ALTER POLICY own_row_update ON claude_state TO claude_approvers",
                "DROP POLICY take_back_own_task ON claude_messages",
                "CREATE OR REPLACE FUNCTION guard_claude_message() RETURNS trigger"
                " LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
                "DROP TRIGGER guard_claude_message ON claude_messages; CREATE TRIGGER"
                " guard_claude_message BEFORE UPDATE ON claude_messages FOR EACH ROW"
                " WHEN (false) EXECUTE FUNCTION guard_claude_message(); ALTER TABLE"
                " claude_messages ENABLE ALWAYS TRIGGER guard_claude_message",
                # As a roles.sql leaves it that is older than this note.
                "COMMENT ON TRIGGER guard_claude_message ON claude_messages IS NULL",
            )
        ),
    ],
)
def test_what_was_switched_off_is_found_and_put_right(
    undone: str, fault: str, server: EmbeddedPostgres, lived: Database
) -> None:
    lived.execute(ROLES)
    lived.execute(undone)

    found = seen_by(server).faults
    lived.execute(ROLES)

    assert found == [f"{fault}; run roles.sql again"]
    assert seen_by(server).faults == []


def test_an_edition_of_other_policies_or_another_guard_is_another_edition(
    server: EmbeddedPostgres, lived: Database
) -> None:
    made = ROLES.partition("-- Rows. ")[2].partition("-- The rights in effect")[0]
    edition = hashlib.md5(made.encode(), usedforsecurity=False).hexdigest()
    assert ROLES.count(edition) == 1

    lived.execute(ROLES.replace(edition, "an older one"))

    (fault,) = seen_by(server).faults
    assert fault.startswith("the policies or the guard are not as this roles.sql makes them")


def test_a_session_that_calls_itself_a_replica_is_guarded(
    server: EmbeddedPostgres, lived: Database
) -> None:
    lived.execute(ROLES)
    lived.execute("GRANT SET ON PARAMETER session_replication_role TO public_claude")
    attempt = (
        "SET session_replication_role = replica;"
        "UPDATE claude_messages SET status = 'approved' WHERE id = 5"
    )

    assert not can(server, attempt, "public_claude")
    lived.execute("ALTER TABLE claude_messages ENABLE TRIGGER guard_claude_message")
    assert can(server, attempt, "public_claude")
    lived.execute("REVOKE SET ON PARAMETER session_replication_role FROM public_claude")


def test_a_temporary_type_cannot_stand_for_one_of_the_guards(
    server: EmbeddedPostgres, lived: Database
) -> None:
    lived.execute(ROLES)
    lived.execute("GRANT TEMPORARY ON DATABASE lived TO public_claude")
    attempt = (
        "CREATE DOMAIN pg_temp.jsonb AS text;"
        "UPDATE claude_messages SET data = data || '{{\"claim\": 1}}' WHERE id = 1"
    )

    assert can(server, attempt, "public_claude")


def test_no_function_beside_the_tables_answers_for_the_servers_own(
    server: EmbeddedPostgres, lived: Database
) -> None:
    lived.execute(ROLES)
    lived.execute("GRANT CREATE ON SCHEMA public TO big_bro")
    Database(server.url("lived", "big_bro")).execute(
        "CREATE FUNCTION public.quote_ident(name) RETURNS text LANGUAGE plpgsql AS"
        " 'BEGIN RAISE ''called''; END'"
    )

    faults = seen_by(server).faults
    lines = refusal(lived)
    lived.execute("DROP FUNCTION public.quote_ident(name)")
    lived.execute(ROLES)

    assert "big_bro has CREATE on SCHEMA public; run roles.sql again" in faults
    assert "big_bro owns FUNCTION public.quote_ident(pg_catalog.name)" in lines
    assert seen_by(server).faults == []


def test_every_role_has_few_connections(server: EmbeddedPostgres, lived: Database) -> None:
    lived.execute("ALTER ROLE dev_claude CONNECTION LIMIT 3")
    lived.execute(ROLES)
    limits = dict(lived.execute("SELECT rolname, rolconnlimit FROM pg_roles"))

    assert {limits[role] for role in AGENTS} == {10, 3}
    assert limits["dev_claude"] == 3
    with ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(closing(psycopg2.connect(server.url("lived", "big_bro"))))
        with pytest.raises(psycopg2.OperationalError, match="too many connections for role"):
            psycopg2.connect(server.url("lived", "big_bro"))


def test_nobody_claims_an_identity_before_roles_sql_and_after_its_way_back(
    server: EmbeddedPostgres, lived: Database
) -> None:
    lived.execute("GRANT ALL ON DATABASE lived TO big_bro")
    before = seen_by(server)
    lived.execute(ROLES)
    lived.execute("SELECT remove_claude_roles()")
    lived.execute("CREATE ROLE public_claude LOGIN; GRANT CREATE ON DATABASE lived TO PUBLIC")

    assert before == seen_by(server) == Rights("public_claude", False, [])


def test_a_login_of_another_name_is_a_fault_and_the_owners_is_not(
    server: EmbeddedPostgres, lived: Database
) -> None:
    lived.execute(ROLES)

    assert seen_by(server, "big_bro").faults == ["login big_bro cannot write as public_claude"]
    assert seen_by(server, "postgres") == Rights("postgres", False, [])


@pytest.mark.parametrize("schema", SCHEMAS, indirect=True)
def test_burned_ids_are_counted_and_made_bigint_by_the_statement(
    server: EmbeddedPostgres, lived: Database
) -> None:
    lived.execute(ROLES)
    with closing(connection.Database(server.url("lived", "public_claude"), "x")) as database:
        fresh = ids_left(database)
        lived.execute("SELECT setval('claude_messages_id_seq', 2147483647)")
        messages, observations = burned = ids_left(database)
        with pytest.raises(psycopg2.Error):
            send(lived, "TASK: x")
        for table in burned:
            lived.execute(table.remedy)
        mended = ids_left(database)

    assert [table.few for table in fresh] == [False, False]
    assert (messages.table, messages.left, messages.few) == ("claude_messages", 0, True)
    assert observations.left == 2147483646
    assert min(table.left for table in mended) > 2**62 > FEW_IDS
    reply = send(lived, "x", msg_type="response", reply_to_id=send(lived, "TASK: x"))
    assert reply > 2**31
    assert seen_by(server).faults == []


def test_a_fault_is_told_in_the_agents_state(
    server: EmbeddedPostgres, lived: Database, cycles: Cycles
) -> None:
    lived.execute(ROLES)
    lived.execute("ALTER TABLE claude_messages DISABLE TRIGGER guard_claude_message")
    sent = send(lived, "TASK: list_tasks")

    cycle = cycles.run(RESEARCH_DATABASE_URL=server.url("lived", "public_claude"))

    assert cycle.returncode == 1
    assert "guard_claude_message on claude_messages is missing or off" in cycle.stderr
    assert "run roles.sql again" in state(lived)["last_error"]
    assert [task["status"] for task in messages(lived, id=sent)] == ["pending"]
