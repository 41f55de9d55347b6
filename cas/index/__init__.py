"""What we have on this disk: digests, manifests, blobs, refs, facts, records, the SQLite index, locks, check.

`docs/format.md` describes the store byte by byte. `store.Store` is the door to all of it; nothing outside
this package opens a file of the store for writing.
"""
