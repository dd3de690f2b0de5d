"""The store's SQL: tables, and the migrations that lead to them.

`user_version` counts the migrations that were applied. Each runs in one transaction together with its number, so a
crash leaves either the old schema or the new one. To change the schema, append a migration; never edit an old one.

    galleries --< tracklets --- descriptors      (one row each; apart, so that filters read small rows)
                      |  |----- thumbnails
                      |  `----< frames         (of galleries that keep some)
                      |--< labels
    requests >--------'  a request id and what it stored; the reference turns NULL when that is deleted
    retention            how long a gallery keeps what a camera saw
    changes --< change_items >-- tracklets   assignments, merges and splits of identities, to undo them by
    audit                who-did-what: written in the transaction of the change itself
    secrets              keys of the page tokens and of the digests that stand for erased names in the audit
    upkeep               work that must not be forgotten: since when the file is due to be written anew
    backups              those that were made, for the receipts of erasures

Every row has a checksum: descriptors, thumbnails and frames one of their value, all others a seal (see `sealing`).
"""

from __future__ import annotations

import sqlite3
import zlib

from passerby.errors import FailedPreconditionError

from passerby_server.gallery import sealing
from passerby_server.gallery.ledger import pseudonym

APPLICATION_ID = 0x70736279  # "psby" in the file header: tells our files from other people's

_V1 = (
    """CREATE TABLE galleries (
        gallery_key INTEGER PRIMARY KEY AUTOINCREMENT, -- never reused: an old page token fits no new gallery
        gallery_id TEXT NOT NULL UNIQUE,
        display_name TEXT NOT NULL,
        fingerprint TEXT NOT NULL,
        descriptor_dim INTEGER NOT NULL CHECK (descriptor_dim >= 1),
        metric TEXT NOT NULL CHECK (metric IN ('squared_euclidean', 'cosine')),
        create_time INTEGER NOT NULL -- microseconds since 1970, UTC, as all times here
    ) STRICT""",
    """CREATE TABLE tracklets (
        vector_id INTEGER PRIMARY KEY AUTOINCREMENT, -- storing order, never reused; the index's id too
        gallery_key INTEGER NOT NULL REFERENCES galleries ON DELETE CASCADE,
        tracklet_id TEXT NOT NULL,
        camera_id TEXT NOT NULL,
        start_time INTEGER,
        end_time INTEGER,
        identity_id TEXT NOT NULL,
        frame_count INTEGER NOT NULL,
        create_time INTEGER NOT NULL,
        UNIQUE (gallery_key, tracklet_id),
        CHECK ((start_time IS NULL) = (end_time IS NULL) AND (start_time IS NULL OR start_time <= end_time))
    ) STRICT""",
    # Each holds all that its filter reads, so that finding the allowed ids never touches the table.
    "CREATE INDEX tracklets_by_camera ON tracklets (gallery_key, camera_id, start_time, end_time)",
    "CREATE INDEX tracklets_by_time ON tracklets (gallery_key, start_time, end_time)",
    "CREATE INDEX tracklets_by_identity ON tracklets (gallery_key, identity_id)",
    """CREATE TABLE labels (
        vector_id INTEGER NOT NULL REFERENCES tracklets ON DELETE CASCADE,
        key TEXT NOT NULL,
        value TEXT NOT NULL,
        PRIMARY KEY (vector_id, key)
    ) STRICT, WITHOUT ROWID""",
    "CREATE INDEX labels_by_value ON labels (key, value, vector_id)",
    """CREATE TABLE descriptors (
        vector_id INTEGER PRIMARY KEY REFERENCES tracklets ON DELETE CASCADE,
        checksum INTEGER NOT NULL, -- CRC-32 of `descriptor`: SQLite itself does not notice a flipped bit in a value
        descriptor BLOB NOT NULL -- float32, little-endian (from version 6 on as the gallery says: float16 or float32)
    ) STRICT""",
    """CREATE TABLE thumbnails (
        vector_id INTEGER PRIMARY KEY REFERENCES tracklets ON DELETE CASCADE,
        thumbnail BLOB NOT NULL
    ) STRICT""",
    """CREATE TABLE requests (
        gallery_id TEXT NOT NULL,
        request_id TEXT NOT NULL,
        method TEXT NOT NULL,
        digest BLOB NOT NULL,
        vector_id INTEGER REFERENCES tracklets ON DELETE SET NULL,
        deleted_count INTEGER NOT NULL,
        time INTEGER NOT NULL,
        PRIMARY KEY (gallery_id, request_id)
    ) STRICT, WITHOUT ROWID""",
    "CREATE INDEX requests_by_time ON requests (time)",
    "CREATE INDEX requests_by_tracklet ON requests (vector_id)",
    """CREATE TABLE audit (
        audit_id INTEGER PRIMARY KEY AUTOINCREMENT,
        time INTEGER NOT NULL,
        action TEXT NOT NULL,
        gallery_id TEXT NOT NULL,
        tracklet_id TEXT NOT NULL, -- empty when the gallery itself is meant
        detail TEXT NOT NULL -- JSON; emptied when the tracklet is deleted, since it may name a person
    ) STRICT""",
    "CREATE INDEX audit_by_tracklet ON audit (gallery_id, tracklet_id)",
    "CREATE TABLE secrets (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID",
    "INSERT INTO secrets VALUES ('page_token', randomblob(32))",
)

