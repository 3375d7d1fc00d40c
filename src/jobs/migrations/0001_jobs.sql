-- Jobs, what happened to them, and the records of uploaded files. Absent texts are '', absent times 0: the same
-- statements run on SQLite and PostgreSQL.
CREATE TABLE jobs (
    id TEXT PRIMARY KEY,
    spec TEXT NOT NULL,
    output TEXT NOT NULL,
    metadata TEXT NOT NULL,
    idempotency_key TEXT NOT NULL,
    request_sha256 TEXT NOT NULL,
    status TEXT NOT NULL,
    wish TEXT NOT NULL,
    attempt BIGINT NOT NULL,
    worker TEXT NOT NULL,
    lease_until BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    started_at BIGINT NOT NULL,
    finished_at BIGINT NOT NULL,
    step BIGINT NOT NULL,
    trained_tokens BIGINT NOT NULL,
    step_milliseconds DOUBLE PRECISION NOT NULL,
    failure TEXT NOT NULL,
    results TEXT NOT NULL
);
CREATE UNIQUE INDEX jobs_by_idempotency_key ON jobs (idempotency_key) WHERE idempotency_key <> '';
-- A result's name is taken from a job's creation until it fails or is cancelled.
CREATE UNIQUE INDEX jobs_by_output ON jobs (output) WHERE status NOT IN ('failed', 'cancelled');
CREATE INDEX jobs_by_age ON jobs (created_at, id);

CREATE TABLE events (
    job TEXT NOT NULL REFERENCES jobs (id),
    number BIGINT NOT NULL,
    key TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    level TEXT NOT NULL,
    message TEXT NOT NULL,
    metrics TEXT NOT NULL,
    PRIMARY KEY (job, number)
);
CREATE UNIQUE INDEX events_by_key ON events (job, key);

CREATE TABLE checkpoints (
    job TEXT NOT NULL REFERENCES jobs (id),
    step BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    metrics TEXT NOT NULL,
    PRIMARY KEY (job, step)
);

CREATE TABLE files (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    bytes BIGINT NOT NULL,
    documents BIGINT NOT NULL,
    sha256 TEXT NOT NULL,
    created_at BIGINT NOT NULL
);
