"""One module a version of the schema: `revision` is its number, `down_revision` the one before."""
