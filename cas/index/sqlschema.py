"""The SQLite index's schema. It holds nothing that the plain files do not: it can be deleted at any time."""

VERSION = 4

# The members of a record's data that choices are made by. They are kept apart, so that the best of 10,000 is found
# without reading 10,000 whole records; what they mean is the registry room's business.
BRIEF = ("state", "trial", "steps", "report_time", "validation")
MAX_BRIEF = 4096  # bytes of JSON; a record with more, or with what orjson cannot write, is read whole

# Statements are parted by empty lines.
SCHEMA = """\
-- The JSON-lines files that rows were read from, and how far.
CREATE TABLE source (
    id      INTEGER PRIMARY KEY,
    path    TEXT NOT NULL UNIQUE,   -- below the home
    inode   TEXT NOT NULL,          -- up to 64 bits; another inode under the name: read from the start
    offset  INTEGER NOT NULL        -- bytes read so far; always the start of a line
);

-- The last line of each file about each thing. Lines carry their own checksum, which every reader checks.
CREATE TABLE fact (
    kind    TEXT NOT NULL,          -- "blob", "origin", "target"
    key     TEXT NOT NULL,          -- digest, remote identity, absolute path
    source  INTEGER NOT NULL,
    line    BLOB NOT NULL,
    PRIMARY KEY (kind, key, source)
) WITHOUT ROWID;

-- What was last seen of each thing of each registry.
CREATE TABLE record (
    registry TEXT NOT NULL,
    kind     TEXT NOT NULL,         -- opaque here; the registry room says what there is
    id       TEXT NOT NULL,
    seen     REAL NOT NULL,         -- seconds since 1970
    source   INTEGER NOT NULL,
    line     BLOB NOT NULL,
    PRIMARY KEY (registry, kind, id)
) WITHOUT ROWID;

-- What a thing belongs to ("experiment/1", "trial/2"), for queries, with what choices among many are made by.
CREATE TABLE parent (
    parent   TEXT NOT NULL,
    kind     TEXT NOT NULL,
    registry TEXT NOT NULL,
    id       TEXT NOT NULL,
    brief    BLOB,                  -- XXH3-64 (8 bytes) of the rest; a JSON list: the id, the members of BRIEF
    PRIMARY KEY (parent, kind, registry, id)
) WITHOUT ROWID;

-- A record that comes again takes its parents with it; without this each one reads the whole table.
CREATE INDEX parent_of ON parent (registry, kind, id);

-- What manifests say of their blobs (trees.py), each as long as its file is as it was when it was read.
CREATE TABLE tree (
    manifest TEXT NOT NULL UNIQUE,  -- hex of its digest
    row      BLOB NOT NULL          -- XXH3-64 (8 bytes) of the hex and of the rest; the tree
);

-- One row: whose index this is.
CREATE TABLE meta (store TEXT NOT NULL, boot TEXT);
"""
