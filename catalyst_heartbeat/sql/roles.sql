-- Optional: who an agent is. One login role per agent, and row-level security on the three tables.
--
-- Without it from_agent is a claim that anybody with the database's password can make. With it:
--   * everybody reads everything, as before;
--   * one sends only as oneself, a new message is 'pending', and its date is the database's;
--   * one changes only the status and times of mail addressed to oneself;
--   * the executor of a task notes its claim in the task's data, its decision in the escalation's;
--   * only an approver turns an escalation addressed to it from 'pending' to 'approved' or
--     'denied', once; the agent that asked may only close it;
--   * an agent writes its own row of claude_state, and observations as itself;
--   * nobody changes what a message says, and nobody deletes.
-- The tables' owner and superusers stay free of all this, so the old shared login goes on working
-- until each program has its own: take it away from the agents, or nothing is gained. An agent is
-- paused (claude_state.current_mode) with the owner's login.
--
-- Run it as the tables' owner, who needs CREATEROLE: psql "$OWNER_URL" -f roles.sql
-- It may be run again. What PUBLIC and the agents' roles could do on the tables before is revoked,
-- and so is creating objects in the tables' schema.
--
-- The roles have no password, and so cannot log in over the network until each has one:
--   \password public_claude
-- A further agent, and a further approver:
--   SELECT add_claude_agent('new_claude');
--   SELECT add_claude_agent('new_mobile', approver => true);
-- The way back: policies, rights and roles go, the tables and their rows stay.
--   SELECT remove_claude_roles();

BEGIN;

