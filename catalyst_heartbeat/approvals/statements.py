"""The SQL of escalations: what waits for the approver, what was decided, what became of it.

ESCALATE and REFUSE end in `done`, on which `statements.ANSWER` inserts the report.
"""

OPEN_ESCALATIONS = """
-- Only those that a task waits for: a second tap may set a decided one "approved" once more.
SELECT count(*),
       min(task.id) FILTER (WHERE escalation.data ->> 'task' = %(task)s
                              AND escalation.data -> 'params' = %(params)s::jsonb)
  FROM claude_messages AS task
  JOIN claude_messages AS escalation
    ON escalation.reply_to_id = task.id AND escalation.from_agent = %(agent)s
   AND escalation.msg_type = 'escalation'
   AND task.data -> 'escalation' -> 'id' = to_jsonb(escalation.id)
 WHERE task.msg_type = 'task' AND task.to_agent = %(agent)s AND task.status = 'escalated'
   AND escalation.status IN ('pending', 'approved') AND escalation.expires_at > now()
"""

ESCALATE = """
-- processing -> escalated: the request to the approver and the interim report to the sender.
WITH task AS (
    SELECT id, from_agent, priority, thread_id
      FROM claude_messages
     WHERE id = %(id)s AND status = 'processing' AND data -> 'claim' ->> 'token' = %(token)s
       FOR NO KEY UPDATE
), card AS (
    INSERT INTO claude_messages (from_agent, to_agent, msg_type, priority, subject, body, data,
                                 reply_to_id, thread_id, status, expires_at, requires_response)
    SELECT %(agent)s, %(approver)s, 'escalation', 'high', %(card_subject)s, %(card_body)s,
           %(card_data)s::jsonb, id, COALESCE(thread_id, id), 'pending',
           to_timestamp(%(until)s), true
      FROM task
    RETURNING id
), done AS (
    UPDATE claude_messages AS message
       SET status = 'escalated',
           data = message.data || jsonb_build_object('escalation', jsonb_build_object(
                      'id', card.id, 'shown', %(shown)s))
      FROM task, card
     WHERE message.id = task.id
    RETURNING message.id, message.from_agent, message.priority, message.thread_id
)
"""

WAITING = """
-- The tasks that wait for the approver, each with the escalation that the task itself names.
SELECT task.id, escalation.id, escalation.status, escalation.expires_at > now(),
       task.subject, left(task.body, 300),
       (SELECT left(receipt.body, 1000) FROM claude_messages AS receipt
         WHERE receipt.msg_type = 'response' AND receipt.from_agent = %(approver)s
           AND receipt.to_agent = %(agent)s AND receipt.status = 'pending'
           AND receipt.subject = 'Denied: ' || escalation.subject
         ORDER BY receipt.id DESC LIMIT 1),
       CASE WHEN task.data #>> '{claim,attempt}' ~ '^[0-9]{1,4}$'
            THEN (task.data #>> '{claim,attempt}')::integer ELSE 0 END
  FROM claude_messages AS task
  LEFT JOIN claude_messages AS escalation
    ON escalation.reply_to_id = task.id AND escalation.from_agent = %(agent)s
   AND escalation.to_agent = %(approver)s AND escalation.msg_type = 'escalation'
   AND task.data -> 'escalation' -> 'id' = to_jsonb(escalation.id)
 WHERE task.msg_type = 'task' AND task.to_agent = %(agent)s AND task.status = 'escalated'
 ORDER BY escalation.id, task.id
"""

APPROVAL = """
-- What was asked for and shown, to hold against what the message says now.
SELECT CASE WHEN octet_length(escalation.data::text) <= %(body_limit)s THEN escalation.data END,
       escalation.subject, escalation.body, task.data #>> '{escalation,shown}'
  FROM claude_messages AS escalation, claude_messages AS task
 WHERE escalation.id = %(escalation_id)s AND task.id = %(id)s
"""

REFUSE = """
-- escalated -> processed or expired, and the escalation -> processed or expired: denied, too late,
-- or the task does not know its request any more, which then leaves the phone as well.
WITH decided AS (
    UPDATE claude_messages
       SET status = %(status)s, processed_at = now(),
           data = CASE jsonb_typeof(data) WHEN 'object' THEN data ELSE '{}' END
                  || jsonb_build_object('decision', %(decision)s)
     WHERE (id = %(escalation_id)s AND status IS NOT DISTINCT FROM %(seen)s)
        OR (%(escalation_id)s::integer IS NULL AND reply_to_id = %(id)s
            AND from_agent = %(agent)s AND msg_type = 'escalation'
            AND status IN ('pending', 'approved', 'denied'))
    RETURNING id
), done AS (
    UPDATE claude_messages
       SET status = %(status)s, processed_at = now()
     WHERE id = %(id)s AND status = 'escalated'
       AND (%(escalation_id)s::integer IS NULL OR EXISTS (SELECT FROM decided))
    RETURNING id, from_agent, priority, thread_id
)
"""

RECEIPTS = """
-- pending -> processed: the approver's receipts for this agent's escalations, and nothing else.
-- A denial stays while its task waits and its escalation is decided: it holds an approval back.
UPDATE claude_messages AS receipt
   SET status = 'processed', read_at = now(), processed_at = now()
 WHERE receipt.msg_type = 'response' AND receipt.status = 'pending'
   AND receipt.to_agent = %(agent)s AND receipt.from_agent = %(approver)s
   AND EXISTS (SELECT FROM claude_messages AS escalation
                WHERE escalation.msg_type = 'escalation' AND escalation.from_agent = %(agent)s
                  AND escalation.subject LIKE 'Permission #' || escalation.reply_to_id || ': %%'
                  AND (receipt.subject = 'Approved: ' || escalation.subject
                    OR receipt.subject = 'Denied: ' || escalation.subject
                   AND NOT (COALESCE(escalation.status IN ('approved', 'denied'), false)
                            AND EXISTS (SELECT FROM claude_messages AS task
                                         WHERE task.id = escalation.reply_to_id
                                           AND task.status = 'escalated'))))
RETURNING receipt.id
"""

WITHDRAW = """
-- pending -> expired: an escalation whose task does not wait for it any more leaves the phone, with
-- the next cycle that has something to do. The agent's other programs may ask the approver too:
-- only what has this program's subject is ours.
UPDATE claude_messages AS escalation
   SET status = 'expired', processed_at = now()
 WHERE escalation.msg_type = 'escalation' AND escalation.status = 'pending'
   AND escalation.from_agent = %(agent)s AND escalation.to_agent = %(approver)s
   AND escalation.subject LIKE 'Permission #' || escalation.reply_to_id || ': %%'
   AND NOT EXISTS (SELECT FROM claude_messages AS task
                    WHERE task.id = escalation.reply_to_id AND task.status = 'escalated'
                      AND task.data -> 'escalation' -> 'id' = to_jsonb(escalation.id))
RETURNING escalation.id
"""
