-- Optional: who an agent is. One login role per agent, and row-level security on the three tables.
--
-- Without it from_agent is a claim that anybody with the database's password can make. With it:
--   * everybody reads everything, as before;
--   * one sends only as oneself, a new message is 'pending', and its date is the database's;
--   * one changes only the status and times of mail addressed to oneself;
--   * a sender may take a task back, pending or escalated -> cancelled, and nothing else;
--   * the executor of a task notes its claim in the task's data, its decision in the escalation's;
--   * only an approver turns an escalation addressed to it from 'pending' to 'approved' or
--     'denied', once; the agent that asked may only close it;
--   * an agent writes its own row of claude_state, and observations as itself;
--   * nobody changes what a message says, nobody deletes, and nobody locks what another writes.
-- The tables' owner and superusers stay free of all this, so the old shared login goes on working
-- until each program has its own: take it away from the agents, or nothing is gained. An agent is
-- paused (claude_state.current_mode) with the owner's login.
--
-- Run it as the tables' owner, who needs CREATEROLE: psql "$OWNER_URL" -f roles.sql
-- It may be run again. Whatever else the agents could do to these tables is taken away, however
-- they came by it, and from every other login all but reading: see claude_rights_faults(). What
-- only somebody else can take away stops it, with one line that says who must do what; nothing is
-- changed then. docs/security.md says the rest.
--
-- The roles have no password, and so cannot log in over the network until each has one:
--   \password public_claude
-- A further agent, and a further approver:
--   SELECT add_claude_agent('new_claude');
--   SELECT add_claude_agent('new_mobile', approver => true);
-- The way back: policies, rights and roles go, the tables and their rows stay.
--   SELECT remove_claude_roles();

BEGIN;

-- Everything below is made beside the tables, and finds these and no others. An agent's function
-- there, or operator, could fit better than the server's own and run as whoever runs this: until
-- it is known that there is none, names are the server's.
DO $$
DECLARE
    searched name[] := pg_catalog.current_schemas(false);
    path text := pg_catalog.current_setting('search_path');
    homes name[];
    planted text;
BEGIN
    SET LOCAL search_path = pg_catalog, pg_temp;
    homes := ARRAY(SELECT nspname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
                    WHERE relname = 'claude_messages' AND nspname = ANY (searched));
    IF cardinality(homes) <> 1 THEN
        RAISE 'claude_messages stands in % of the schemas searched (%): SET search_path to its own',
              cardinality(homes), path;
    END IF;
    SELECT string_agg(DISTINCT format('%s owns %s %s: give it to a role that no agent can become',
                                      owner.oid::regrole, upper(identity.type), identity.identity),
                      '; ')
      INTO planted
      FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
      JOIN pg_depend ON refclassid = 'pg_namespace'::regclass AND refobjid = relnamespace
      JOIN pg_shdepend AS shared
        ON shared.classid = pg_depend.classid AND shared.objid = pg_depend.objid
       AND dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
       AND shared.refclassid = 'pg_authid'::regclass AND shared.deptype = 'o'
      JOIN pg_roles AS owner ON owner.oid = shared.refobjid
     CROSS JOIN pg_identify_object(shared.classid, shared.objid, 0) AS identity
     WHERE relname = 'claude_messages' AND nspname = homes[1]
       AND shared.classid <> 'pg_class'::regclass AND owner.oid <> relowner AND NOT owner.rolsuper
       AND EXISTS (SELECT FROM pg_roles AS agent
                    WHERE NOT agent.rolsuper AND pg_has_role(agent.oid, owner.oid, 'MEMBER')
                      AND (rolname IN ('big_bro', 'public_claude', 'intl_claude', 'dev_claude',
                                       'craig_desktop', 'craig_mobile')
                           OR pg_has_role(agent.oid, to_regrole('claude_agents'), 'MEMBER')));
    IF planted IS NOT NULL THEN
        RAISE '%', planted;
    END IF;
    PERFORM set_config('claude.schema', quote_ident(homes[1]), true);
    PERFORM set_config('search_path', format('%I, pg_temp', homes[1]), true);
END
$$;

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
END
$$;

-- Rights on columns: with one on the whole table goes that to LOCK it. A message's id and dates are
-- the database's to give.
REVOKE ALL ON claude_messages, claude_state, claude_observations FROM claude_agents CASCADE;
GRANT SELECT ON claude_messages, claude_state, claude_observations TO claude_agents;

