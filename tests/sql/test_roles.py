"""roles.sql with real logins: who may do what to which row, and that without it everybody may."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import psycopg2
import pytest
from support.postgres import (
    PROGRAM_FOLDER,
    SCHEMAS,
    Database,
    decide,
    escalations,
    message,
    messages,
    new_database,
    own_server,
    reports,
    send,
    state,
)
from support.role_actions import ACTIONS, AGENTS, EVERYBODY, Action, fill, reaches_a_row

from catalyst_heartbeat.demo.embedded_postgres import EmbeddedPostgres

pytestmark = pytest.mark.slow

ROLES = (PROGRAM_FOLDER / "catalyst_heartbeat/sql/roles.sql").read_text()


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    """Roles belong to a whole server, so these tests have one of their own."""
    with own_server() as server:
        new_database(server, "guarded", "tests/support/production_schema.sql").execute(ROLES)
        fill(Database(server.url("guarded")))
        opened = new_database(server, "open", "tests/support/production_schema.sql")
        fill(opened)
        opened.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO PUBLIC")
        opened.execute("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO PUBLIC")
        opened.execute("GRANT ALL ON SCHEMA public TO PUBLIC; GRANT ALL ON DATABASE open TO PUBLIC")
        yield server


@pytest.fixture(scope="module")
def logins(server: EmbeddedPostgres) -> Iterator[Any]:
    """Each agent's connections to the two databases, by database and role."""
    with ExitStack() as stack:
        yield {
            (name, role): stack.enter_context(closing(psycopg2.connect(server.url(name, role))))
            for name in ("guarded", "open")
            for role in AGENTS
        }


def may(server: EmbeddedPostgres, database: str, role: str, statement: str) -> bool:
    with closing(psycopg2.connect(server.url(database, role))) as conn:
        return reaches_a_row(conn, statement, role)


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.name)
def test_who_may_do_what(action: Action, logins: Any) -> None:
    guarded, opened = (
        {role for role in AGENTS if reaches_a_row(logins[name, role], action.statement, role)}
        for name in ("guarded", "open")
    )

    assert guarded == action.allowed
    assert opened == EVERYBODY


