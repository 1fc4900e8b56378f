"""The SQL of a task's life, as messages.py sends it, named for the transition that each one makes.

A claim is put together from its parts: which task comes next, how it is taken, what is returned.
A report likewise: what ends (`done`), then ANSWER, which inserts the report on it. A report may
also bring the next claim with it.
"""

WAKE = """
-- The next cycle writes this row anew, so it need not wait for the disk.
SET LOCAL synchronous_commit = off;
-- A paused or retired agent stays so: only its times are written.
INSERT INTO claude_state AS state
    (agent_id, current_mode, last_wake_at, last_poll_at, updated_at)
VALUES (%(agent)s, 'awake', now(), now(), now())
ON CONFLICT (agent_id) DO UPDATE
   SET current_mode = CASE WHEN state.current_mode IN ('paused', 'retired')
                           THEN state.current_mode ELSE 'awake' END,
       last_wake_at = now(), last_poll_at = now(), updated_at = now()
RETURNING current_mode
"""

LOOK = """
-- What there is to do; a request that still waits for the approver is not.
SELECT EXISTS (SELECT FROM claude_messages
                WHERE msg_type = 'task' AND to_agent = %(agent)s AND status = 'pending'),
       EXISTS (SELECT FROM claude_messages
                WHERE msg_type = 'task' AND to_agent = %(agent)s AND status = 'processing'),
       EXISTS (SELECT FROM claude_messages AS task
                WHERE msg_type = 'task' AND to_agent = %(agent)s AND status = 'escalated'
                  AND NOT EXISTS (SELECT FROM claude_messages AS escalation
                                   WHERE escalation.reply_to_id = task.id
                                     AND escalation.from_agent = %(agent)s
                                     AND escalation.msg_type = 'escalation'
                                     AND task.data -> 'escalation' -> 'id'
                                         = to_jsonb(escalation.id)
                                     AND escalation.status = 'pending'
                                     AND escalation.expires_at > now())),
       EXISTS (SELECT FROM claude_messages
                WHERE msg_type = 'response' AND to_agent = %(agent)s
                  AND from_agent = %(approver)s AND status = 'pending'
                  AND (subject LIKE 'Approved: Permission #%%'
                    OR subject LIKE 'Denied: Permission #%%'))
"""

COLUMNS = """
SELECT name, attname
  FROM unnest(ARRAY['claude_messages', 'claude_state', 'claude_observations']) AS name
  JOIN pg_attribute ON attrelid = to_regclass(name) AND attnum > 0 AND NOT attisdropped
"""

COUNT_PENDING = """
SELECT count(*) FROM claude_messages
 WHERE msg_type = 'task' AND to_agent = %(agent)s AND status = 'pending'
"""

REST = """
SET LOCAL synchronous_commit = off;
UPDATE claude_state
   SET current_mode = CASE WHEN current_mode IN ('paused', 'retired')
                           THEN current_mode ELSE 'sleeping' END,
       status_message = %(summary)s,
       last_action_at = CASE WHEN %(acted)s THEN now() ELSE last_action_at END,
       error_count_today = CASE WHEN last_error_at < date_trunc('day', now()) THEN 0
                                ELSE COALESCE(error_count_today, 0) END
                           + CASE WHEN %(error)s::text IS NULL THEN 0 ELSE 1 END,
       last_error = COALESCE(%(error)s, last_error),
       last_error_at = CASE WHEN %(error)s::text IS NULL THEN last_error_at ELSE now() END,
       updated_at = now()
 WHERE agent_id = %(agent)s
"""

OBSERVE = """
INSERT INTO claude_observations (agent_id, observation_type, subject, content)
VALUES (%(agent)s, 'system', %(subject)s, %(content)s)
"""

LOCK = """
-- Held until this transaction's end, so the next statement sees every earlier claim.
SELECT pg_advisory_xact_lock(hashtextextended('claude_messages task of ' || %(agent)s, 0));
"""

NEXT_PENDING = """
-- pending -> processing, unless another task of this agent is at work or the agent was paused;
-- skips a row that somebody else holds.
next AS (
    SELECT id
      FROM claude_messages
     WHERE msg_type = 'task' AND to_agent = %(agent)s AND status = 'pending'
       AND NOT EXISTS (SELECT FROM claude_messages WHERE msg_type = 'task'
                          AND to_agent = %(agent)s AND status = 'processing'
                          AND id IS DISTINCT FROM %(finished)s)
       AND NOT EXISTS (SELECT FROM claude_state WHERE agent_id = %(agent)s
                          AND current_mode IN ('paused', 'retired'))
     ORDER BY CASE priority WHEN 'urgent' THEN 0 WHEN 'high' THEN 1 WHEN 'normal' THEN 2
                            WHEN 'low' THEN 3 ELSE 4 END, created_at, id
     LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
)
"""