DO $$
DECLARE
    item record;
BEGIN
    FOR item IN
        SELECT attrelid::regclass AS target,
               string_agg(quote_ident(attname), ', ') FILTER (WHERE attname NOT IN
                   ('id', 'message_uuid', 'created_at', 'read_at', 'processed_at')) AS given,
               string_agg(quote_ident(attname), ', ') FILTER (WHERE CASE attrelid
                   WHEN 'claude_messages'::regclass
                   THEN attname IN ('status', 'read_at', 'processed_at', 'data')
                   WHEN 'claude_state'::regclass
                   THEN attname <> 'agent_id' END) AS changed
          FROM pg_attribute
         WHERE attnum > 0 AND NOT attisdropped
           AND attrelid IN ('claude_messages'::regclass, 'claude_state'::regclass,
                            'claude_observations'::regclass)
         GROUP BY attrelid
    LOOP
        EXECUTE format('GRANT INSERT (%s) ON %s TO claude_agents', item.given, item.target);
        IF item.changed IS NOT NULL THEN
            EXECUTE format('GRANT UPDATE (%s) ON %s TO claude_agents', item.changed, item.target);
        END IF;
    END LOOP;
    -- To take the next number. Whoever may insert may burn numbers: --check counts what is left.
    FOR item IN
        SELECT DISTINCT refobjid::regclass AS sequence
          FROM pg_attrdef JOIN pg_depend ON objid = pg_attrdef.oid
          JOIN pg_class ON pg_class.oid = refobjid AND relkind = 'S'
         WHERE classid = 'pg_attrdef'::regclass AND refclassid = 'pg_class'::regclass
           AND adrelid IN ('claude_messages'::regclass, 'claude_observations'::regclass)
    LOOP
        EXECUTE format('GRANT USAGE ON SEQUENCE %s TO claude_agents', item.sequence);
    END LOOP;
END
$$;

-- Rows. session_user is the role that logged in: SET ROLE does not change it. The operators are the
-- server's own, by name: another that fits better would be bound for good.
ALTER TABLE claude_messages ENABLE ROW LEVEL SECURITY;
ALTER TABLE claude_state ENABLE ROW LEVEL SECURITY;
ALTER TABLE claude_observations ENABLE ROW LEVEL SECURITY;

DROP POLICY IF EXISTS read_all ON claude_messages;
CREATE POLICY read_all ON claude_messages FOR SELECT USING (true);
DROP POLICY IF EXISTS send_as_oneself ON claude_messages;
CREATE POLICY send_as_oneself ON claude_messages FOR INSERT WITH CHECK (
    from_agent OPERATOR(pg_catalog.=) session_user AND status OPERATOR(pg_catalog.=) 'pending');
DROP POLICY IF EXISTS own_mail_and_own_escalations ON claude_messages;
CREATE POLICY own_mail_and_own_escalations ON claude_messages FOR UPDATE USING (
    to_agent OPERATOR(pg_catalog.=) session_user
    OR (msg_type OPERATOR(pg_catalog.=) 'escalation'
        AND from_agent OPERATOR(pg_catalog.=) session_user));
DROP POLICY IF EXISTS take_back_own_task ON claude_messages;
CREATE POLICY take_back_own_task ON claude_messages FOR UPDATE USING (
    from_agent OPERATOR(pg_catalog.=) session_user AND msg_type OPERATOR(pg_catalog.=) 'task'
    AND (status OPERATOR(pg_catalog.=) 'pending' OR status OPERATOR(pg_catalog.=) 'escalated')
) WITH CHECK (
    from_agent OPERATOR(pg_catalog.=) session_user AND msg_type OPERATOR(pg_catalog.=) 'task'
    AND status OPERATOR(pg_catalog.=) 'cancelled');

DROP POLICY IF EXISTS read_all ON claude_state;
CREATE POLICY read_all ON claude_state FOR SELECT USING (true);
DROP POLICY IF EXISTS own_row_insert ON claude_state;
CREATE POLICY own_row_insert ON claude_state FOR INSERT WITH CHECK (
    agent_id OPERATOR(pg_catalog.=) session_user);
DROP POLICY IF EXISTS own_row_update ON claude_state;
CREATE POLICY own_row_update ON claude_state FOR UPDATE USING (
    agent_id OPERATOR(pg_catalog.=) session_user);

