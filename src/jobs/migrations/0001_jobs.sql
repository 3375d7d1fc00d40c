-- Jobs, what happened to them, uploaded files, and trained models. Absent texts are '', absent times 0: the same
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
    results TEXT NOT NULL,
    evaluation TEXT NOT NULL
);
CREATE UNIQUE INDEX jobs_by_idempotency_key ON jobs (idempotency_key) WHERE idempotency_key <> '';
CREATE INDEX jobs_by_age ON jobs (created_at, id);

-- What results are called, from a job's creation until it fails or is cancelled, or its result is deleted.
CREATE TABLE names (
    name TEXT PRIMARY KEY,
    job TEXT NOT NULL REFERENCES jobs (id)
);
CREATE INDEX names_by_job ON names (job);

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

-- Folders of files in the object store. `sha256` is of the list of their files, `place` what their keys begin with: one
-- upload's own, so that what is being removed is never what is being written.
CREATE TABLE artifacts (
    sha256 TEXT PRIMARY KEY,
    place TEXT NOT NULL,
    files TEXT NOT NULL,
    used_at BIGINT NOT NULL
);

-- Who needs an artifact: a `model` or a `file` by its id, a `job` by its id with the part it plays there. What nobody
-- holds is removed.
CREATE TABLE holds (
    kind TEXT NOT NULL,
    owner TEXT NOT NULL,
    part TEXT NOT NULL,
    artifact TEXT NOT NULL REFERENCES artifacts (sha256),
    PRIMARY KEY (kind, owner, part)
);
CREATE INDEX holds_by_artifact ON holds (artifact);

-- Results that are served: a row is what publishes one.
CREATE TABLE models (
    id TEXT PRIMARY KEY,
    job TEXT NOT NULL REFERENCES jobs (id),
    created_at BIGINT NOT NULL
);

-- One row: what tells these jobs from those of another database.
CREATE TABLE installation (
    number BIGINT PRIMARY KEY,
    id TEXT NOT NULL
);