_V2 = (
    # CRC-32 of `thumbnail`, as descriptors have one.
    "ALTER TABLE thumbnails ADD COLUMN checksum INTEGER NOT NULL DEFAULT 0",
    "UPDATE thumbnails SET checksum = crc32(thumbnail)",
    # The moment from which a tracklet's retention counts: a camera's clock may be ahead, storing never is before seeing.
    "CREATE INDEX tracklets_by_age ON tracklets "
    "(gallery_key, camera_id, min(coalesce(end_time, create_time), create_time))",
    """CREATE TABLE retention (
        gallery_key INTEGER NOT NULL REFERENCES galleries ON DELETE CASCADE,
        camera_id TEXT NOT NULL, -- empty: all cameras without a rule of their own
        keep INTEGER NOT NULL CHECK (keep > 0), -- microseconds
        PRIMARY KEY (gallery_key, camera_id)
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE changes (
        change_id INTEGER PRIMARY KEY AUTOINCREMENT,
        gallery_key INTEGER NOT NULL REFERENCES galleries ON DELETE CASCADE,
        undone INTEGER NOT NULL
    ) STRICT""",
    """CREATE TABLE change_items (
        change_id INTEGER NOT NULL REFERENCES changes ON DELETE CASCADE,
        vector_id INTEGER NOT NULL REFERENCES tracklets ON DELETE CASCADE,
        before TEXT NOT NULL,
        after TEXT NOT NULL,
        PRIMARY KEY (change_id, vector_id)
    ) STRICT, WITHOUT ROWID""",
    "CREATE INDEX change_items_by_tracklet ON change_items (vector_id)",
    "CREATE TABLE upkeep (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID",
    "CREATE TABLE backups (backup_id INTEGER PRIMARY KEY, time INTEGER NOT NULL, location TEXT NOT NULL) STRICT",
    "INSERT INTO secrets VALUES ('audit', randomblob(32))",
    # Their digests had no key: whoever guessed a name could confirm it. A retry across the update is answered anew.
    "DELETE FROM requests WHERE method IN ('AssignIdentity', 'DeleteTracklet')",
    """UPDATE audit SET tracklet_id = pseudonym((SELECT value FROM secrets WHERE name = 'audit'),
        'tracklet', gallery_id, tracklet_id)
        WHERE tracklet_id <> '' AND NOT EXISTS (SELECT 1 FROM tracklets JOIN galleries USING (gallery_key)
            WHERE galleries.gallery_id = audit.gallery_id AND tracklets.tracklet_id = audit.tracklet_id)""",
    # What was deleted before may have left pieces in the slack of pages.
    "INSERT INTO upkeep SELECT 'rewrite_due', min(time) FROM audit "
    "WHERE action IN ('DeleteTracklet', 'DeleteGallery') HAVING count(*) > 0",
)

_V3 = (
    "ALTER TABLE galleries ADD COLUMN index_kind TEXT NOT NULL DEFAULT ''",  # empty: the server's setting
    # Of decisions, where a search names none.
    "ALTER TABLE galleries ADD COLUMN false_match_rate REAL CHECK (false_match_rate > 0 AND false_match_rate < 1)",
    # The gallery whose erasures reach this one, too: it is to take its place, or was there before.
    "ALTER TABLE galleries ADD COLUMN follows INTEGER REFERENCES galleries ON DELETE SET NULL",
    "CREATE INDEX galleries_by_followed ON galleries (follows)",
    # Listing in storing order, without sorting all of the gallery for every page.
    "CREATE INDEX tracklets_in_order ON tracklets (gallery_key)",
)