DROP POLICY IF EXISTS read_all ON claude_observations;
CREATE POLICY read_all ON claude_observations FOR SELECT USING (true);
DROP POLICY IF EXISTS observe_as_oneself ON claude_observations;
CREATE POLICY observe_as_oneself ON claude_observations
    FOR INSERT WITH CHECK (agent_id OPERATOR(pg_catalog.=) session_user);

-- A trigger says what a policy cannot, since it sees either the old row or the new one: which change it is.
-- Unknown (NULL) counts as forbidden, hence IS NOT TRUE.
CREATE OR REPLACE FUNCTION guard_claude_message() RETURNS trigger
    -- Unnamed, pg_temp would come first, and with it a type called jsonb.
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
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
    IF NOT asker AND OLD.to_agent <> session_user
       AND (NEW.read_at, NEW.processed_at) IS DISTINCT FROM (OLD.read_at, OLD.processed_at) THEN
        RAISE insufficient_privilege USING MESSAGE = format(
            'task %s: %s may take it back, and change nothing else', OLD.id, session_user);
    END IF;
    RETURN NEW;
END
$$;

DROP TRIGGER IF EXISTS guard_claude_message ON claude_messages;
CREATE TRIGGER guard_claude_message BEFORE UPDATE ON claude_messages FOR EACH ROW
    WHEN (row_security_active('claude_messages'::regclass))
    EXECUTE FUNCTION guard_claude_message();
-- Also where a session may call itself a replica.
ALTER TABLE claude_messages ENABLE ALWAYS TRIGGER guard_claude_message;

