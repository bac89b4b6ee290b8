"""A completions server as an engine: its protocol, its client, and the extractor that asks it."""
