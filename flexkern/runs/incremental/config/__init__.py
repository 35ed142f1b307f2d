"""What a class-incremental run is: a TOML file, checked key by key by pydantic's models."""

from flexkern.runs.incremental.config.models import Config, DataConfig, MethodConfig, Paper, StreamConfig
from flexkern.runs.incremental.config.toml_files import (
    CONFIGS,
    find_config,
    parse_config,
    read_config,
    shipped,
)

__all__ = [
    "CONFIGS",
    "Config",
    "DataConfig",
    "MethodConfig",
    "Paper",
    "StreamConfig",
    "find_config",
    "parse_config",
    "read_config",
    "shipped",
]
