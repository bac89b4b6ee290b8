"""The rank of this process among the processes that train together.

Launchers such as torchrun set it in the environment variables WORLD_SIZE, RANK and LOCAL_RANK. Rank 0 writes the files
and prints the messages.
"""

from __future__ import annotations

import os

from spantune.core.errors import ConfigError


def world_size() -> int:
    """Return the number of processes that train together; 1 if no launcher started this process.

    Raises:
        ConfigError: WORLD_SIZE is not a whole number of at least 1.
    """
    return _number("WORLD_SIZE", 1, least=1)


def global_rank() -> int:
    """Return the rank of this process among all processes, from 0; 0 if no launcher started it.

    Raises:
        ConfigError: RANK is not a whole number of at least 0.
    """
    return _number("RANK", 0)


def local_rank() -> int:
    """Return the rank of this process among the processes of its machine, from 0; 0 if no launcher started it.

    Raises:
        ConfigError: LOCAL_RANK is not a whole number of at least 0.
    """
    return _number("LOCAL_RANK", 0)


def _number(name: str, default: int, least: int = 0) -> int:
    value = os.environ.get(name, "").strip() or str(default)
    if not value.isdecimal() or int(value) < least:
        raise ConfigError(
            f"the environment variable {name} is {value!r}, expected a whole number from {least} on; start several "
            "processes with torchrun or accelerate launch, which set it"
        )
    return int(value)
