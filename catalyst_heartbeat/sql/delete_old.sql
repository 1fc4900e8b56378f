-- Deletes the tasks of more than 90 days ago, each with all that answers it: its reports, its
-- requests for approval, and what was replied to these. A conversation in which anything is younger,
-- or in which a task has not ended, stays whole. The approver's receipts, which answer no message,
-- go when they are as old and were taken note of.
-- As the tables' owner, with the days you want in both places where 90 stands:
--   psql "$OWNER_URL" -v ON_ERROR_STOP=1 -f catalyst_heartbeat/sql/delete_old.sql
WITH RECURSIVE conversation AS (
    SELECT id AS first, id, false AS stays
      FROM claude_messages
     WHERE created_at < now() - interval '90 days'
       AND (msg_type = 'task' AND status NOT IN ('pending', 'processing', 'escalated')
         OR msg_type = 'response' AND status = 'processed' AND reply_to_id IS NULL
            AND (subject LIKE 'Approved: Permission #%' OR subject LIKE 'Denied: Permission #%'))
     UNION
    SELECT first, reply.id, reply.stays
      FROM conversation
     CROSS JOIN LATERAL (
           SELECT id, (created_at < now() - interval '90 days'
                       AND (msg_type <> 'task'
                         OR status NOT IN ('pending', 'processing', 'escalated'))
                      ) IS NOT TRUE AS stays
             FROM claude_messages
            WHERE reply_to_id = conversation.id
           OFFSET 0  -- row by row along the index, whatever the statistics say
     ) AS reply
)
DELETE FROM claude_messages
 WHERE id = ANY (ARRAY(SELECT unnest(array_agg(id)) FROM conversation
                        GROUP BY first HAVING NOT bool_or(stays)));
