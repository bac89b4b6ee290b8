"""The processes (ranks) that train together: how they sum tensors, exchange values, and end together.

accelerate makes the process group (NCCL on GPUs, gloo on CPUs) from the launcher's environment. Tensors on the device
are summed over this group; everything else, such as figures and extractions, goes through a second group on the CPUs.
No collective is called inside a model's forward or backward pass, unless the base is divided (FSDP). A rank that finds
that another rank has ended raises RankLost; only the rank that failed first reports its error.
"""

from __future__ import annotations

import atexit
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from spantune.core import (
    Config,
    ConfigError,
    RankLost,
    Stopped,
    StopRequest,
    first_line,
    global_rank,
    local_rank,
    set_verbosity,
    world_size,
)
from spantune.models import pick_device

PATIENCE = timedelta(seconds=3)
"""How long a rank waits for the exit code of another rank that has ended."""
STOP, FAILED, CODE = "spantune/stop", "spantune/failed", "spantune/code"

log = logging.getLogger(__name__)
Value = TypeVar("Value")


class Ranks:
    """The processes of a run. By default this process is the only one, and nothing is sent.

    Every method that exchanges values (all except `is_stop_asked`) must be called by all ranks, in the same order. It
    raises RankLost if another rank has ended or does not answer.

    Args:
        rank: the rank of this process, from 0.
        size: the number of processes.
        in_lockstep: whether all ranks must take the same number of passes through the model, as a divided base needs.
        group: the process group on the CPUs; None with a single process.
        generation: the number of the job, for processes that run several jobs one after another.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, *, in_lockstep: bool = False, group: Any = None, generation: int = 0
    ):
        self.rank, self.size, self.in_lockstep = rank, size, in_lockstep
        self._group, self._stop_key = group, f"{STOP}/{generation}"
        self._store = _connect(timedelta(minutes=1)) if size > 1 else None

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints messages."""
        return self.rank == 0

    def sum(self, values: Tensor) -> None:
        """Replace `values`, a tensor on the device, by the sum over all ranks."""
        if self.size > 1:
            with _together():
                dist.all_reduce(values)

    def same(self, tensors: Sequence[Tensor]) -> None:
        """Set `tensors`, which are on the device, to their values on rank 0."""
        if self.size > 1:
            with _together(), torch.no_grad():
                for tensor in tensors:
                    dist.broadcast(tensor, 0)

    def table(self, row: Sequence[float]) -> list[list[float]]:
        """Return the rows of all ranks, by rank; all rows have the same length."""
        if self.size == 1:
            return [list(row)]
        own = torch.tensor(row, dtype=torch.float64)
        rows = [torch.empty_like(own) for _ in range(self.size)]
        with _together():
            dist.all_gather(rows, own, group=self._group)
        return [values.tolist() for values in rows]

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all ranks, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _together():
            dist.all_gather_object(values, value, group=self._group)
        return values

    def from_main(self, make: Callable[[], Value]) -> Value:
        """Call `make` on rank 0 only, and return its value on all ranks."""
        if self.size == 1:
            return make()
        values = [make() if self.is_main else None]
        with _together():
            dist.broadcast_object_list(values, 0, group=self._group)
        return values[0]  # type: ignore[return-value]

    def host_first(self, make: Callable[[], Value]) -> Value:
        """Call `make` on every rank and return its value; on each machine one rank calls it before the others do.

        So files that `make` downloads are downloaded once for each machine.
        """
        if self.size == 1:
            return make()
        is_first = local_rank() == 0
        value = make() if is_first else None
        self.gather(None)
        return value if is_first else make()  # type: ignore[return-value]

    def is_stop_asked(self, stop: StopRequest) -> bool:
        """Whether a signal asks this rank, or another rank that has called this method, to stop.

        In lockstep only `stop` is read, since each pass tells it to all ranks.
        """
        if self.size == 1 or self._store is None or self.in_lockstep:
            return bool(stop)
        if stop:
            self._store.set(self._stop_key, "1")
        return bool(stop) or bool(self._store.check([self._stop_key]))

    def agree(self, stop: StopRequest) -> None:
        """Tell all ranks whether one of them got a signal.

        Raises:
            Stopped: a rank got one; raised on all ranks.
        """
        number = int(max(number for (number,) in self.table([stop.number or 0])))
        if number:
            stop.number = number
            raise Stopped(number)

    def require_same(self, values: dict[str, str]) -> None:
        """Check that all ranks have the same values, such as hashes of model and documents, by name.

        Raises:
            ConfigError: a rank has another value than rank 0; the error names the rank and the values.
        """
        of_all = self.gather(values)
        for rank, others in enumerate(of_all):
            if differing := [name for name, value in of_all[0].items() if others.get(name) != value]:
                raise ConfigError(
                    f"rank {rank} has not the same as rank 0: {', '.join(differing)} differ; give all ranks the same "
                    "recipe, data, model and release of spantune"
                )


ALONE = Ranks()
"""The ranks of a run in a single process."""

_groups: list[Any] = []  # holds the group on the CPUs after it was made
_generation = 0