NEXT_APPROVED = """
-- escalated -> processing, and approved -> processed: uses an approval, once and in time.
WITH next AS (
    SELECT task.id, escalation.id AS escalation_id,
           COALESCE(task.expires_at <= now(), false) AS too_late
      FROM claude_messages AS task, claude_messages AS escalation
     WHERE task.id = %(id)s AND task.status = 'escalated'
       AND escalation.id = %(escalation_id)s AND escalation.status = 'approved'
       AND escalation.expires_at > now()
       AND NOT EXISTS (SELECT FROM claude_messages WHERE msg_type = 'task'
                          AND to_agent = %(agent)s AND status = 'processing')
       AND NOT EXISTS (SELECT FROM claude_state WHERE agent_id = %(agent)s
                          AND current_mode IN ('paused', 'retired'))
       FOR NO KEY UPDATE OF task, escalation
), used AS (
    UPDATE claude_messages AS escalation
       SET status = 'processed', processed_at = now(),
           data = CASE jsonb_typeof(escalation.data) WHEN 'object' THEN escalation.data
                                                     ELSE '{}' END
                  || jsonb_build_object('decision', 'approved', 'used_by', %(new_token)s)
      FROM next WHERE escalation.id = next.escalation_id
)
"""

NEXT_OWN = """
-- processing -> processing: our own claim, whose answer was lost with the connection.
WITH next AS (
    SELECT task.id, escalation.id AS escalation_id,
           CASE WHEN task.expires_at IS NOT NULL THEN task.expires_at <= now()
                ELSE escalation.id IS NULL
                 AND (task.created_at IS NULL
                   OR task.created_at <= now() - make_interval(hours => %(expiry_hours)s))
           END AS too_late
      FROM claude_messages AS task
      LEFT JOIN claude_messages AS escalation
        ON escalation.reply_to_id = task.id AND escalation.from_agent = %(agent)s
       AND escalation.msg_type = 'escalation'
       AND escalation.data ->> 'used_by' = %(new_token)s
     WHERE task.msg_type = 'task' AND task.to_agent = %(agent)s AND task.status = 'processing'
       AND task.data -> 'claim' ->> 'token' = %(new_token)s
)
"""

NEXT_INTERRUPTED = """
-- processing -> processing: the claim of a task that was interrupted, unless it changed meanwhile.
WITH next AS (
    SELECT id, false AS too_late,
           (SELECT max(escalation.id) FROM claude_messages AS escalation
             WHERE escalation.reply_to_id = task.id AND escalation.from_agent = %(agent)s
               AND escalation.msg_type = 'escalation'
               AND escalation.data ->> 'decision' = 'approved') AS escalation_id
      FROM claude_messages AS task
     WHERE id = %(id)s AND status = 'processing'
       AND md5((data -> 'claim')::text) IS NOT DISTINCT FROM %(fence)s
       FOR NO KEY UPDATE
)
"""

TAKE = """
UPDATE claude_messages AS task
   SET status = 'processing', read_at = now(),
       data = CASE WHEN jsonb_typeof(task.data) = 'object' THEN task.data
                   WHEN task.data IS NULL THEN '{}'
                   ELSE jsonb_build_object('data', task.data) END
              || jsonb_build_object('claim', jsonb_build_object(
                     'token', %(new_token)s, 'host', %(host)s, 'pid', %(pid)s,
                     'attempt', CASE task.data #>> '{claim,token}'
                                     WHEN %(new_token)s THEN 0 ELSE 1 END + CASE
                         WHEN task.data #>> '{claim,attempt}' ~ '^[0-9]{1,4}$'
                         THEN (task.data #>> '{claim,attempt}')::integer ELSE 0 END,
                     'lease_until', clock_timestamp() + make_interval(secs => %(grace)s + COALESCE(
                         (%(timeouts)s::jsonb ->> substring(
                             left(task.body, 200)
                             FROM '^[[:space:]]*TASK:[[:blank:]]*([a-z0-9_]+)'))::integer,
                         %(longest)s))))
"""

TAKE_OVER = """
UPDATE claude_messages AS task
   SET data = CASE WHEN jsonb_typeof(task.data) = 'object' THEN task.data
                   WHEN task.data IS NULL THEN '{}'
                   ELSE jsonb_build_object('data', task.data) END
              || jsonb_build_object('claim',
                     CASE jsonb_typeof(task.data -> 'claim')
                          WHEN 'object' THEN task.data -> 'claim' ELSE '{}' END
                     || jsonb_build_object(
                            'token', %(new_token)s,
                            'lease_until', clock_timestamp() + make_interval(secs => %(seconds)s)))
"""

CLAIM_START = """
RETURNING task.id, task.from_agent, task.subject,
          CASE WHEN octet_length(task.body) <= %(body_limit)s THEN task.body END,
          octet_length(task.body), task.created_at::text, task.expires_at::text,
"""

