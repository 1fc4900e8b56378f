-- The tables of the message bus, and the indexes that the heartbeat needs.
--
-- Additive and safe on the existing database: it creates what is missing and alters or drops
-- nothing. Run it with `./run-heartbeat-public.sh --init-db`.
--
-- Life of a task message (msg_type 'task'), by its status:
--   pending     a sender's INSERT
--   processing  pending -> processing: claimed by one heartbeat, until data.claim.lease_until
--               escalated -> processing: its approval was used
--   escalated   processing -> escalated: waits for the approver
--   processed   processing -> processed, escalated -> processed: its final report is stored
--               pending -> processed: the same, refused without a claim
--   expired     processing -> expired, escalated -> expired: too late, the report says so
--   cancelled   pending -> cancelled, escalated -> cancelled: its sender took it back; no report
--   Cancelled while it ran, it gets its report: cancelled -> processed, cancelled -> expired.
--   A read-only task that was interrupted goes back: processing -> pending.
--
-- Life of an escalation (msg_type 'escalation'), by its status:
--   pending     waits on the approver's phone
--   approved    the approver's tap
--   denied      the approver's tap
--   processed   its decision was used; data.decision says which
--   expired     no decision, or no use of it, in time
--               pending -> expired: withdrawn, since its task waits for it no more

CREATE TABLE IF NOT EXISTS claude_messages (
    id                SERIAL PRIMARY KEY,
    message_uuid      UUID DEFAULT gen_random_uuid() UNIQUE,
    from_agent        VARCHAR(50) NOT NULL,
    to_agent          VARCHAR(50) NOT NULL,
    msg_type          VARCHAR(50) NOT NULL,
    priority          VARCHAR(20) DEFAULT 'normal',
    subject           VARCHAR(500),
    body              TEXT,
    data              JSONB,
    reply_to_id       INTEGER REFERENCES claude_messages (id),
    thread_id         INTEGER,
    status            VARCHAR(50) DEFAULT 'pending',
    created_at        TIMESTAMPTZ DEFAULT now(),
    read_at           TIMESTAMPTZ,
    processed_at      TIMESTAMPTZ,
    expires_at        TIMESTAMPTZ,
    requires_response BOOLEAN DEFAULT false,
    response_deadline TIMESTAMPTZ
);

CREATE TABLE IF NOT EXISTS claude_state (
    agent_id            VARCHAR(50) PRIMARY KEY,
    current_mode        VARCHAR(50),
    last_wake_at        TIMESTAMPTZ,
    last_think_at       TIMESTAMPTZ,
    last_action_at      TIMESTAMPTZ,
    last_poll_at        TIMESTAMPTZ,
    api_spend_today     NUMERIC(10, 4) DEFAULT 0,
    api_spend_month     NUMERIC(10, 4) DEFAULT 0,
    daily_budget        NUMERIC(10, 4) DEFAULT 5.00,
    current_schedule    VARCHAR(100),
    next_scheduled_wake TIMESTAMPTZ,
    status_message      TEXT,
    error_count_today   INTEGER DEFAULT 0,
    last_error          TEXT,
    last_error_at       TIMESTAMPTZ,
    created_at          TIMESTAMPTZ DEFAULT now(),
    updated_at          TIMESTAMPTZ DEFAULT now()
);

CREATE TABLE IF NOT EXISTS claude_observations (
    id               SERIAL PRIMARY KEY,
    agent_id         VARCHAR(50) NOT NULL,
    source_id        INTEGER,
    source_db        VARCHAR(50),
    observation_type VARCHAR(100),
    subject          VARCHAR(200),
    content          TEXT NOT NULL,
    confidence       NUMERIC(3, 2),
    horizon          VARCHAR(10),
    market           VARCHAR(20),
    tags             JSONB,
    created_at       TIMESTAMPTZ DEFAULT now(),
    expires_at       TIMESTAMPTZ,
    acted_upon       BOOLEAN DEFAULT false,
    action_taken     TEXT,
    action_at        TIMESTAMPTZ
);

-- What the other programs on this table look for.
CREATE INDEX IF NOT EXISTS idx_msg_from
    ON claude_messages (from_agent, created_at DESC);
CREATE INDEX IF NOT EXISTS idx_msg_pending
    ON claude_messages (to_agent) WHERE status = 'pending';
CREATE INDEX IF NOT EXISTS idx_msg_thread
    ON claude_messages (thread_id);
CREATE INDEX IF NOT EXISTS idx_msg_to_status
    ON claude_messages (to_agent, status, created_at DESC);

-- The claim's order, for each sender: one index entry read, whatever the queue, the history and the
-- statistics are. (idx_task_queue of earlier versions may be dropped.)
CREATE INDEX IF NOT EXISTS idx_task_queue_by_sender
    ON claude_messages (
        to_agent,
        from_agent,
        (CASE priority WHEN 'urgent' THEN 0 WHEN 'high' THEN 1 WHEN 'normal' THEN 2
                       WHEN 'low' THEN 3 ELSE 4 END),
        created_at,
        id
    ) WHERE msg_type = 'task' AND status = 'pending';

-- Tasks at work or waiting for the approver: a handful of rows in a table of millions.
CREATE INDEX IF NOT EXISTS idx_task_open
    ON claude_messages (to_agent, status)
    WHERE msg_type = 'task' AND status IN ('processing', 'escalated');

-- The history of an agent's tasks, newest first.
CREATE INDEX IF NOT EXISTS idx_task_history
    ON claude_messages (to_agent, id) WHERE msg_type = 'task';

-- An agent's requests for approval, and the approver's receipts for them.
CREATE INDEX IF NOT EXISTS idx_escalation
    ON claude_messages (from_agent, reply_to_id) WHERE msg_type = 'escalation';
CREATE INDEX IF NOT EXISTS idx_receipt_pending
    ON claude_messages (to_agent, from_agent)
    WHERE msg_type = 'response' AND status = 'pending';

-- Who waits for an answer looks here; so does the foreign key, for each row that is deleted.
CREATE INDEX IF NOT EXISTS idx_msg_reply
    ON claude_messages (reply_to_id);

-- Exactly one final report per task, ever.
CREATE UNIQUE INDEX IF NOT EXISTS idx_one_final_report
    ON claude_messages (reply_to_id, from_agent)
    WHERE msg_type = 'response' AND data ->> 'final' = 'true';