def join(recipe: Config) -> Ranks:
    """Join the processes that a launcher has started; returns `ALONE` if this process is the only one.

    From then on, ranks other than 0 print errors only.

    Raises:
        ConfigError: the base cannot be divided as the recipe says, a rank has no GPU, or the ranks cannot connect.
    """
    global _generation
    size = world_size()
    if size == 1:
        return ALONE
    require_strategy(recipe)
    timeout = timedelta(minutes=recipe.distributed.timeout_minutes)
    if not _groups:
        _meet(recipe, timeout)
        with _together():
            _groups.append(dist.new_group(backend="gloo", timeout=timeout))
    if global_rank() > 0:
        set_verbosity(quiet=True)
        logging.getLogger("spantune").setLevel(logging.ERROR)  # rank 0 logs the same messages
    _generation += 1
    in_lockstep = is_divided(recipe)
    return Ranks(global_rank(), size, in_lockstep=in_lockstep, group=_groups[0], generation=_generation)


def is_divided(recipe: Config) -> bool:
    """Whether the layers of the base are divided over the ranks, by the recipe or by `accelerate launch --use_fsdp`.

    A single process never divides them.
    """
    by_launcher = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    return world_size() > 1 and (recipe.distributed.strategy == "fsdp" or by_launcher)


def require_strategy(recipe: Config) -> None:
    """Check that several processes can train this base with the strategy of recipe and launcher.

    Raises:
        ConfigError: the base is to be divided, but is quantised or is itself trained; or DeepSpeed is requested.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        raise ConfigError(
            "DeepSpeed (ZeRO) is not supported; start with accelerate launch --multi_gpu or torchrun, and set "
            "distributed.strategy=fsdp for a base that does not fit one GPU"
        )
    if recipe.distributed.strategy != "fsdp" and not is_divided(recipe):
        return
    if recipe.model.base in ("fp8", "nf4", "int8"):
        raise ConfigError(
            f"distributed.strategy=fsdp cannot divide a base of model.base={recipe.model.base}; set "
            "distributed.strategy=ddp, with which every GPU holds this base, or model.base=bf16"
        )
    if recipe.lora.full:
        raise ConfigError(
            "distributed.strategy=fsdp divides a frozen base, and lora.full=true trains it; set distributed.strategy="
            "ddp, or leave lora.full out"
        )


def first_failure(code: int, *, is_lost: bool) -> int | None:
    """Find out whether this rank is the first that failed.

    Args:
        code: the exit code of this rank.
        is_lost: whether this rank fails only because another one has ended. Then it first waits up to PATIENCE for the
            exit code of that rank.

    Returns:
        None if this rank is the first that failed, so that it reports its error; else the exit code of the first one.
    """
    try:
        store = _connect(PATIENCE)
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        failed, of_first = f"{FAILED}/{attempt}", f"{CODE}/{attempt}"
        is_known = is_lost and _appears(store, of_first)  # a rank that was killed stores no exit code
        if not is_known and store.add(failed, 1) == 1:
            store.set(of_first, str(code))
            return None
        return int(store.get(of_first)) if _appears(store, of_first) else code
    except (KeyError, ValueError, RuntimeError):  # there is no store, or the rank that held it has ended
        return None


def _appears(store: Any, key: str) -> bool:
    """Whether a key is in the store, now or within PATIENCE."""
    end = time.monotonic() + PATIENCE.total_seconds()
    while not store.check([key]):
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def _meet(recipe: Config, timeout: timedelta) -> None:
    """Let accelerate make the process group.

    Raises:
        ConfigError: this rank has no GPU of its own, or the ranks cannot connect.
    """
    from accelerate import PartialState

    device, size = pick_device(recipe.model.device), world_size()
    if device.type == "cuda" and local_rank() >= (count := torch.cuda.device_count()):
        raise ConfigError(
            f"rank {global_rank()} has no GPU: this machine has {count}, and {local_rank() + 1} processes or more were "
            f"started on it; start {count}, such as torchrun --nproc-per-node {count}"
        )
    place = f"{os.environ.get('MASTER_ADDR', '')}:{os.environ.get('MASTER_PORT', '')}"
    try:
        state = PartialState(cpu=device.type == "cpu", timeout=timeout)
    except (RuntimeError, ValueError) as error:  # torch's errors of the network are RuntimeErrors
        taken = "address already in use" in str(error).lower()
        remedy = "another program has the port; start torchrun with --standalone, or another --master-port"
        raise ConfigError(
            f"the {size} ranks did not meet at {place} ({first_line(error)}); "
            + (remedy if taken else "start all of them, with the same --master-addr and --master-port")
        ) from None
    if state.num_processes != size:
        raise ConfigError(
            f"{size} processes were started, and accelerate joined {state.num_processes}; start them with torchrun or "
            "accelerate launch, which set RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT"
        )


def leave() -> None:
    """Wait for all ranks at the end of a run, and have the process group closed when the process ends."""
    if not _groups:
        return
    with _together():
        dist.barrier(group=_groups[0])
    atexit.unregister(_close)
    atexit.register(_close)


def _close() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _connect(timeout: timedelta) -> Any:
    """Connect to the key-value store that all ranks share."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(host, port, is_master=False, timeout=timeout)  # type: ignore[attr-defined]


@contextmanager
def _together() -> Iterator[None]:
    """Raise RankLost where a collective inside the block fails, which torch reports as a RuntimeError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        log.debug("a collective failed: %s", error)
        raise RankLost(
            "another rank has ended or does not answer; what was saved is whole: look at the messages of the other "
            "ranks, and go on with spantune train --resume RUN, with as many ranks as you like"
        ) from None