CLAIM_END = """,
          CASE WHEN task.data #>> '{claim,attempt}' ~ '^[0-9]{1,4}$'
               THEN (task.data #>> '{claim,attempt}')::integer ELSE 0 END,
          -- || '': with the bare column idx_msg_from may be chosen, and all its reports read.
          EXISTS (SELECT FROM claude_messages AS report
                   WHERE report.reply_to_id = task.id AND report.from_agent || '' = %(agent)s
                     AND report.msg_type = 'response' AND report.data ->> 'final' = 'true'),
          EXTRACT(EPOCH FROM task.read_at)::float8, EXTRACT(EPOCH FROM now())::float8,
"""

TAKEN = (
    "FROM next WHERE task.id = next.id"
    + CLAIM_START
    + "next.too_late"
    + CLAIM_END
    + "next.escalation_id"
)

TOO_LATE = """
          CASE WHEN task.expires_at IS NOT NULL THEN task.expires_at <= now()
               ELSE task.created_at IS NULL
                 OR task.created_at <= now() - make_interval(hours => %(expiry_hours)s)
          END"""

# Not a join, whose planning would cost every task a tenth of its time.
THE_NEXT = "WHERE task.id = (SELECT id FROM next)"

TAKEN_PENDING = CLAIM_START + TOO_LATE + CLAIM_END + "NULL"

CLAIM_PENDING = LOCK + "WITH" + NEXT_PENDING + TAKE + THE_NEXT + TAKEN_PENDING

AT_WORK = """
-- The tasks being processed, each with its claim as far as it can be read.
SELECT id, left(data #>> '{claim,token}', 100), left(data #>> '{claim,host}', 100),
       left(data #>> '{claim,pid}', 20), left(data #>> '{claim,lease_until}', 50),
       EXTRACT(EPOCH FROM now())::float8, md5((data -> 'claim')::text), read_at::text
  FROM claude_messages
 WHERE msg_type = 'task' AND to_agent = %(agent)s AND status = 'processing'
 ORDER BY id
"""

FINISH = """
-- processing -> processed or expired: the final report and the claim's end in one transaction.
WITH done AS (
    UPDATE claude_messages
       SET status = %(status)s, processed_at = now()
     WHERE id = %(id)s AND status = 'processing' AND data -> 'claim' ->> 'token' = %(token)s
    RETURNING id, from_agent, priority, thread_id
)
"""

ANSWER = """
INSERT INTO claude_messages (from_agent, to_agent, msg_type, priority, subject, body, data,
                             reply_to_id, thread_id, status, expires_at, requires_response)
SELECT %(agent)s, from_agent, 'response',
       CASE WHEN priority IN ('urgent', 'high', 'normal', 'low') THEN priority ELSE 'normal' END,
       %(subject)s, %(body)s, %(data)s::jsonb, id, COALESCE(thread_id, id), 'pending', NULL, false
  FROM done
RETURNING id
"""

# One commit for a report and the next claim; without the report there is no claim.
FINISH_AND_CLAIM = (
    LOCK
    + FINISH
    + ", answer AS ("
    + ANSWER
    + "),"
    + NEXT_PENDING
    + TAKE
    + THE_NEXT
    + " AND EXISTS (SELECT FROM answer)"
    + TAKEN_PENDING
)

CLOSE = """
-- processing -> processed: a task that has its final report already gets no second one.
UPDATE claude_messages
   SET status = 'processed', processed_at = now()
 WHERE id = %(id)s AND status = 'processing' AND data -> 'claim' ->> 'token' = %(token)s
RETURNING id
"""

RELEASE = """
-- processing -> pending: an interrupted task that changes nothing may run again.
UPDATE claude_messages
   SET status = 'pending'
 WHERE id = %(id)s AND status = 'processing' AND data -> 'claim' ->> 'token' = %(token)s
RETURNING id
"""

FATE = """
-- After a statement that changed nothing: was it ours, sent twice, or was the claim lost? Others
-- change statuses too, so a status alone does not tell that the report is there.
SELECT EXISTS (SELECT FROM claude_messages AS task
                WHERE id = %(id)s AND data -> 'claim' ->> 'token' = %(token)s
                  AND (status = 'escalated'
                    OR status <> 'processing'
                   AND EXISTS (SELECT FROM claude_messages AS report
                                WHERE report.reply_to_id = task.id
                                  AND report.from_agent = %(agent)s
                                  AND report.msg_type = 'response'
                                  AND report.data ->> 'final' = 'true')))
"""

OVERSIZED = """
-- A task whose data leaves no room for a claim: a JSONB object holds 256 MiB. The operator gives
-- the whole value back as it is without compression.
SELECT id, subject, left(body, 300), status
  FROM claude_messages
 WHERE msg_type = 'task' AND to_agent = %(agent)s AND status IN ('pending', 'processing')
   AND pg_column_size(data) > 500000 AND pg_column_size(data #> '{}') > 268000000
 ORDER BY id LIMIT 1
"""

END_OVERSIZED = """
-- pending -> processed, processing -> processed: without a claim, since there is no room for one.
WITH done AS (
    UPDATE claude_messages
       SET status = 'processed', processed_at = now()
     WHERE id = %(id)s AND status = %(seen)s
    RETURNING id, from_agent, priority, thread_id
)
"""