_V4 = (
    "ALTER TABLE galleries ADD COLUMN keep_frames INTEGER NOT NULL DEFAULT 0",
    """CREATE TABLE frames (
        vector_id INTEGER NOT NULL REFERENCES tracklets ON DELETE CASCADE,
        number INTEGER NOT NULL,
        checksum INTEGER NOT NULL, -- CRC-32 of `frame`
        frame BLOB NOT NULL, -- as it came
        PRIMARY KEY (vector_id, number)
    ) STRICT""",
)

_SEALED_IN_V5 = {
    "galleries": "gallery_key, gallery_id, display_name, fingerprint, descriptor_dim, metric, create_time, index_kind, "
    "false_match_rate, follows, keep_frames",
    "tracklets": "vector_id, gallery_key, tracklet_id, camera_id, start_time, end_time, identity_id, frame_count, create_time",
    "retention": "gallery_key, camera_id, keep",
    "changes": "change_id, gallery_key, undone",
    "change_items": "change_id, vector_id, before, after",
    "requests": "gallery_id, request_id, method, digest, vector_id, deleted_count, time",
    "audit": "audit_id, time, action, gallery_id, tracklet_id, detail",
    "secrets": "name, value",
    "upkeep": "name, value",
    "backups": "backup_id, time, location",
}
_V5 = (
    *(f"ALTER TABLE {table} ADD COLUMN seal INTEGER NOT NULL DEFAULT 0" for table in _SEALED_IN_V5),
    *(f"UPDATE {table} SET seal = seal({columns})" for table, columns in _SEALED_IN_V5.items()),  # noqa: S608
    "UPDATE tracklets SET seal = seal + (SELECT sum(seal(vector_id, key, value)) FROM labels "
    "WHERE vector_id = tracklets.vector_id) WHERE vector_id IN (SELECT vector_id FROM labels)",
    # Of the number and the thumbnail: it tells, too, when one has come to another tracklet.
    "UPDATE thumbnails SET checksum = CASE checksum WHEN crc32(thumbnail) THEN seal(vector_id, thumbnail) ELSE -1 END",
)

_V6 = (
    "ALTER TABLE galleries ADD COLUMN descriptor_precision TEXT NOT NULL DEFAULT 'fp32' "
    "CHECK (descriptor_precision IN ('fp32', 'fp16'))",
    f"UPDATE galleries SET seal = seal - seal({_SEALED_IN_V5['galleries']}) "  # noqa: S608
    f"+ seal({_SEALED_IN_V5['galleries']}, descriptor_precision)",
)

MIGRATIONS: tuple[tuple[str, ...], ...] = (_V1, _V2, _V3, _V4, _V5, _V6)
"""Statements of each migration; the schema version is how many were applied."""


def migrate(connection: sqlite3.Connection, migrations: tuple[tuple[str, ...], ...] = MIGRATIONS) -> None:
    """Brings the store to the newest schema.

    `connection` is in autocommit mode. Raises FailedPreconditionError for a database that is not ours
    (NOT_A_STORE) or that a newer version of passerby wrote (SCHEMA_TOO_NEW).
    """
    before: int = connection.execute("PRAGMA user_version").fetchone()[0]
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application_id != APPLICATION_ID and (tables or before):
        raise FailedPreconditionError(
            "the database in the data folder was not made by passerby: choose another folder", reason="NOT_A_STORE"
        )
    if before > len(migrations):
        raise FailedPreconditionError(
            f"the data folder has schema version {before}, this passerby knows versions up to {len(migrations)}: "
            "run the newer passerby that wrote it",
            reason="SCHEMA_TOO_NEW",
        )
    connection.create_function("crc32", 1, zlib.crc32, deterministic=True)
    sealing.prepare(connection)
    connection.create_function("pseudonym", 4, pseudonym, deterministic=True)
    for version in range(before, len(migrations)):
        _apply(connection, version + 1, migrations[version])


def _apply(connection: sqlite3.Connection, version: int, statements: tuple[str, ...]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statement in statements:
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {version}")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
