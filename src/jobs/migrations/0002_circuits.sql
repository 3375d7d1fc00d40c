-- What a job leaves may be a circuit instead of a model: `model` or `circuit`.
ALTER TABLE models ADD COLUMN kind TEXT NOT NULL DEFAULT 'model';
