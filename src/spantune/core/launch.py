"""Which of several training processes this one is, as launchers such as torchrun tell it by environment variables.

A process has a rank; rank 0 writes files and speaks to people.
"""

from __future__ import annotations

import os

from spantune.core.errors import ConfigError


def world_size() -> int:
    """Return how many processes train together; 1 where no launcher started this one.

    Raises:
        ConfigError: WORLD_SIZE is no number from 1 on.
    """
    return _number("WORLD_SIZE", 1, least=1)


def global_rank() -> int:
    """Return the rank of this process among all.

    Raises:
        ConfigError: RANK is no number from 0 on.
    """
    return _number("RANK", 0)


def local_rank() -> int:
    """Return the rank of this process among those of its machine.

    Raises:
        ConfigError: LOCAL_RANK is no number from 0 on.
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