-- claude_agents holds the rights, claude_approvers says who may decide; nobody logs in as these.
DO $$
DECLARE
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['claude_agents', 'claude_approvers'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', wanted);
        END IF;
    END LOOP;
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO claude_agents', current_database());
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO claude_agents', current_schema());
    -- Whoever may create an operator here can have everybody else's queries call it.
    EXECUTE format('REVOKE CREATE ON SCHEMA %I FROM PUBLIC, claude_agents', current_schema());
    IF has_schema_privilege('claude_agents', current_schema(), 'CREATE') THEN
        RAISE 'agents may create objects in schema %: its owner must revoke that', current_schema();
    END IF;
END
$$;

-- Rights on tables and columns. A message's id and dates are the database's to give.
REVOKE ALL ON claude_messages, claude_state, claude_observations FROM PUBLIC, claude_agents;
GRANT SELECT ON claude_messages, claude_state, claude_observations TO claude_agents;
GRANT UPDATE (status, read_at, processed_at, data) ON claude_messages TO claude_agents;
GRANT INSERT, UPDATE ON claude_state TO claude_agents;

DO $$
DECLARE
    target text;
    columns text;
BEGIN
    FOREACH target IN ARRAY ARRAY['claude_messages', 'claude_observations'] LOOP
        SELECT string_agg(quote_ident(attname), ', ') INTO columns
          FROM pg_attribute
         WHERE attrelid = target::regclass AND attnum > 0 AND NOT attisdropped
           AND attname NOT IN ('id', 'message_uuid', 'created_at', 'read_at', 'processed_at');
        EXECUTE format('GRANT INSERT (%s) ON %I TO claude_agents', columns, target);
        EXECUTE format('GRANT USAGE ON SEQUENCE %s TO claude_agents',
                       pg_get_serial_sequence(target, 'id'));
    END LOOP;
END
$$;

-- Rows. session_user is the role that logged in: SET ROLE does not change it.
ALTER TABLE claude_messages ENABLE ROW LEVEL SECURITY;
ALTER TABLE claude_state ENABLE ROW LEVEL SECURITY;
ALTER TABLE claude_observations ENABLE ROW LEVEL SECURITY;

DROP POLICY IF EXISTS read_all ON claude_messages;
CREATE POLICY read_all ON claude_messages FOR SELECT USING (true);
DROP POLICY IF EXISTS send_as_oneself ON claude_messages;
CREATE POLICY send_as_oneself ON claude_messages FOR INSERT WITH CHECK (
    from_agent = session_user AND status = 'pending');
DROP POLICY IF EXISTS own_mail_and_own_escalations ON claude_messages;
CREATE POLICY own_mail_and_own_escalations ON claude_messages FOR UPDATE USING (
    to_agent = session_user OR (msg_type = 'escalation' AND from_agent = session_user));

DROP POLICY IF EXISTS read_all ON claude_state;
CREATE POLICY read_all ON claude_state FOR SELECT USING (true);
DROP POLICY IF EXISTS own_row_insert ON claude_state;
CREATE POLICY own_row_insert ON claude_state FOR INSERT WITH CHECK (agent_id = session_user);
DROP POLICY IF EXISTS own_row_update ON claude_state;
CREATE POLICY own_row_update ON claude_state FOR UPDATE USING (agent_id = session_user);

DROP POLICY IF EXISTS read_all ON claude_observations;
CREATE POLICY read_all ON claude_observations FOR SELECT USING (true);
DROP POLICY IF EXISTS observe_as_oneself ON claude_observations;
CREATE POLICY observe_as_oneself ON claude_observations
    FOR INSERT WITH CHECK (agent_id = session_user);

-- A trigger says what a policy cannot, since it sees either the old row or the new one: which change it is.
-- Unknown (NULL) counts as forbidden, hence IS NOT TRUE.
CREATE OR REPLACE FUNCTION guard_claude_message() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
    asker boolean := OLD.msg_type = 'escalation' AND OLD.from_agent = session_user;
    executor boolean := OLD.msg_type = 'task' AND OLD.to_agent = session_user;
    notes text[] := CASE WHEN asker THEN '{decision,used_by}' ELSE '{claim,escalation}' END;
    said jsonb := CASE WHEN jsonb_typeof(OLD.data) = 'object' THEN OLD.data - notes
                       WHEN OLD.data IS NULL THEN '{}'
                       ELSE jsonb_build_object('data', OLD.data) END;
BEGIN
    IF OLD.msg_type = 'escalation' AND NEW.status IS DISTINCT FROM OLD.status AND (
        (asker AND NEW.status IN ('processed', 'expired'))
        OR (OLD.status = 'pending' AND NEW.status IN ('approved', 'denied')
            AND OLD.to_agent = session_user
            AND pg_has_role(session_user, 'claude_approvers', 'MEMBER'))
    ) IS NOT TRUE THEN
        RAISE insufficient_privilege USING MESSAGE = format(
            'escalation %s: %s may not change its status from "%s" to "%s"',
            OLD.id, session_user, OLD.status, NEW.status);
    END IF;
    IF NEW.data IS DISTINCT FROM OLD.data AND (
        (asker OR executor) AND jsonb_typeof(NEW.data) = 'object' AND NEW.data - notes = said
    ) IS NOT TRUE THEN
        RAISE insufficient_privilege USING MESSAGE = format(
            'message %s: %s may not change this in its data', OLD.id, session_user);
    END IF;
    RETURN NEW;
END
$$;

DROP TRIGGER IF EXISTS guard_claude_message ON claude_messages;
CREATE TRIGGER guard_claude_message BEFORE UPDATE ON claude_messages FOR EACH ROW
    WHEN (row_security_active('claude_messages'::regclass))
    EXECUTE FUNCTION guard_claude_message();

CREATE OR REPLACE FUNCTION add_claude_agent(agent text, approver boolean DEFAULT false)
    RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    known pg_roles;
BEGIN
    IF agent !~ '^[A-Za-z0-9_-]{1,50}$' OR agent = 'all' THEN
        RAISE '"%" is not an agent; expected 1-50 letters, digits, "_" or "-"', agent;
    END IF;
    SELECT * INTO known FROM pg_roles WHERE rolname = agent;
    IF known.rolsuper OR known.rolbypassrls OR known.rolcreaterole OR EXISTS (
        SELECT FROM pg_class WHERE oid = 'claude_messages'::regclass
           AND pg_has_role(known.oid, relowner, 'MEMBER')
    ) THEN
        RAISE 'role "%" stands above row-level security; give the agent a role of its own', agent;
    END IF;
    EXECUTE format(CASE WHEN known.oid IS NULL THEN 'CREATE ROLE %I LOGIN'
                        ELSE 'ALTER ROLE %I LOGIN INHERIT' END, agent);
    EXECUTE format(
        'REVOKE ALL ON claude_messages, claude_state, claude_observations FROM %I', agent);
    EXECUTE format('GRANT claude_agents TO %I', agent);
    IF approver THEN
        EXECUTE format('GRANT claude_approvers TO %I', agent);
    ELSIF pg_has_role(agent, 'claude_approvers', 'MEMBER') THEN
        EXECUTE format('REVOKE claude_approvers FROM %I', agent);
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION remove_claude_roles() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    item record;
BEGIN
    DROP TRIGGER guard_claude_message ON claude_messages;
    FOR item IN SELECT policyname, tablename FROM pg_policies
                 WHERE schemaname = current_schema()
                   AND tablename IN ('claude_messages', 'claude_state', 'claude_observations') LOOP
        EXECUTE format('DROP POLICY %I ON %I', item.policyname, item.tablename);
    END LOOP;
    ALTER TABLE claude_messages DISABLE ROW LEVEL SECURITY;
    ALTER TABLE claude_state DISABLE ROW LEVEL SECURITY;
    ALTER TABLE claude_observations DISABLE ROW LEVEL SECURITY;
    REVOKE ALL ON claude_messages, claude_state, claude_observations FROM claude_agents;
    EXECUTE format('REVOKE ALL ON ALL SEQUENCES IN SCHEMA %I FROM claude_agents',
                   current_schema());
    EXECUTE format('REVOKE ALL ON SCHEMA %I FROM claude_agents', current_schema());
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM claude_agents', current_database());
    FOR item IN SELECT member::regrole AS role FROM pg_auth_members
                 WHERE roleid = 'claude_agents'::regrole
                   AND NOT (SELECT rolcreaterole OR rolsuper FROM pg_roles WHERE oid = member)
                 UNION ALL VALUES ('claude_approvers'::regrole), ('claude_agents'::regrole) LOOP
        BEGIN
            EXECUTE format('DROP ROLE %s', item.role);
        EXCEPTION WHEN dependent_objects_still_exist THEN
            RAISE NOTICE 'role % stays: it owns something, or has rights elsewhere', item.role;
        END;
    END LOOP;
    DROP FUNCTION guard_claude_message(), add_claude_agent(text, boolean), remove_claude_roles();
END
$$;

REVOKE EXECUTE ON FUNCTION add_claude_agent(text, boolean), remove_claude_roles() FROM PUBLIC;

SELECT add_claude_agent(agent)
  FROM unnest('{big_bro,public_claude,intl_claude,dev_claude,craig_desktop}'::text[]) AS agent;
SELECT add_claude_agent('craig_mobile', approver => true);

COMMIT;
