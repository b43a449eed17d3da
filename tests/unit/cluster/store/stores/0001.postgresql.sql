CREATE TABLE alembic_version (
    version_num character varying(32) NOT NULL
);
CREATE TABLE attempts (
    id character varying(64) NOT NULL,
    owner character varying(64) NOT NULL,
    job_id character varying(64) NOT NULL,
    batch_id character varying(64) NOT NULL,
    fence integer NOT NULL,
    epoch bigint NOT NULL,
    renderer character varying(128) NOT NULL,
    card character varying(128) NOT NULL,
    card_class character varying(16) NOT NULL,
    outcome character varying(16),
    started_at bigint NOT NULL,
    lease_until bigint NOT NULL,
    ended_at bigint,
    step integer NOT NULL,
    steps integer NOT NULL,
    predicted_bytes bigint NOT NULL,
    measured_bytes bigint NOT NULL,
    detail text NOT NULL
);
CREATE TABLE batches (
    id character varying(64) NOT NULL,
    owner character varying(64) NOT NULL,
    name text NOT NULL,
    source text NOT NULL,
    created_at bigint NOT NULL,
    sealed boolean NOT NULL,
    attended_until bigint
);
CREATE TABLE cards (
    renderer character varying(128) NOT NULL,
    beat json NOT NULL,
    seen_at bigint NOT NULL
);
CREATE TABLE clips (
    id character varying(64) NOT NULL,
    owner character varying(64) NOT NULL,
    content_key character varying(64) NOT NULL,
    attempt_id character varying(64) NOT NULL,
    objects json NOT NULL,
    created_at bigint NOT NULL
);
CREATE TABLE dispatcher (
    id integer NOT NULL,
    epoch bigint NOT NULL,
    holder character varying(128) NOT NULL,
    since bigint NOT NULL
);
CREATE TABLE idempotency_keys (
    owner character varying(64) NOT NULL,
    key character varying(255) NOT NULL,
    fingerprint character varying(64) NOT NULL,
    batch_id character varying(64) NOT NULL,
    created_at bigint NOT NULL
);
CREATE TABLE jobs (
    id character varying(64) NOT NULL,
    owner character varying(64) NOT NULL,
    batch_id character varying(64) NOT NULL,
    number integer NOT NULL,
    name text NOT NULL,
    state character varying(16) NOT NULL,
    reason character varying(32),
    problems json NOT NULL,
    "row" json NOT NULL,
    still character varying(64),
    spec json,
    content_key character varying(64),
    family character varying(64) NOT NULL,
    resolution_class character varying(16) NOT NULL,
    needs_bytes bigint NOT NULL,
    priority integer NOT NULL,
    created_at bigint NOT NULL,
    updated_at bigint NOT NULL,
    attempts integer NOT NULL,
    releases integer NOT NULL,
    fence integer NOT NULL,
    cancel_requested boolean NOT NULL,
    clip_id character varying(64)
);
CREATE TABLE stills (
    owner character varying(64) NOT NULL,
    sha256 character varying(64) NOT NULL,
    width integer NOT NULL,
    height integer NOT NULL,
    created_at bigint NOT NULL
);
CREATE TABLE tallies (
    name character varying(64) NOT NULL,
    model character varying(64) NOT NULL,
    resolution_class character varying(16) NOT NULL,
    card_class character varying(16) NOT NULL,
    outcome character varying(32) NOT NULL,
    value double precision NOT NULL
);
INSERT INTO alembic_version VALUES ('0001');
ALTER TABLE ONLY alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);
ALTER TABLE ONLY attempts
    ADD CONSTRAINT pk_attempts PRIMARY KEY (id);
ALTER TABLE ONLY batches
    ADD CONSTRAINT pk_batches PRIMARY KEY (id);
ALTER TABLE ONLY cards
    ADD CONSTRAINT pk_cards PRIMARY KEY (renderer);
ALTER TABLE ONLY clips
    ADD CONSTRAINT pk_clips PRIMARY KEY (id);
ALTER TABLE ONLY dispatcher
    ADD CONSTRAINT pk_dispatcher PRIMARY KEY (id);
ALTER TABLE ONLY idempotency_keys
    ADD CONSTRAINT pk_idempotency_keys PRIMARY KEY (owner, key);
ALTER TABLE ONLY jobs
    ADD CONSTRAINT pk_jobs PRIMARY KEY (id);
ALTER TABLE ONLY stills
    ADD CONSTRAINT pk_stills PRIMARY KEY (owner, sha256);
ALTER TABLE ONLY tallies
    ADD CONSTRAINT pk_tallies PRIMARY KEY (name, model, resolution_class, card_class, outcome);
ALTER TABLE ONLY attempts
    ADD CONSTRAINT uq_attempts_job_id UNIQUE (job_id, fence);
ALTER TABLE ONLY clips
    ADD CONSTRAINT uq_clips_owner UNIQUE (owner, content_key);
ALTER TABLE ONLY jobs
    ADD CONSTRAINT uq_jobs_batch_id UNIQUE (batch_id, number);
CREATE INDEX ix_attempts_batch ON attempts USING btree (batch_id);
CREATE INDEX ix_attempts_running ON attempts USING btree (lease_until) WHERE (outcome IS NULL);
CREATE INDEX ix_batches_owner_created ON batches USING btree (owner, created_at);
CREATE INDEX ix_jobs_batch_state ON jobs USING btree (batch_id, state);
CREATE INDEX ix_jobs_content ON jobs USING btree (owner, content_key);
CREATE INDEX ix_jobs_waiting ON jobs USING btree (state, priority DESC, created_at, number);
CREATE UNIQUE INDEX uq_jobs_running_content ON jobs USING btree (owner, content_key) WHERE ((state)::text = 'running'::text);
ALTER TABLE ONLY attempts
    ADD CONSTRAINT fk_attempts_batch_id FOREIGN KEY (batch_id) REFERENCES batches(id);
ALTER TABLE ONLY attempts
    ADD CONSTRAINT fk_attempts_job_id FOREIGN KEY (job_id) REFERENCES jobs(id);
ALTER TABLE ONLY idempotency_keys
    ADD CONSTRAINT fk_idempotency_keys_batch_id FOREIGN KEY (batch_id) REFERENCES batches(id);
ALTER TABLE ONLY jobs
    ADD CONSTRAINT fk_jobs_batch_id FOREIGN KEY (batch_id) REFERENCES batches(id);
ALTER TABLE ONLY jobs
    ADD CONSTRAINT fk_jobs_clip_id FOREIGN KEY (clip_id) REFERENCES clips(id);
