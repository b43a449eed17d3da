CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0002');
CREATE TABLE attempts (
	id VARCHAR(64) NOT NULL, 
	owner VARCHAR(64) NOT NULL, 
	job_id VARCHAR(64) NOT NULL, 
	batch_id VARCHAR(64) NOT NULL, 
	fence INTEGER NOT NULL, 
	epoch BIGINT NOT NULL, 
	renderer VARCHAR(128) NOT NULL, 
	card VARCHAR(128) NOT NULL, 
	card_class VARCHAR(16) NOT NULL, 
	outcome VARCHAR(16), 
	started_at BIGINT NOT NULL, 
	lease_until BIGINT NOT NULL, 
	ended_at BIGINT, 
	step INTEGER NOT NULL, 
	steps INTEGER NOT NULL, 
	predicted_bytes BIGINT NOT NULL, 
	measured_bytes BIGINT NOT NULL, 
	detail TEXT NOT NULL, resumed_from VARCHAR(64), resumed_step INTEGER DEFAULT 0 NOT NULL, 
	CONSTRAINT pk_attempts PRIMARY KEY (id), 
	CONSTRAINT fk_attempts_batch_id FOREIGN KEY(batch_id) REFERENCES batches (id), 
	CONSTRAINT fk_attempts_job_id FOREIGN KEY(job_id) REFERENCES jobs (id), 
	CONSTRAINT uq_attempts_job_id UNIQUE (job_id, fence)
);
CREATE TABLE batches (
	id VARCHAR(64) NOT NULL, 
	owner VARCHAR(64) NOT NULL, 
	name TEXT NOT NULL, 
	source TEXT NOT NULL, 
	created_at BIGINT NOT NULL, 
	sealed BOOLEAN NOT NULL, 
	attended_until BIGINT, 
	CONSTRAINT pk_batches PRIMARY KEY (id)
);
CREATE TABLE cards (
	renderer VARCHAR(128) NOT NULL, 
	beat JSON NOT NULL, 
	seen_at BIGINT NOT NULL, 
	CONSTRAINT pk_cards PRIMARY KEY (renderer)
);
CREATE TABLE clips (
	id VARCHAR(64) NOT NULL, 
	owner VARCHAR(64) NOT NULL, 
	content_key VARCHAR(64) NOT NULL, 
	attempt_id VARCHAR(64) NOT NULL, 
	objects JSON NOT NULL, 
	created_at BIGINT NOT NULL, 
	CONSTRAINT pk_clips PRIMARY KEY (id), 
	CONSTRAINT uq_clips_owner UNIQUE (owner, content_key)
);
CREATE TABLE dispatcher (
	id INTEGER NOT NULL, 
	epoch BIGINT NOT NULL, 
	holder VARCHAR(128) NOT NULL, 
	since BIGINT NOT NULL, 
	CONSTRAINT pk_dispatcher PRIMARY KEY (id)
);
CREATE TABLE idempotency_keys (
	owner VARCHAR(64) NOT NULL, 
	"key" VARCHAR(255) NOT NULL, 
	fingerprint VARCHAR(64) NOT NULL, 
	batch_id VARCHAR(64) NOT NULL, 
	created_at BIGINT NOT NULL, 
	CONSTRAINT pk_idempotency_keys PRIMARY KEY (owner, "key"), 
	CONSTRAINT fk_idempotency_keys_batch_id FOREIGN KEY(batch_id) REFERENCES batches (id)
);
CREATE TABLE jobs (
	id VARCHAR(64) NOT NULL, 
	owner VARCHAR(64) NOT NULL, 
	batch_id VARCHAR(64) NOT NULL, 
	number INTEGER NOT NULL, 
	name TEXT NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	reason VARCHAR(32), 
	problems JSON NOT NULL, 
	"row" JSON NOT NULL, 
	still VARCHAR(64), 
	spec JSON, 
	content_key VARCHAR(64), 
	family VARCHAR(64) NOT NULL, 
	resolution_class VARCHAR(16) NOT NULL, 
	needs_bytes BIGINT NOT NULL, 
	priority INTEGER NOT NULL, 
	created_at BIGINT NOT NULL, 
	updated_at BIGINT NOT NULL, 
	attempts INTEGER NOT NULL, 
	releases INTEGER NOT NULL, 
	fence INTEGER NOT NULL, 
	cancel_requested BOOLEAN NOT NULL, 
	clip_id VARCHAR(64), checkpoint_key VARCHAR(255), checkpoint_step INTEGER, 
	CONSTRAINT pk_jobs PRIMARY KEY (id), 
	CONSTRAINT fk_jobs_batch_id FOREIGN KEY(batch_id) REFERENCES batches (id), 
	CONSTRAINT fk_jobs_clip_id FOREIGN KEY(clip_id) REFERENCES clips (id), 
	CONSTRAINT uq_jobs_batch_id UNIQUE (batch_id, number)
);
CREATE TABLE stills (
	owner VARCHAR(64) NOT NULL, 
	sha256 VARCHAR(64) NOT NULL, 
	width INTEGER NOT NULL, 
	height INTEGER NOT NULL, 
	created_at BIGINT NOT NULL, 
	CONSTRAINT pk_stills PRIMARY KEY (owner, sha256)
);
CREATE TABLE tallies (
	name VARCHAR(64) NOT NULL, 
	model VARCHAR(64) NOT NULL, 
	resolution_class VARCHAR(16) NOT NULL, 
	card_class VARCHAR(16) NOT NULL, 
	outcome VARCHAR(32) NOT NULL, 
	value FLOAT NOT NULL, 
	CONSTRAINT pk_tallies PRIMARY KEY (name, model, resolution_class, card_class, outcome)
);
CREATE INDEX ix_batches_owner_created ON batches (owner, created_at);
CREATE INDEX ix_jobs_waiting ON jobs (state, priority DESC, created_at, number);
CREATE INDEX ix_jobs_batch_state ON jobs (batch_id, state);
CREATE INDEX ix_jobs_content ON jobs (owner, content_key);
CREATE UNIQUE INDEX uq_jobs_running_content ON jobs (owner, content_key) WHERE state = 'running';
CREATE INDEX ix_attempts_batch ON attempts (batch_id);
CREATE INDEX ix_attempts_running ON attempts (lease_until) WHERE outcome IS NULL;
CREATE INDEX ix_jobs_checkpointed ON jobs (state) WHERE checkpoint_key IS NOT NULL;