-- The rights in effect: what lets anybody do more than is meant, each with the statement that ends
-- it where one does without harm. The heartbeat reads this text here and sends it itself, so that
-- nobody can give it another function in its place. For the same reason its names are the server's
-- alone; where the tables are, claude.schema says.
DROP FUNCTION IF EXISTS claude_rights_faults();
CREATE FUNCTION claude_rights_faults(
    OUT login text, OUT claimed boolean, OUT enforced boolean,
    OUT faults text[], OUT remedies text[], OUT seal text
) LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET quote_all_identifiers = off
AS $rights$
WITH RECURSIVE home AS (
    SELECT oid, relname, relkind, relnamespace, relowner, relrowsecurity
      FROM pg_class
     WHERE oid IN (to_regclass(current_setting('claude.schema') || '.claude_messages'),
                   to_regclass(current_setting('claude.schema') || '.claude_state'),
                   to_regclass(current_setting('claude.schema') || '.claude_observations'))
), above AS (
    -- Whom row-level security does not hold.
    SELECT oid FROM pg_roles WHERE rolsuper OR oid IN (SELECT relowner FROM home)
), team AS (
    SELECT oid, rolname FROM pg_roles WHERE rolname IN ('claude_agents', 'claude_approvers')
), joined (role, through_agent) AS (
    -- Members of members too. Who made a role is its member as well, as an administrator who need
    -- not have its rights; so may the tables' owner be.
    SELECT oid, false FROM team
     UNION
    SELECT member, through_agent OR passed.rolcanlogin
      FROM joined
      JOIN pg_roles AS passed ON passed.oid = role
      JOIN pg_auth_members AS membership ON roleid = role
     WHERE grantor <> member
       AND 'true' IN (COALESCE(to_jsonb(membership) ->> 'set_option', 'true'),
                      to_jsonb(membership) ->> 'inherit_option')
       AND CASE WHEN role IN (SELECT oid FROM team)
                THEN NOT (admin_option AND member IN (SELECT relowner FROM home))
                ELSE member NOT IN (SELECT oid FROM above) END
), agent AS (
    -- Who is one only by becoming another has that fault, and else keeps what it is.
    SELECT role.*, oid IN (SELECT role FROM joined WHERE NOT through_agent) AS in_its_own_name
      FROM pg_roles AS role
     WHERE rolcanlogin AND oid IN (SELECT role FROM joined)
), writer AS (
    -- Who may have rights on columns, and take numbers; everybody else reads.
    SELECT oid FROM agent UNION SELECT oid FROM team
), reach AS (
    -- Every role that an agent can become, with the first step on the way there.
    SELECT oid AS subject, NULL::oid AS step, oid AS role FROM writer
     UNION
    SELECT subject, COALESCE(step, roleid), roleid
      FROM reach JOIN pg_auth_members ON member = role
     WHERE roleid NOT IN (SELECT oid FROM team)
), search AS (
    -- The schemas that the agents, and the owner, search for a name, in their order.
    SELECT searcher.oid AS searcher, namespace.oid AS namespace, place
      FROM (SELECT oid, rolname FROM agent
             UNION SELECT oid, rolname FROM pg_roles WHERE oid IN (SELECT relowner FROM home)
           ) AS searcher
     CROSS JOIN LATERAL unnest(string_to_array(COALESCE((
           SELECT substr(setting, 13)
             FROM pg_db_role_setting CROSS JOIN unnest(setconfig) AS setting
            WHERE starts_with(setting, 'search_path=') AND setrole IN (0, searcher.oid)
              AND setdatabase IN (0, (SELECT oid FROM pg_database
                                       WHERE datname = current_database()))
            ORDER BY setrole <> 0 DESC, setdatabase <> 0 DESC LIMIT 1
           ), '"$user", public'), ',')) WITH ORDINALITY AS path (name, place)
      JOIN pg_namespace AS namespace
        ON nspname = replace(btrim(path.name, ' "'), '$user', searcher.rolname)
), shown AS (
    -- The tables, and what writes to them with other rights than theirs: views, rules, parents,
    -- children, and what takes their rows along.
    SELECT oid FROM home
     UNION
    SELECT way.oid
      FROM shown CROSS JOIN LATERAL (
           SELECT ev_class AS oid FROM pg_depend JOIN pg_rewrite ON pg_rewrite.oid = objid
            WHERE refclassid = 'pg_class'::regclass AND refobjid = shown.oid
              AND classid = 'pg_rewrite'::regclass
            UNION ALL
           SELECT inhparent FROM pg_inherits WHERE inhrelid = shown.oid
            UNION ALL
           SELECT inhrelid FROM pg_inherits WHERE inhparent = shown.oid
            UNION ALL
           SELECT confrelid FROM pg_constraint
            WHERE contype = 'f' AND conrelid = shown.oid
              AND (confdeltype IN ('c', 'n', 'd') OR confupdtype IN ('c', 'n', 'd'))
           ) AS way
), place AS (
    -- Where names are looked up, and who alone looks there.
    SELECT namespace, CASE WHEN count(DISTINCT searcher) = 1 THEN min(searcher) END AS free
      FROM (SELECT searcher, namespace FROM search
             UNION SELECT relowner, relnamespace FROM home) AS looked_at
     GROUP BY namespace
), used (class, oid, part) AS (
    -- What the tables consist of (columns, constraints, indexes, rules, policies, triggers, defaults)
    -- and what that needs: functions, operators, types, sequences, extensions, of any schema.
    SELECT 'pg_class'::regclass::oid, oid, true FROM home
     UNION
    SELECT way.class, way.oid, way.part
      FROM used CROSS JOIN LATERAL (
           SELECT classid AS class, objid AS oid, true AS part FROM pg_depend
            WHERE refclassid = used.class AND refobjid = used.oid AND deptype IN ('a', 'i')
              AND (used.part AND used.class = 'pg_class'::regclass
                   OR used.class = 'pg_type'::regclass)
            UNION ALL
           SELECT refclassid, refobjid, false FROM pg_depend
            WHERE classid = used.class AND objid = used.oid
           ) AS way
), owned AS (
    SELECT classid AS class, objid AS oid, refobjid AS owner
      FROM pg_shdepend
     WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
       AND refclassid = 'pg_authid'::regclass AND deptype = 'o'
       AND refobjid IN (SELECT role FROM reach)
), object AS (
    SELECT 'DATABASE' AS kind, quote_ident(datname) AS name, datdba AS owner,
           COALESCE(datacl, acldefault('d', datdba)) AS acl, '{CONNECT}'::text[] AS allowed,
           NULL::oid AS free
      FROM pg_database WHERE datname = current_database()
     UNION ALL
    SELECT 'TABLE', oid::regclass::text, relowner, relacl, '{SELECT}', NULL
      FROM pg_class WHERE oid IN (SELECT oid FROM shown)
     UNION ALL
    SELECT 'SEQUENCE', oid::regclass::text, relowner, relacl, '{SELECT}', NULL
      FROM pg_class
     WHERE relkind = 'S' AND oid IN (SELECT oid FROM used WHERE class = 'pg_class'::regclass)
     UNION ALL
    -- What runs with the rights of whoever may write, for whoever calls it.
    SELECT CASE prokind WHEN 'p' THEN 'PROCEDURE' ELSE 'FUNCTION' END, oid::regprocedure::text,
           proowner, COALESCE(proacl, acldefault('f', proowner)), '{}', proowner
      FROM pg_proc
     WHERE prosecdef AND proowner NOT IN (SELECT role FROM reach)
       AND EXISTS (SELECT FROM home
                    WHERE has_any_column_privilege(proowner, home.oid, 'INSERT, UPDATE'))
       AND EXISTS (SELECT FROM reach WHERE has_schema_privilege(role, pronamespace, 'USAGE'))
       AND NOT EXISTS (SELECT FROM pg_depend
                        WHERE classid = 'pg_proc'::regclass AND objid = pg_proc.oid
                          AND deptype = 'e')
     UNION ALL
    -- A function, an operator, a type that fits better than the server's own is taken in its place.
    SELECT DISTINCT upper(identity.type), identity.identity, owner, NULL::aclitem[], NULL::text[],
           CASE WHEN NOT EXISTS (SELECT FROM used
                                  WHERE used.class = owned.class AND used.oid = owned.oid)
                THEN place.free END
      FROM owned
      LEFT JOIN pg_depend ON classid = owned.class AND objid = owned.oid
                         AND refclassid = 'pg_namespace'::regclass
      LEFT JOIN place ON namespace = refobjid
     CROSS JOIN pg_identify_object(owned.class, owned.oid, 0) AS identity
     WHERE (namespace IS NOT NULL
            OR EXISTS (SELECT FROM used WHERE used.class = owned.class AND used.oid = owned.oid))
       AND NOT (owned.class = 'pg_class'::regclass
                AND (owned.oid IN (SELECT oid FROM shown)
                     OR identity.type = 'sequence' AND owned.oid IN (SELECT oid FROM used)))
     UNION ALL
    -- Where others look nobody may create: neither a table nor an operator that fits better.
    SELECT 'SCHEMA', quote_ident(nspname), nspowner, nspacl, '{USAGE}', free
      FROM pg_namespace JOIN place ON namespace = pg_namespace.oid
), held AS (
    SELECT kind || ' ' || name AS object, owner, grantee, grantor, privilege_type AS right_held
      FROM object CROSS JOIN aclexplode(acl)
     WHERE privilege_type <> ALL (allowed) AND grantee IS DISTINCT FROM free
       AND NOT (privilege_type = 'USAGE' AND grantee IN (SELECT oid FROM writer))
       -- Temporary tables, and a function that was given to it, are the affair of who is no agent.
       AND NOT (privilege_type IN ('TEMPORARY', 'EXECUTE')
                AND grantee <> 0 AND grantee NOT IN (SELECT role FROM reach))
     UNION ALL
    SELECT 'TABLE ' || attrelid::regclass, relowner, grantee, grantor,
           format('%s (%I)', privilege_type, attname)
      FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid CROSS JOIN aclexplode(attacl)
     WHERE attrelid IN (SELECT oid FROM shown)
       AND CASE privilege_type
           WHEN 'SELECT' THEN false
           WHEN 'INSERT' THEN grantee NOT IN (SELECT oid FROM writer)
                OR attrelid NOT IN (SELECT oid FROM home) OR attname IN
                ('id', 'message_uuid', 'created_at', 'read_at', 'processed_at')
           WHEN 'UPDATE' THEN grantee NOT IN (SELECT oid FROM writer) OR NOT CASE attrelid
                WHEN to_regclass(current_setting('claude.schema') || '.claude_messages')
                THEN attname IN ('status', 'read_at', 'processed_at', 'data')
                WHEN to_regclass(current_setting('claude.schema') || '.claude_state')
                THEN attname <> 'agent_id' ELSE false END
           ELSE true END
), policy AS (
    SELECT *, polname IN ('read_all', 'send_as_oneself', 'own_mail_and_own_escalations',
                          'take_back_own_task', 'own_row_insert', 'own_row_update',
                          'observe_as_oneself') AS ours
      FROM pg_policy WHERE polrelid IN (SELECT oid FROM home) AND polpermissive
), made AS (
    -- What the policies and the guard say, after the edition of this file that says it: a test
    -- holds that to be the md5 of their text above.
    SELECT concat_ws(' ', 'ee86dba3cd20f1246b80381e569b4c35',
                     md5(pg_get_functiondef(tgfoid) || pg_get_triggerdef(pg_trigger.oid)),
                     (SELECT md5(string_agg(concat_ws(' ', polrelid::regclass, polname, polcmd,
                                 polroles, pg_get_expr(polqual, polrelid), 'CHECK',
                                 pg_get_expr(polwithcheck, polrelid)), '; '
                                 ORDER BY polrelid::regclass::text COLLATE "C", polname))
                        FROM policy WHERE ours)) AS seal,
           obj_description(pg_trigger.oid, 'pg_trigger') AS noted
      FROM pg_trigger
     WHERE tgrelid = to_regclass(current_setting('claude.schema') || '.claude_messages')
       AND tgname = 'guard_claude_message'
), fault (fault, remedy) AS (
    SELECT format('%s has %s on %s', COALESCE(NULLIF(grantee, 0)::regrole::text, 'PUBLIC'),
                  right_held, object),
           format(CASE WHEN grantor = owner THEN 'REVOKE %s ON %s FROM %s CASCADE'
                       ELSE 'REVOKE GRANT OPTION FOR %s ON %s FROM %s CASCADE' END,
                  right_held, object,
                  CASE WHEN grantor <> owner THEN grantor::regrole::text
                       ELSE COALESCE(NULLIF(grantee, 0)::regrole::text, 'PUBLIC') END)
      FROM held
     WHERE grantee <> owner AND grantee NOT IN (SELECT oid FROM above)
     UNION
    SELECT format('%s owns %s %s: give it to a role that no agent can become',
                  subject::regrole, kind, name), NULL
      FROM object JOIN reach ON role = owner AND step IS NULL
     WHERE owner IS DISTINCT FROM free
     UNION
    -- Of logins that are no agents: what the tables call, and what fits better than the server's.
    SELECT format('%s owns %s %s: give it to the owner of the tables',
                  refobjid::regrole, upper(identity.type), identity.identity), NULL
      FROM pg_shdepend CROSS JOIN pg_identify_object(classid, objid, 0) AS identity
     WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
       AND refclassid = 'pg_authid'::regclass AND deptype = 'o'
       AND refobjid NOT IN (SELECT oid FROM above UNION SELECT role FROM reach)
       AND ((classid, objid) IN (
               SELECT class, oid FROM used
                WHERE class NOT IN ('pg_namespace'::regclass, 'pg_extension'::regclass)
                  AND (class <> 'pg_class'::regclass
                       OR oid IN (SELECT oid FROM pg_class WHERE relkind = 'S')))
            OR EXISTS (SELECT FROM pg_operator JOIN place ON namespace = oprnamespace
                        WHERE classid = 'pg_operator'::regclass AND pg_operator.oid = objid)
            OR EXISTS (SELECT FROM pg_proc AS other JOIN place ON namespace = pronamespace
                         JOIN pg_proc AS server ON server.proname = other.proname
                        WHERE classid = 'pg_proc'::regclass AND other.oid = objid
                          AND server.pronamespace = 'pg_catalog'::regnamespace))
     UNION
    -- A trigger runs as whoever writes, and so could approve as the approver.
    SELECT format('trigger %I on %s calls %s, which %s owns', tgname, tgrelid::regclass,
                  tgfoid::regprocedure, proowner::regrole),
           format('DROP TRIGGER %I ON %s', tgname, tgrelid::regclass)
      FROM pg_trigger JOIN pg_proc ON pg_proc.oid = tgfoid
     WHERE NOT tgisinternal AND tgparentid = 0 AND proowner NOT IN (SELECT oid FROM above)
       AND tgrelid IN (SELECT oid FROM home UNION
                       SELECT inhrelid FROM pg_inherits JOIN home ON home.oid = inhparent)
     UNION
    SELECT format('%s can become %s', subject::regrole, role::regrole),
           format('REVOKE %s FROM %s%s CASCADE', step::regrole, subject::regrole,
                  ' GRANTED BY ' || quote_ident(maker.rolname))
      FROM reach
      JOIN pg_roles AS become ON become.oid = role
      JOIN pg_auth_members AS membership ON member = subject AND roleid = step
      LEFT JOIN pg_roles AS maker ON maker.oid = membership.grantor
     WHERE step IS NOT NULL
       AND (become.rolsuper OR become.rolbypassrls OR become.rolcreaterole OR become.rolreplication
            OR role IN (SELECT oid FROM agent) OR role IN (SELECT owner FROM object)
            OR starts_with(become.rolname, 'pg_') AND become.rolname NOT IN (
                   'pg_read_all_data', 'pg_read_all_settings', 'pg_read_all_stats',
                   'pg_stat_scan_tables', 'pg_monitor'))
     UNION
    SELECT format('%s may make others members of %s', member::regrole, roleid::regrole),
           format('REVOKE ADMIN OPTION FOR %s FROM %s%s CASCADE', roleid::regrole, member::regrole,
                  ' GRANTED BY ' || quote_ident(maker.rolname))
      FROM pg_auth_members JOIN pg_roles AS appointing ON appointing.oid = member
      LEFT JOIN pg_roles AS maker ON maker.oid = grantor
     WHERE admin_option AND roleid IN (SELECT oid FROM writer)
       AND (member IN (SELECT oid FROM agent)
            OR NOT appointing.rolcreaterole AND member NOT IN (SELECT oid FROM above))
     UNION
    -- Of a login that is no agent this may be meant, elsewhere: a person decides.
    SELECT format('%s can become %s: REVOKE %s FROM %s', member::regrole, roleid::regrole,
                  roleid::regrole, member::regrole), NULL
      FROM pg_auth_members
     WHERE roleid IN (to_regrole('pg_write_all_data'), to_regrole('pg_maintain'))
       AND EXISTS (SELECT FROM pg_roles AS other
                    WHERE rolcanlogin AND NOT rolcreaterole AND pg_has_role(oid, member, 'MEMBER')
                      AND oid NOT IN (SELECT oid FROM above UNION SELECT oid FROM agent))
     UNION
    SELECT format('%s has %s', agent.oid::regrole, attribute),
           CASE WHEN attribute <> 'SUPERUSER'
                THEN format('ALTER ROLE %s NO%s', agent.oid::regrole, attribute) END
      FROM agent
      JOIN LATERAL unnest(ARRAY['SUPERUSER', 'BYPASSRLS', 'CREATEROLE', 'REPLICATION'],
                          ARRAY[rolsuper, rolbypassrls, rolcreaterole, rolreplication])
           AS attributes (attribute, has) ON has
     WHERE in_its_own_name
     UNION
    SELECT format('%s may have more than 10 connections', oid::regrole),
           format('ALTER ROLE %s CONNECTION LIMIT 10', oid::regrole)
      FROM agent WHERE in_its_own_name AND rolconnlimit NOT BETWEEN 0 AND 10
     UNION
    SELECT format('%s finds another %s first, in schema %s',
                  searcher::regrole, home.relname, search.namespace::regnamespace),
           format('ALTER ROLE %s IN DATABASE %I SET search_path = %s',
                  searcher::regrole, current_database(), home.relnamespace::regnamespace)
      FROM home
      JOIN pg_class AS other ON other.relname = home.relname
      JOIN search ON search.namespace = other.relnamespace
     WHERE other.oid <> home.oid AND searcher IN (SELECT oid FROM agent)
       AND has_schema_privilege(searcher, search.namespace, 'USAGE')
       AND NOT EXISTS (SELECT FROM search AS before
                        WHERE before.searcher = search.searcher AND before.place < search.place
                          AND before.namespace = home.relnamespace)
     UNION
    SELECT format('row-level security is off on %s', oid::regclass),
           format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', oid::regclass)
      FROM home WHERE NOT relrowsecurity
     UNION
    SELECT format('policy %I on %s allows more', polname, polrelid::regclass),
           format('DROP POLICY %I ON %s', polname, polrelid::regclass)
      FROM policy WHERE NOT ours
     UNION
    SELECT 'the policies or the guard are not as this roles.sql makes them', NULL
      FROM made WHERE noted IS DISTINCT FROM seal
     UNION
    SELECT 'the trigger guard_claude_message on claude_messages is missing or off', NULL
     WHERE NOT EXISTS (SELECT FROM pg_trigger
                        WHERE tgrelid = to_regclass(
                                  current_setting('claude.schema') || '.claude_messages')
                          AND tgname = 'guard_claude_message' AND tgenabled = 'A')
     UNION
    SELECT format('%s is not a table in the schema of claude_messages', oid::regclass), NULL
      FROM home
     WHERE relkind NOT IN ('r', 'p')
        OR relnamespace NOT IN (SELECT relnamespace FROM home WHERE relname = 'claude_messages')
), claim AS (
    SELECT EXISTS (SELECT FROM pg_policy WHERE polrelid IN (SELECT oid FROM home)
                      AND polname IN ('send_as_oneself', 'own_row_update', 'observe_as_oneself'))
        OR EXISTS (SELECT FROM pg_trigger WHERE tgrelid IN (SELECT oid FROM home)
                      AND tgname = 'guard_claude_message') AS claimed
)
SELECT session_user::text, claimed,
       claimed AND (SELECT bool_and(row_security_active(oid)) FROM home),
       CASE WHEN claimed THEN ARRAY(SELECT fault FROM fault ORDER BY fault, remedy)
            ELSE '{}' END,
       CASE WHEN claimed THEN ARRAY(SELECT remedy FROM fault ORDER BY fault, remedy)
            ELSE '{}' END,
       (SELECT seal FROM made)
  FROM claim
