-- What else is found: no message_uuid, narrower columns, NOT NULL texts, other defaults, and
-- observations without horizon, tags and what was done about them.
CREATE TABLE claude_messages (
    id SERIAL PRIMARY KEY,
    from_agent VARCHAR(50) NOT NULL,
    to_agent VARCHAR(50) NOT NULL,
    msg_type VARCHAR(20) DEFAULT 'message',
    priority VARCHAR(20) DEFAULT 'normal',
    subject VARCHAR(200) NOT NULL,
    body TEXT NOT NULL,
    data JSONB,
    reply_to_id INTEGER REFERENCES claude_messages (id),
    thread_id INTEGER,
    status VARCHAR(20) DEFAULT 'pending',
    created_at TIMESTAMPTZ DEFAULT now(),
    read_at TIMESTAMPTZ,
    processed_at TIMESTAMPTZ,
    expires_at TIMESTAMPTZ DEFAULT now() + INTERVAL '24 hours',
    requires_response BOOLEAN DEFAULT FALSE,
    response_deadline TIMESTAMPTZ
);

CREATE TABLE claude_state (
    agent_id VARCHAR(50) PRIMARY KEY,
    current_mode VARCHAR(50),
    last_wake_at TIMESTAMPTZ,
    last_think_at TIMESTAMPTZ,
    last_action_at TIMESTAMPTZ,
    last_poll_at TIMESTAMPTZ,
    api_spend_today NUMERIC(10, 4) DEFAULT 0,
    api_spend_month NUMERIC(10, 4) DEFAULT 0,
    daily_budget NUMERIC(10, 4) DEFAULT 5.00,
    current_schedule VARCHAR(100),
    next_scheduled_wake TIMESTAMPTZ,
    status_message TEXT,
    error_count_today INTEGER DEFAULT 0,
    last_error TEXT,
    last_error_at TIMESTAMPTZ,
    created_at TIMESTAMPTZ DEFAULT now(),
    updated_at TIMESTAMPTZ DEFAULT now()
);

CREATE TABLE claude_observations (
    id SERIAL PRIMARY KEY,
    agent_id VARCHAR(50) NOT NULL,
    source_id INTEGER,
    source_db VARCHAR(50),
    observation_type VARCHAR(100),
    subject VARCHAR(200),
    content TEXT NOT NULL,
    confidence NUMERIC(3, 2),
    market VARCHAR(20),
    created_at TIMESTAMPTZ DEFAULT now(),
    expires_at TIMESTAMPTZ
);
