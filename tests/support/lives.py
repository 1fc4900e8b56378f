"""What databases had been through before roles.sql: rights of every kind, by every way."""

from __future__ import annotations

from typing import NamedTuple


class Life(NamedTuple):
    """What was done to a database as its superuser, and what a login can do since then.

    Roles.sql takes it away, or stops with a line that has `stops` in it.
    """

    name: str
    before: str
    attempt: str
    stops: str = ""
    login: str = "big_bro"


APPROVE = "UPDATE claude_messages SET status = 'approved' WHERE id = 5"
SHADOW = "CREATE SCHEMA public_claude"
EMPTY = "TRUNCATE claude_messages"
RENUMBER = "SELECT setval('claude_messages_id_seq', 1)"
REWRITE = "UPDATE claude_messages SET body = 'TASK: x' WHERE id = 1"
UNLIMITED = (
    "SELECT FROM pg_roles WHERE rolname = current_user AND rolconnlimit NOT BETWEEN 0 AND 10"
)
MINE = (
    "CREATE FUNCTION mine{0} RETURNS {1} LANGUAGE sql AS '{2}';"
    "ALTER FUNCTION mine{0} OWNER TO big_bro;"
)
TEAM = "CREATE ROLE team; GRANT team TO big_bro;"
APP = "CREATE ROLE app LOGIN;"
WORKER = (
    "CREATE ROLE bots; CREATE ROLE worker LOGIN CONNECTION LIMIT 10;"
    "GRANT claude_agents TO bots; GRANT bots TO worker;"
)
TRAP = (
    "CREATE SCHEMA app AUTHORIZATION app; GRANT USAGE ON SCHEMA app TO PUBLIC;"
    "GRANT TRIGGER ON claude_messages TO app;"
    "GRANT INSERT, UPDATE ON claude_messages TO craig_mobile;"
    "GRANT USAGE ON SEQUENCE claude_messages_id_seq TO craig_mobile; SET ROLE app;"
    "CREATE FUNCTION app.trap() RETURNS {0} LANGUAGE plpgsql AS 'BEGIN"
    " UPDATE public.claude_messages SET status = ''approved'' WHERE id = 5; RETURN {1}; END';"
)
WRITES = (
    "INSERT INTO claude_messages (from_agent, to_agent, msg_type)"
    " VALUES ('craig_mobile', 'x', 'message');"
)
FIRST_APPROVED = "SELECT FROM claude_messages WHERE id = 5 AND status = 'approved'"

