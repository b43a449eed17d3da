CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0004');
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
	detail TEXT NOT NULL, resumed_from VARCHAR(64), resumed_step INTEGER DEFAULT 0 NOT NULL, kind VARCHAR(128) DEFAULT '' NOT NULL, 
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
	attended_until BIGINT, held VARCHAR(16), needs_approval BOOLEAN DEFAULT 0 NOT NULL, proof INTEGER DEFAULT 0 NOT NULL, max_failures INTEGER, max_gpu_seconds FLOAT, max_cost FLOAT, comment TEXT, 
	CONSTRAINT pk_batches PRIMARY KEY (id)
);
CREATE TABLE card_orders (
	card VARCHAR(128) NOT NULL, 
	kind VARCHAR(16) NOT NULL, 
	reason TEXT NOT NULL, 
	given_by VARCHAR(64) NOT NULL, 
	since BIGINT NOT NULL, 
	until BIGINT, 
	CONSTRAINT pk_card_orders PRIMARY KEY (card)
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
	clip_id VARCHAR(64), checkpoint_key VARCHAR(255), checkpoint_step INTEGER, hold_requested VARCHAR(16), not_before BIGINT, "after" TEXT, 
	CONSTRAINT pk_jobs PRIMARY KEY (id), 
	CONSTRAINT fk_jobs_batch_id FOREIGN KEY(batch_id) REFERENCES batches (id), 
	CONSTRAINT fk_jobs_clip_id FOREIGN KEY(clip_id) REFERENCES clips (id), 
	CONSTRAINT uq_jobs_batch_id UNIQUE (batch_id, number)
);
CREATE TABLE peaks (
	family VARCHAR(64) NOT NULL, 
	resolution_class VARCHAR(16) NOT NULL, 
	frames INTEGER NOT NULL, 
	layout VARCHAR(255) NOT NULL, 
	dtype VARCHAR(16) NOT NULL, 
	kind VARCHAR(128) NOT NULL, 
	footprint VARCHAR(16) NOT NULL, 
	count INTEGER NOT NULL, 
	ooms INTEGER NOT NULL, 
	largest FLOAT NOT NULL, 
	recent JSON NOT NULL, 
	updated_at BIGINT NOT NULL, 
	CONSTRAINT pk_peaks PRIMARY KEY (family, resolution_class, frames, layout, dtype, kind)
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
CREATE INDEX ix_attempts_running ON attempts (lease_until) WHERE outcome IS NULL;
CREATE INDEX ix_jobs_checkpointed ON jobs (state) WHERE checkpoint_key IS NOT NULL;
CREATE INDEX ix_batches_limited ON batches (id) WHERE max_failures IS NOT NULL OR max_gpu_seconds IS NOT NULL OR max_cost IS NOT NULL;
CREATE INDEX ix_jobs_after ON jobs ("after") WHERE "after" IS NOT NULL;
CREATE INDEX ix_jobs_leaving ON jobs (id) WHERE hold_requested IS NOT NULL;
CREATE INDEX ix_attempts_batch_ended ON attempts (batch_id, ended_at);
