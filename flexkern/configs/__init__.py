"""The papers' class-incremental runs, as TOML files."""
