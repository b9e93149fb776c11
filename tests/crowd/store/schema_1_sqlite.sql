-- Schema 1, as it was: never to be changed.
CREATE TABLE audit (
    id INTEGER NOT NULL,
    at FLOAT NOT NULL,
    worker_id BIGINT,
    action VARCHAR(60) NOT NULL,
    detail TEXT NOT NULL,
    address VARCHAR(32) NOT NULL,
    PRIMARY KEY (id)
);

CREATE TABLE project (
    id INTEGER NOT NULL,
    name VARCHAR(60) NOT NULL,
    title VARCHAR(200) NOT NULL,
    languages VARCHAR(40) NOT NULL,
    redundancy INTEGER,
    least INTEGER NOT NULL,
    most INTEGER NOT NULL,
    paused BOOLEAN DEFAULT 0 NOT NULL,
    created_at FLOAT NOT NULL,
    PRIMARY KEY (id),
    UNIQUE (name)
);

CREATE TABLE schema_version (
    version INTEGER NOT NULL,
    applied_at FLOAT NOT NULL,
    PRIMARY KEY (version)
);

CREATE TABLE worker (
    id INTEGER NOT NULL,
    name VARCHAR(200) NOT NULL,
    name_key VARCHAR(250) NOT NULL,
    password TEXT,
    role VARCHAR(20) NOT NULL,
    language VARCHAR(5) NOT NULL,
    consent_version VARCHAR(40),
    consent_at FLOAT,
    created_at FLOAT NOT NULL,
    disabled BOOLEAN DEFAULT 0 NOT NULL,
    PRIMARY KEY (id),
    UNIQUE (name_key)
);

CREATE TABLE membership (
    worker_id INTEGER NOT NULL,
    project_id INTEGER NOT NULL,
    dataset VARCHAR(100) NOT NULL,
    seed INTEGER NOT NULL,
    joined_at FLOAT NOT NULL,
    PRIMARY KEY (worker_id, project_id),
    FOREIGN KEY(worker_id) REFERENCES worker (id) ON DELETE CASCADE,
    FOREIGN KEY(project_id) REFERENCES project (id) ON DELETE CASCADE
);

CREATE TABLE session (
    token_hash VARCHAR(64) NOT NULL,
    worker_id INTEGER NOT NULL,
    created_at FLOAT NOT NULL,
    last_seen FLOAT NOT NULL,
    expires_at FLOAT NOT NULL,
    PRIMARY KEY (token_hash),
    FOREIGN KEY(worker_id) REFERENCES worker (id) ON DELETE CASCADE
);

CREATE INDEX ix_session_worker_id ON session (worker_id);

CREATE TABLE tile (
    id INTEGER NOT NULL,
    project_id INTEGER NOT NULL,
    image_id VARCHAR(400) NOT NULL,
    kind VARCHAR(10) NOT NULL,
    dataset VARCHAR(100) NOT NULL,
    file VARCHAR(500) NOT NULL,
    height INTEGER NOT NULL,
    width INTEGER NOT NULL,
    sha256 VARCHAR(64) NOT NULL,
    origin TEXT NOT NULL,
    n_completed INTEGER DEFAULT '0' NOT NULL,
    n_judged INTEGER DEFAULT '0' NOT NULL,
    n_undecided INTEGER DEFAULT '0' NOT NULL,
    PRIMARY KEY (id),
    UNIQUE (project_id, kind, image_id),
    FOREIGN KEY(project_id) REFERENCES project (id) ON DELETE CASCADE
);

CREATE INDEX tile_of_dataset ON tile (project_id, kind, dataset);

CREATE TABLE assignment (
    id INTEGER NOT NULL,
    token VARCHAR(40) NOT NULL,
    worker_id INTEGER NOT NULL,
    tile_id INTEGER NOT NULL,
    project_id INTEGER NOT NULL,
    position INTEGER NOT NULL,
    counts BOOLEAN NOT NULL,
    opened_at FLOAT NOT NULL,
    held_until FLOAT NOT NULL,
    completed_at FLOAT,
    n_clicks INTEGER DEFAULT '0' NOT NULL,
    PRIMARY KEY (id),
    UNIQUE (worker_id, tile_id),
    UNIQUE (token),
    FOREIGN KEY(worker_id) REFERENCES worker (id) ON DELETE CASCADE,
    FOREIGN KEY(tile_id) REFERENCES tile (id) ON DELETE CASCADE,
    FOREIGN KEY(project_id) REFERENCES project (id) ON DELETE CASCADE
);

CREATE INDEX assignment_open ON assignment (project_id, completed_at, held_until);

CREATE INDEX ix_assignment_tile_id ON assignment (tile_id);

CREATE TABLE practice_cell (
    id INTEGER NOT NULL,
    tile_id INTEGER NOT NULL,
    x FLOAT NOT NULL,
    y FLOAT NOT NULL,
    PRIMARY KEY (id),
    FOREIGN KEY(tile_id) REFERENCES tile (id) ON DELETE CASCADE
);

CREATE INDEX ix_practice_cell_tile_id ON practice_cell (tile_id);

CREATE TABLE click (
    assignment_id INTEGER NOT NULL,
    id VARCHAR(36) NOT NULL,
    x FLOAT,
    y FLOAT,
    subtile INTEGER,
    at FLOAT,
    received_at FLOAT NOT NULL,
    deleted_at FLOAT,
    PRIMARY KEY (assignment_id, id),
    FOREIGN KEY(assignment_id) REFERENCES assignment (id) ON DELETE CASCADE
);

CREATE TABLE subtile_seen (
    assignment_id INTEGER NOT NULL,
    idx INTEGER NOT NULL,
    at FLOAT NOT NULL,
    PRIMARY KEY (assignment_id, idx),
    FOREIGN KEY(assignment_id) REFERENCES assignment (id) ON DELETE CASCADE
);

CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'the audit log cannot be changed'); END;

CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'the audit log cannot be changed'); END;
