-- Deletes the tasks of more than 90 days ago, each with all that answers it: its reports, its
-- requests for approval, and what was replied to these. A conversation in which anything is younger,
-- or in which a task has not ended, stays whole. Run it as the tables' owner, with the days you want.
WITH RECURSIVE conversation AS (
    SELECT id AS task, id, false AS stays
      FROM claude_messages
     WHERE msg_type = 'task' AND created_at < now() - interval '90 days'
       AND status NOT IN ('pending', 'processing', 'escalated')
     UNION
    SELECT task, reply.id, reply.stays
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
                        GROUP BY task HAVING NOT bool_or(stays)));
