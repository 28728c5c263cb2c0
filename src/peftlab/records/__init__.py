"""What was measured, on disk: the record, the store of runs with one writer each, other formats of it."""