$rights$;

-- Only the owner can change this note: what is changed without running this file differs from it.
DO $$
BEGIN
    EXECUTE pg_catalog.format('COMMENT ON TRIGGER guard_claude_message ON claude_messages IS %L',
                              (SELECT seal FROM claude_rights_faults()));
END
$$;

-- Take away what may be taken away, and stop where anything is left.
CREATE OR REPLACE FUNCTION take_claude_faults_away() RETURNS void
    LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    home text := pg_catalog.quote_ident(pg_catalog.current_schema());
    item record;
    rest text;
BEGIN
    PERFORM pg_catalog.set_config('claude.schema', home, true);
    SET LOCAL search_path = pg_catalog, pg_temp;
    FOR item IN EXECUTE format('SELECT remedy FROM %s.claude_rights_faults(), unnest(remedies)'
                               ' AS remedy WHERE remedy IS NOT NULL', home) LOOP
        BEGIN
            EXECUTE item.remedy;
        EXCEPTION WHEN insufficient_privilege OR undefined_object OR invalid_grant_operation THEN
            NULL;  -- it is still there below
        END;
    END LOOP;
    EXECUTE format('SELECT string_agg(fault || COALESCE('': its owner must '' || remedy, ''''), ''; '')'
                   ' FROM %s.claude_rights_faults(), unnest(faults, remedies)'
                   ' AS item (fault, remedy)', home) INTO rest;
    IF rest IS NOT NULL THEN
        RAISE '%', rest;
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION add_claude_agent(agent text, approver boolean DEFAULT false)
    RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    known pg_roles;
BEGIN
    IF agent !~ '^[A-Za-z0-9_-]{1,50}$' OR agent = 'all' THEN
        RAISE '"%" is not an agent; expected 1-50 letters, digits, "_" or "-"', agent;
    END IF;
    SELECT * INTO known FROM pg_roles WHERE rolname = agent;
    IF known.rolsuper OR agent IN (session_user, current_user) OR known.oid IN (
        SELECT relowner FROM pg_class WHERE oid = 'claude_messages'::regclass
    ) THEN
        RAISE 'role "%" stands above row-level security; give the agent a role of its own', agent;
    END IF;
    EXECUTE format(CASE WHEN known.oid IS NULL THEN 'CREATE ROLE %I LOGIN'
                        ELSE 'ALTER ROLE %I LOGIN INHERIT' END, agent);
    EXECUTE format('GRANT claude_agents TO %I', agent);
    IF approver THEN
        EXECUTE format('GRANT claude_approvers TO %I', agent);
    ELSIF pg_has_role(agent, 'claude_approvers', 'MEMBER') THEN
        EXECUTE format('REVOKE claude_approvers FROM %I', agent);
    END IF;
    PERFORM take_claude_faults_away();
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
    DROP FUNCTION guard_claude_message(), claude_rights_faults(), take_claude_faults_away(),
                  add_claude_agent(text, boolean), remove_claude_roles();
END
$$;

REVOKE EXECUTE ON FUNCTION take_claude_faults_away(), add_claude_agent(text, boolean),
                           remove_claude_roles() FROM PUBLIC;

SELECT add_claude_agent(agent)
  FROM unnest('{big_bro,public_claude,intl_claude,dev_claude,craig_desktop}'::text[]) AS agent;
SELECT add_claude_agent('craig_mobile', approver => true);

COMMIT;
