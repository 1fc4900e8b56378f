"""The SQL of looking without changing anything: --check, --status and --dry-run."""

SERVER = """
SELECT current_setting('server_version'), EXTRACT(EPOCH FROM clock_timestamp())::float8
"""

INDEXES = """
SELECT relname FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
 WHERE indrelid = to_regclass('claude_messages') AND indisvalid
"""

IDENTITY = """
SELECT session_user::text, row_security_active('claude_messages'),
       has_schema_privilege(current_schema(), 'CREATE')
"""

STATE = """
-- Times are subtracted as numbers: PostgreSQL before 17 refuses to subtract infinite ones.
SELECT current_mode, status_message, COALESCE(error_count_today, 0), last_error,
       (EXTRACT(EPOCH FROM now()) - EXTRACT(EPOCH FROM last_poll_at))::float8,
       (EXTRACT(EPOCH FROM now()) - EXTRACT(EPOCH FROM last_error_at))::float8
  FROM claude_state
 WHERE agent_id = %(agent)s
"""

QUEUE = """
SELECT priority, count(*),
       (EXTRACT(EPOCH FROM now()) - EXTRACT(EPOCH FROM min(created_at)))::float8
  FROM claude_messages
 WHERE msg_type = 'task' AND to_agent = %(agent)s AND status = 'pending'
 GROUP BY priority
 ORDER BY min(CASE priority WHEN 'urgent' THEN 0 WHEN 'high' THEN 1 WHEN 'normal' THEN 2
                            WHEN 'low' THEN 3 ELSE 4 END), priority
"""

ESCALATIONS = """
-- The escalations of the tasks that wait, whether decided already or not.
SELECT escalation.id, escalation.subject, escalation.status,
       (EXTRACT(EPOCH FROM now()) - EXTRACT(EPOCH FROM escalation.created_at))::float8,
       (EXTRACT(EPOCH FROM escalation.expires_at) - EXTRACT(EPOCH FROM now()))::float8
  FROM claude_messages AS task
  JOIN claude_messages AS escalation
    ON escalation.reply_to_id = task.id AND escalation.from_agent = %(agent)s
   AND escalation.msg_type = 'escalation'
   AND task.data -> 'escalation' -> 'id' = to_jsonb(escalation.id)
 WHERE task.msg_type = 'task' AND task.to_agent = %(agent)s AND task.status = 'escalated'
 ORDER BY escalation.id
"""

FORESEEN = """
-- What a claim would return for a task that waits, without claiming it.
SELECT task.id, task.from_agent, task.subject,
       CASE WHEN octet_length(task.body) <= %(body_limit)s THEN task.body END,
       octet_length(task.body), task.created_at::text, task.expires_at::text,
       CASE WHEN task.expires_at IS NOT NULL THEN task.expires_at <= now()
            ELSE %(escalation_id)s::integer IS NULL
             AND (task.created_at IS NULL
               OR task.created_at <= now() - make_interval(hours => %(expiry_hours)s))
       END,
       1,
       EXISTS (SELECT FROM claude_messages AS report
                WHERE report.reply_to_id = task.id AND report.from_agent = %(agent)s
                  AND report.msg_type = 'response' AND report.data ->> 'final' = 'true'),
       NULL, EXTRACT(EPOCH FROM now())::float8, %(escalation_id)s::integer
  FROM claude_messages AS task
 WHERE task.id = %(id)s
"""

PENDING_IDS = """
-- The pending tasks in the order of their claims.
SELECT id
  FROM claude_messages
 WHERE msg_type = 'task' AND to_agent = %(agent)s AND status = 'pending'
 ORDER BY CASE priority WHEN 'urgent' THEN 0 WHEN 'high' THEN 1 WHEN 'normal' THEN 2
                        WHEN 'low' THEN 3 ELSE 4 END, created_at, id
"""