@pytest.fixture(params=SCHEMAS)
def identified(server: EmbeddedPostgres, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Return a function that gives a login's view of a fresh database under roles.sql."""
    name = f"identified_{SCHEMAS.index(request.param)}"
    new_database(server, name, request.param).execute(ROLES)

    def as_role(role: str) -> Database:
        return Database(server.url(name, role))

    yield as_role
    Database(server.url()).execute(f"DROP DATABASE {name} WITH (FORCE)")


Cycle = Callable[..., subprocess.CompletedProcess[str]]


def test_whole_loop_works_with_everybody_logged_in_as_themselves(
    identified: Callable[[str], Database], heartbeat: Cycle
) -> None:
    big_bro, craig = identified("big_bro"), identified("craig_mobile")
    url = identified("public_claude").url
    ids = {
        name: send(big_bro, f"TASK: {name}", subject=name)
        for name in ("db_agent_status", "disk_space", "db_pending_messages", "rm_rf", "docker_ps")
    }
    interrupt(identified("postgres"), ids["db_pending_messages"])
    settings = {
        "RESEARCH_DATABASE_URL": url,
        "TASKS_REQUIRING_APPROVAL": "db_agent_status,docker_ps",
    }

    first = heartbeat(**settings)
    decide(craig, escalations(craig, ids["db_agent_status"])[0], "approved")
    decide(craig, escalations(craig, ids["rm_rf"])[0], "denied", "No")
    (late,) = escalations(craig, ids["docker_ps"])
    identified("postgres").execute(
        "UPDATE claude_messages SET expires_at = now() WHERE id = %s", (late["id"],)
    )
    second = heartbeat(**settings)

    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    final = {name: reports(big_bro, id)[-1]["data"]["outcome"] for name, id in ids.items()}
    assert final == {
        "db_agent_status": "success",
        "disk_space": "success",
        "db_pending_messages": "success",
        "rm_rf": "denied",
        "docker_ps": "expired",
    }
    assert state(big_bro)["current_mode"] == "sleeping"
    assert big_bro.execute("SELECT agent_id FROM claude_observations")[0] == ("public_claude",)
    assert not messages(big_bro, to_agent="public_claude", status="pending")
    read = "UPDATE claude_messages SET status = 'processed' WHERE to_agent = 'big_bro' RETURNING id"
    assert len(big_bro.execute(read)) == 8


def interrupt(owner: Database, task_id: int) -> None:
    """Leave a task as a heartbeat does that was killed an hour ago."""
    owner.execute(
        "UPDATE claude_messages SET status = 'processing', read_at = now() - interval '1 hour',"
        ' data = \'{"claim": {"token": "t", "host": "gone", "pid": 1, "attempt": 1,'
        ' "lease_until": "2020-01-01T00:00:00+00:00"}}\' WHERE id = %s',
        (task_id,),
    )


def test_big_bro_can_neither_approve_nor_pose(
    identified: Callable[[str], Database], heartbeat: Cycle
) -> None:
    big_bro = identified("big_bro")
    asked = send(big_bro, "TASK: db_agent_status")
    settings = {"RESEARCH_DATABASE_URL": identified("public_claude").url}
    settings["TASKS_REQUIRING_APPROVAL"] = "db_agent_status"
    heartbeat(**settings)
    (card,) = escalations(big_bro, asked)

    changed = big_bro.execute(
        "UPDATE claude_messages SET status = 'approved' WHERE id = %s RETURNING id", (card["id"],)
    )
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        send(big_bro, "APPROVED", from_agent="craig_mobile", msg_type="response")
    result = heartbeat(**settings)

    assert changed == []
    assert result.returncode == 0, result.stderr
    assert message(big_bro, asked)["status"] == "escalated"


def catalog(database: Database) -> dict[str, list[Any]]:
    """Return everything that roles.sql makes or changes."""
    queries = {
        "roles": "SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_' ORDER BY 1",
        "policies": "SELECT tablename, policyname FROM pg_policies ORDER BY 1, 2",
        "triggers": "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1",
        "functions": "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
        " ORDER BY 1",
        "rights": "SELECT relname, relrowsecurity, grantee::regrole::text, privilege_type"
        " FROM pg_class, aclexplode(COALESCE(relacl, acldefault("
        "     CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::\"char\", relowner)))"
        " WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'S') ORDER BY 1, 3, 4",
        "columns": "SELECT count(*) FROM pg_attribute WHERE attacl IS NOT NULL AND attacl <> '{}'"
        " AND attrelid::regclass::text ~ '^claude_'",
    }
    return {name: database.execute(query) for name, query in queries.items()}


@pytest.mark.parametrize(
    ("owner", "schema"),
    [("postgres", SCHEMAS[0]), ("managed_admin", SCHEMAS[1]), ("managed_admin", SCHEMAS[2])],
)
def test_it_applies_twice_and_has_a_way_back(
    owner: str, schema: str, own_postgres: EmbeddedPostgres
) -> None:
    """Also for an owner who is no superuser, as managed databases have it."""
    admin = Database(own_postgres.url())
    if owner != "postgres":
        admin.execute(f"CREATE ROLE {owner} LOGIN CREATEROLE CREATEDB")
    admin.execute(f"CREATE DATABASE mine OWNER {owner}")
    mine = Database(own_postgres.url("mine", owner))
    mine.execute((PROGRAM_FOLDER / schema).read_text())
    send(mine, "TASK: docker_ps")
    before = catalog(mine)

    mine.execute(ROLES)
    once = catalog(mine)
    mine.execute(ROLES)
    twice = catalog(mine)
    refused = not may(own_postgres, "mine", "dev_claude", "TRUNCATE claude_messages")
    mine.execute("SELECT remove_claude_roles()")
    back = catalog(mine)
    mine.execute(ROLES)

    assert once == twice == catalog(mine)
    assert once != before == back
    assert refused
    assert len(messages(mine)) == 1


def test_rights_from_before_are_revoked(own_postgres: EmbeddedPostgres) -> None:
    mine = new_database(own_postgres, "mine", "tests/support/production_schema.sql")
    fill(mine)
    mine.execute(
        "CREATE ROLE big_bro; GRANT ALL ON claude_messages TO big_bro;"
        "GRANT UPDATE (body) ON claude_messages TO PUBLIC; GRANT TRUNCATE ON claude_state TO PUBLIC"
    )
    mine.execute("ALTER ROLE big_bro LOGIN")
    attempts = [
        "TRUNCATE claude_messages",
        "TRUNCATE claude_state",
        "UPDATE claude_messages SET body = 'x' WHERE id = 4",
    ]
    control = [may(own_postgres, "mine", "big_bro", attempt) for attempt in attempts]

    mine.execute(ROLES)

    done = [may(own_postgres, "mine", "big_bro", attempt) for attempt in attempts]
    assert (control, done) == ([True] * 3, [False] * 3)


def test_nobody_keeps_the_right_to_make_operators_that_others_queries_would_call(
    own_postgres: EmbeddedPostgres,
) -> None:
    mine = new_database(own_postgres, "mine", "tests/support/production_schema.sql")
    mine.execute("GRANT CREATE ON SCHEMA public TO PUBLIC; CREATE ROLE big_bro LOGIN")
    attempt = "CREATE FUNCTION hashtextextended(text, integer) RETURNS bigint RETURN 1"
    control = may(own_postgres, "mine", "big_bro", attempt)

    mine.execute(ROLES)

    assert (control, may(own_postgres, "mine", "big_bro", attempt)) == (True, False)


def test_an_escalation_in_a_strange_state_does_not_stop_the_agent(
    identified: Callable[[str], Database], heartbeat: Cycle
) -> None:
    big_bro, owner = identified("big_bro"), identified("postgres")
    settings = {"RESEARCH_DATABASE_URL": identified("public_claude").url}
    asked = send(big_bro, "TASK: reboot")
    heartbeat(**settings)
    (card,) = escalations(big_bro, asked)
    spoil = "UPDATE claude_messages SET status = 'read', expires_at = now() WHERE id = %s"
    owner.execute(spoil, (card["id"],))
    behind = send(big_bro, "TASK: disk_space")

    result = heartbeat(**settings)

    assert result.returncode == 0, result.stderr
    assert reports(big_bro, asked)[-1]["data"]["outcome"] == "expired"
    assert reports(big_bro, behind)[-1]["data"]["outcome"] == "success"


def test_roles_have_no_password(server: EmbeddedPostgres) -> None:
    rows = Database(server.url()).execute(
        "SELECT rolname, rolcanlogin, rolpassword FROM pg_authid WHERE rolname = ANY(%s)",
        ([*AGENTS, "claude_agents", "claude_approvers"],),
    )

    assert sorted(rows) == sorted(
        [
            *((name, True, None) for name in AGENTS),
            ("claude_agents", False, None),
            ("claude_approvers", False, None),
        ]
    )


def test_further_agent_is_one_call(server: EmbeddedPostgres) -> None:
    guarded = new_database(server, "further")
    guarded.execute(ROLES)
    approve = "UPDATE claude_messages SET status = 'approved' WHERE id = 100"
    guarded.execute(
        "INSERT INTO claude_messages (id, from_agent, to_agent, msg_type)"
        " VALUES (100, 'public_claude', 'New-Phone', 'escalation')"
    )

    guarded.execute("SELECT add_claude_agent('New-Phone')")
    send(Database(server.url("further", "New-Phone")), "TASK: x", from_agent="New-Phone")
    as_agent = may(server, "further", "New-Phone", approve)
    guarded.execute("SELECT add_claude_agent('New-Phone', approver => true)")
    as_approver = may(server, "further", "New-Phone", approve)
    guarded.execute("SELECT add_claude_agent('New-Phone')")
    as_agent_again = may(server, "further", "New-Phone", approve)

    assert (as_agent, as_approver, as_agent_again) == (False, True, False)


@pytest.mark.parametrize(
    "name", ["", "all", "a b", "a" * 51, "x'; DROP TABLE claude_state --", "postgres", "pg_x"]
)
def test_name_that_cannot_be_an_agent_is_refused(name: str, server: EmbeddedPostgres) -> None:
    with pytest.raises(psycopg2.Error):
        Database(server.url("guarded")).execute("SELECT add_claude_agent(%s)", (name,))


def test_agent_cannot_make_agents(server: EmbeddedPostgres) -> None:
    for statement in ("SELECT add_claude_agent('x')", "SELECT remove_claude_roles()"):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            Database(server.url("guarded", "public_claude")).execute(statement)
