-- The tables as they stand in production; the program must run on them unchanged.
-- There uuid_generate_v4() comes from the extension uuid-ossp, which the test server lacks.
CREATE FUNCTION uuid_generate_v4() RETURNS UUID LANGUAGE SQL AS 'SELECT gen_random_uuid()';

CREATE TABLE claude_messages (
    id SERIAL PRIMARY KEY,
    message_uuid UUID DEFAULT uuid_generate_v4() UNIQUE,
    from_agent VARCHAR(50) NOT NULL,
    to_agent VARCHAR(50) NOT NULL,
    msg_type VARCHAR(50) NOT NULL,
    priority VARCHAR(20) DEFAULT 'normal',
    subject VARCHAR(500),
    body TEXT,
    data JSONB,
    reply_to_id INTEGER REFERENCES claude_messages (id),
    thread_id INTEGER,
    status VARCHAR(50) DEFAULT 'pending',
    created_at TIMESTAMPTZ DEFAULT now(),
    read_at TIMESTAMPTZ,
    processed_at TIMESTAMPTZ,
    expires_at TIMESTAMPTZ,
    requires_response BOOLEAN DEFAULT FALSE,
    response_deadline TIMESTAMPTZ
);
CREATE INDEX idx_msg_from ON claude_messages (from_agent, created_at DESC);
CREATE INDEX idx_msg_pending ON claude_messages (to_agent) WHERE status = 'pending';
CREATE INDEX idx_msg_thread ON claude_messages (thread_id);
CREATE INDEX idx_msg_to_status ON claude_messages (to_agent, status, created_at DESC);

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
    horizon VARCHAR(10),
    market VARCHAR(20),
    tags JSONB,
    created_at TIMESTAMPTZ DEFAULT now(),
    expires_at TIMESTAMPTZ,
    acted_upon BOOLEAN DEFAULT FALSE,
    action_taken TEXT,
    action_at TIMESTAMPTZ
);