LIVES = [
    # The database and its schemas
    Life("all on the database", "GRANT ALL ON DATABASE {db} TO big_bro", SHADOW),
    Life("all on the database for everybody", "GRANT ALL ON DATABASE {db} TO PUBLIC", SHADOW),
    Life(
        "temporary tables",
        "GRANT TEMPORARY ON DATABASE {db} TO PUBLIC",
        "CREATE TEMP TABLE claude_messages ()",
    ),
    Life(
        "all on the schema",
        "GRANT ALL ON SCHEMA public TO big_bro WITH GRANT OPTION",
        "CREATE TABLE x ()",
    ),
    Life(
        "create in the schema", "GRANT CREATE ON SCHEMA public TO PUBLIC", "CREATE VIEW x AS SELECT"
    ),
    Life(
        "create in another agent's schema",
        "CREATE SCHEMA public_claude; GRANT ALL ON SCHEMA public_claude TO big_bro",
        "CREATE TABLE public_claude.claude_messages ()",
    ),
    Life(
        "create where everybody looks first",
        "CREATE SCHEMA research; GRANT ALL ON SCHEMA research TO big_bro, public_claude;"
        "ALTER DATABASE {db} SET search_path = research, public",
        "CREATE TABLE research.claude_messages ()",
    ),
    # Tables, columns, sequences
    Life("all on the tables", "GRANT ALL ON ALL TABLES IN SCHEMA public TO big_bro", EMPTY),
    Life("all on the tables for everybody", "GRANT ALL ON claude_messages TO PUBLIC", EMPTY),
    Life(
        "the right to write a whole table",
        "GRANT INSERT, UPDATE ON claude_state TO big_bro",
        "LOCK TABLE claude_state IN ACCESS EXCLUSIVE MODE",
    ),
    Life(
        "columns to change",
        "GRANT UPDATE (body) ON claude_messages TO big_bro",
        REWRITE,
    ),
    Life(
        "columns to fill",
        "GRANT INSERT (id, from_agent, to_agent, msg_type, created_at) ON claude_messages"
        " TO PUBLIC",
        "INSERT INTO claude_messages (id, from_agent, to_agent, msg_type, created_at)"
        " VALUES (99, 'big_bro', 'public_claude', 'task', '1970-01-01')",
    ),
    Life(
        "all on the sequences", "GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO big_bro", RENUMBER
    ),
    Life("numbers for everybody", "GRANT UPDATE ON claude_messages_id_seq TO PUBLIC", RENUMBER),
    Life(
        "rights that somebody passed on",
        "CREATE ROLE giver; GRANT ALL ON claude_messages TO giver WITH GRANT OPTION;"
        "SET ROLE giver; GRANT TRUNCATE ON claude_messages TO big_bro; RESET ROLE",
        EMPTY,
    ),
    # By way of roles
    Life("a group", TEAM + "GRANT ALL ON claude_messages TO team", EMPTY),
    Life(
        "a group whose rights must be taken up",
        TEAM + "ALTER ROLE big_bro NOINHERIT; GRANT ALL ON claude_messages TO team",
        "SET ROLE team; " + EMPTY,
    ),
    Life(
        "a group of a group",
        TEAM + "CREATE ROLE staff; GRANT staff TO team; GRANT CREATE ON DATABASE {db} TO staff",
        SHADOW,
    ),
    Life("a group that owns", TEAM + "ALTER TABLE claude_messages OWNER TO team", EMPTY),
    Life(
        "a group that owns the database",
        TEAM + "ALTER DATABASE {db} OWNER TO team",
        SHADOW,
    ),
    Life(
        "a group above row-level security",
        TEAM + "ALTER ROLE team BYPASSRLS; GRANT UPDATE ON claude_messages TO team",
        "SET ROLE team; " + REWRITE,
    ),
    Life("pg_write_all_data", "GRANT pg_write_all_data TO big_bro", REWRITE),
    Life(
        "pg_write_all_data by a group",
        TEAM + "GRANT pg_write_all_data TO team",
        REWRITE,
    ),
    Life(
        "programs on the server",
        "GRANT pg_execute_server_program TO big_bro",
        "COPY (SELECT 1) TO PROGRAM 'cat > /dev/null'",
    ),
    Life(
        "the connections of others",
        "GRANT pg_signal_backend TO big_bro",
        "SELECT WHERE pg_has_role('pg_signal_backend', 'MEMBER')",
    ),
    Life(
        "another agent",
        "GRANT craig_mobile TO big_bro",
        "SET ROLE craig_mobile; ALTER ROLE craig_mobile PASSWORD 'x'",
    ),
    Life(
        "another agent by a group",
        TEAM + "GRANT craig_mobile TO team",
        "SET ROLE craig_mobile; ALTER ROLE craig_mobile SET search_path = x",
    ),
    Life(
        "the right to appoint approvers",
        "GRANT claude_approvers TO big_bro WITH ADMIN OPTION",
        "GRANT claude_approvers TO public_claude",
    ),
    # Attributes and ownership
    Life(
        "BYPASSRLS",
        "ALTER ROLE big_bro BYPASSRLS",
        "SELECT FROM pg_roles WHERE rolname = current_user AND rolbypassrls",
    ),
    Life("CREATEROLE", "ALTER ROLE big_bro CREATEROLE", "CREATE ROLE friend"),
    Life(
        "REPLICATION",
        "ALTER ROLE big_bro REPLICATION",
        "SELECT FROM pg_roles WHERE rolname = current_user AND rolreplication",
    ),
    Life("SUPERUSER", "ALTER ROLE big_bro SUPERUSER", EMPTY, 'role "big_bro" stands above'),
    Life(
        "owner of a table",
        "ALTER TABLE claude_state OWNER TO big_bro",
        "ALTER TABLE claude_state DISABLE ROW LEVEL SECURITY",
        "big_bro owns TABLE public.claude_state",
    ),
    Life(
        "owner of all tables",
        "ALTER TABLE claude_messages OWNER TO big_bro",
        EMPTY,
        'role "big_bro" stands above',
    ),
    Life(
        "owner of the schema",
        "ALTER SCHEMA public OWNER TO big_bro",
        "CREATE TABLE x ()",
        "big_bro owns SCHEMA public",
    ),
    Life(
        "owner of the database",
        "ALTER DATABASE {db} OWNER TO big_bro",
        SHADOW,
        "big_bro owns DATABASE {db}",
    ),
    Life(
        "owner of a function that a default calls",
        "ALTER FUNCTION uuid_generate_v4() OWNER TO big_bro",
        "ALTER FUNCTION uuid_generate_v4() COST 7",
        "big_bro owns FUNCTION public.uuid_generate_v4()",
    ),
    Life(
        "owner of a trigger's function",
        "CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
        "CREATE TRIGGER tell BEFORE INSERT ON claude_messages FOR EACH ROW EXECUTE FUNCTION tell();"
        "ALTER FUNCTION tell() OWNER TO big_bro",
        "ALTER FUNCTION tell() COST 7",
        "big_bro owns FUNCTION public.tell()",
    ),
    # What the tables' statements and parts take for the server's own
    Life(
        "an operator that fits better",
        MINE.format("(varchar, name)", "boolean", "SELECT true")
        + "CREATE OPERATOR = (LEFTARG = varchar, RIGHTARG = name, FUNCTION = mine)",
        "ALTER FUNCTION mine(varchar, name) COST 7",
        "big_bro owns FUNCTION public.mine(character varying,pg_catalog.name)",
    ),
    Life(
        "an operator of big_bro's",
        "CREATE FUNCTION same(varchar, varchar) RETURNS boolean LANGUAGE sql AS 'SELECT true';"
        "CREATE OPERATOR = (LEFTARG = varchar, RIGHTARG = varchar, FUNCTION = same);"
        "ALTER OPERATOR = (varchar, varchar) OWNER TO big_bro",
        "DROP OPERATOR = (varchar, varchar)",
        "big_bro owns OPERATOR public.=(character varying,character varying)",
    ),
    Life(
        "a function of the name of one of roles.sql's",
        MINE.format("(text)", "void", "SELECT") + "ALTER FUNCTION mine(text) RENAME TO"
        " add_claude_agent",
        "ALTER FUNCTION add_claude_agent(text) COST 7",
        "big_bro owns FUNCTION public.add_claude_agent(pg_catalog.text)",
    ),
    Life(
        "a constraint that calls",
        "CREATE SCHEMA far; GRANT USAGE ON SCHEMA far TO PUBLIC; SET search_path = far, public;"
        + MINE.format("(text)", "boolean", "SELECT true")
        + "ALTER TABLE claude_messages ADD CHECK (mine(subject))",
        "ALTER FUNCTION far.mine(text) COST 7",
        "big_bro owns FUNCTION far.mine(pg_catalog.text)",
    ),
    Life(
        "an index that calls",
        "CREATE SCHEMA far; GRANT USAGE ON SCHEMA far TO PUBLIC; SET search_path = far, public;"
        + MINE.format("(text)", "text IMMUTABLE", "SELECT $1")
        + "CREATE INDEX ON claude_messages (mine(status))",
        "ALTER FUNCTION far.mine(text) COST 7",
        "big_bro owns FUNCTION far.mine(pg_catalog.text)",
    ),
    Life(
        "a rule that calls",
        "CREATE SCHEMA far; GRANT USAGE ON SCHEMA far TO PUBLIC; SET search_path = far, public;"
        + MINE.format("(text)", "text", "SELECT $1")
        + "CREATE RULE x AS ON INSERT TO claude_observations DO ALSO SELECT mine(NEW.subject)",
        "ALTER FUNCTION far.mine(text) COST 7",
        "big_bro owns FUNCTION far.mine(pg_catalog.text)",
    ),
    Life(
        "a policy that calls",
        "CREATE SCHEMA far; GRANT USAGE ON SCHEMA far TO PUBLIC; SET search_path = far, public;"
        + MINE.format("()", "boolean", "SELECT true")
        + "CREATE POLICY x ON claude_messages AS RESTRICTIVE USING (mine())",
        "ALTER FUNCTION far.mine() COST 7",
        "big_bro owns FUNCTION far.mine()",
    ),
    Life(
        "a trigger's condition that calls",
        "CREATE SCHEMA far; GRANT USAGE ON SCHEMA far TO PUBLIC; SET search_path = far, public;"
        + MINE.format("()", "boolean", "SELECT true")
        + "CREATE TRIGGER x BEFORE UPDATE ON claude_messages FOR EACH ROW WHEN (mine())"
        " EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        "ALTER FUNCTION far.mine() COST 7",
        "big_bro owns FUNCTION far.mine()",
    ),
    Life(
        "a column's domain",
        "CREATE SCHEMA far; GRANT USAGE ON SCHEMA far TO PUBLIC; CREATE DOMAIN far.words AS text;"
        "ALTER TABLE claude_observations ALTER subject TYPE far.words;"
        "ALTER DOMAIN far.words OWNER TO big_bro",
        "ALTER DOMAIN far.words ADD CHECK (false) NOT VALID",
        "big_bro owns TYPE far.words",
    ),
    Life(
        "a function with its owner's rights",
        "CREATE FUNCTION approve() RETURNS void SECURITY DEFINER LANGUAGE sql AS"
        " 'UPDATE public.claude_messages SET status = ''approved'' WHERE id = 5'",
        "SELECT approve()",
    ),
    # What stands between
    Life(
        "a schema of another's name",
        "CREATE SCHEMA public_claude AUTHORIZATION big_bro",
        "CREATE TABLE public_claude.claude_messages ()",
        "big_bro owns SCHEMA public_claude",
    ),
    Life(
        "a view with its owner's rights",
        "CREATE VIEW inbox AS SELECT * FROM claude_messages; GRANT ALL ON inbox TO big_bro",
        "UPDATE inbox SET status = 'approved' WHERE id = 5",
    ),
    Life(
        "a view of a view",
        "CREATE VIEW inbox AS SELECT * FROM claude_messages;"
        "CREATE VIEW tray AS SELECT * FROM inbox; GRANT UPDATE (status), SELECT ON tray TO PUBLIC",
        "UPDATE tray SET status = 'approved' WHERE id = 5",
    ),
    Life(
        "a rule with its owner's rights",
        "CREATE TABLE tap (id integer); GRANT INSERT ON tap TO big_bro; CREATE RULE tap AS"
        " ON INSERT TO tap DO ALSO UPDATE claude_messages SET status = 'denied' WHERE id = NEW.id",
        "INSERT INTO tap VALUES (5)",
    ),
    Life(
        "a table above",
        "CREATE TABLE above (id integer NOT NULL, status varchar(50));"
        "ALTER TABLE claude_messages INHERIT above; GRANT ALL ON above TO big_bro",
        "UPDATE above SET status = 'approved' WHERE id = 5",
    ),
    Life(
        "a table below",
        "CREATE TABLE below () INHERITS (claude_messages); GRANT ALL ON below TO PUBLIC",
        "INSERT INTO below (id, from_agent, to_agent, msg_type)"
        " VALUES (99, 'craig_mobile', 'public_claude', 'response')",
    ),
    Life(
        "rows that take others along",
        "CREATE TABLE agents (name varchar(50) PRIMARY KEY); INSERT INTO agents"
        " SELECT DISTINCT from_agent FROM claude_messages; ALTER TABLE claude_messages ADD FOREIGN"
        " KEY (from_agent) REFERENCES agents ON DELETE CASCADE; GRANT ALL ON agents TO big_bro",
        "DELETE FROM agents",
    ),
    Life("no connection limit", "ALTER ROLE big_bro CONNECTION LIMIT -1", UNLIMITED),
    Life("a high connection limit", "ALTER ROLE big_bro CONNECTION LIMIT 1000", UNLIMITED),
    Life(
        "a policy of somebody else",
        "ALTER TABLE claude_messages ENABLE ROW LEVEL SECURITY; GRANT ALL ON claude_messages TO"
        " big_bro; CREATE POLICY everything ON claude_messages USING (true)",
        APPROVE,
    ),
    # Logins that are no agents
    Life(
        "another login that may do all",
        APP + "GRANT ALL ON DATABASE {db} TO app; GRANT ALL ON ALL TABLES IN SCHEMA public TO app",
        EMPTY,
        login="app",
    ),
    Life(
        "another login that may write a whole table",
        APP + "GRANT UPDATE ON claude_messages TO app",
        "LOCK TABLE claude_messages IN ACCESS EXCLUSIVE MODE",
        login="app",
    ),
    Life(
        "another login that may fill columns",
        APP + "GRANT INSERT (agent_id) ON claude_state TO PUBLIC",
        "INSERT INTO claude_state (agent_id) VALUES ('app')",
        login="app",
    ),
    Life(
        "another login in a group that may write",
        APP + TEAM + "GRANT team TO app; GRANT INSERT (agent_id) ON claude_state TO team",
        "INSERT INTO claude_state (agent_id) VALUES ('app')",
        login="app",
    ),
    Life(
        "another login that may take numbers",
        APP + "GRANT USAGE ON claude_messages_id_seq TO app",
        "SELECT nextval('claude_messages_id_seq')",
        login="app",
    ),
    Life(
        "another login that may refer",
        APP
        + "GRANT REFERENCES (id) ON claude_messages TO app; CREATE SCHEMA app AUTHORIZATION app",
        "CREATE TABLE app.x (id integer REFERENCES public.claude_messages)",
        login="app",
    ),
    Life(
        "another login that may write a view",
        APP + "CREATE VIEW inbox AS SELECT * FROM claude_messages; GRANT ALL ON inbox TO app",
        "UPDATE inbox SET status = 'approved' WHERE id = 5",
        login="app",
    ),
    Life(
        "another login that may make a schema of an agent's name",
        APP + "GRANT CREATE ON DATABASE {db} TO app",
        SHADOW,
        login="app",
    ),
    Life(
        "another login that may make operators beside the tables",
        APP + "GRANT CREATE ON SCHEMA public TO app",
        "CREATE FUNCTION mine(varchar, varchar) RETURNS boolean LANGUAGE sql AS 'SELECT true';"
        "CREATE OPERATOR = (LEFTARG = varchar, RIGHTARG = varchar, FUNCTION = mine)",
        login="app",
    ),
    Life(
        "another login that writes all tables",
        APP + "CREATE ROLE loaders; GRANT loaders TO app; GRANT pg_write_all_data TO loaders",
        "LOCK TABLE claude_messages IN ACCESS EXCLUSIVE MODE",
        "loaders can become pg_write_all_data",
        login="app",
    ),
    Life(
        "another login's trigger, which approves when the approver writes",
        APP
        + TRAP.format("trigger", "NEW")
        + "CREATE TRIGGER trap BEFORE INSERT ON claude_messages FOR EACH ROW"
        " EXECUTE FUNCTION app.trap()",
        WRITES + FIRST_APPROVED,
        login="craig_mobile",
    ),
    Life(
        "another login's function in a default, which approves when the approver writes",
        APP
        + TRAP.format("text", "''x''")
        + "RESET ROLE; ALTER TABLE claude_messages ALTER subject SET DEFAULT app.trap()",
        WRITES + FIRST_APPROVED,
        "app owns FUNCTION app.trap()",
        login="craig_mobile",
    ),
    Life(
        "another login's operator beside the tables",
        APP + "CREATE FUNCTION same(varchar, varchar) RETURNS boolean LANGUAGE sql AS"
        " 'SELECT true';"
        "CREATE OPERATOR = (LEFTARG = varchar, RIGHTARG = varchar, FUNCTION = same);"
        "ALTER OPERATOR = (varchar, varchar) OWNER TO app",
        "DROP OPERATOR = (varchar, varchar)",
        "app owns OPERATOR public.=(character varying,character varying)",
        login="app",
    ),
    Life(
        "another login's function of the name of one of the server's",
        APP + "CREATE FUNCTION length(varchar) RETURNS integer LANGUAGE sql AS 'SELECT 1';"
        "ALTER FUNCTION public.length(varchar) OWNER TO app",
        "ALTER FUNCTION public.length(varchar) COST 7",
        "app owns FUNCTION public.length(character varying)",
        login="app",
    ),
    Life(
        "another login that can become the approver",
        APP + "GRANT craig_mobile TO app",
        "SET ROLE craig_mobile; ALTER ROLE craig_mobile PASSWORD 'x'",
        login="app",
    ),
    Life(
        "another login that can appoint approvers",
        APP + "GRANT claude_approvers TO app WITH ADMIN OPTION",
        "GRANT claude_approvers TO public_claude",
        login="app",
    ),
    Life(
        "a member of a member",
        WORKER + "GRANT TRUNCATE, UPDATE ON claude_messages TO worker",
        EMPTY,
        login="worker",
    ),
    Life(
        "a member of a member with temporary tables",
        WORKER + "GRANT TEMPORARY ON DATABASE {db} TO worker",
        "CREATE TEMP TABLE claude_messages ()",
        login="worker",
    ),
    Life(
        "a member of a member above row-level security",
        WORKER + "ALTER ROLE worker BYPASSRLS",
        "SELECT FROM pg_roles WHERE rolname = current_user AND rolbypassrls",
        login="worker",
    ),
]
