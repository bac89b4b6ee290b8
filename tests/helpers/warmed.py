"""The command line in processes that start in no time, also from a shell: `python warmed.py SOCKET ARGUMENTS`.

That program sends its arguments, folder, environment and open files to a process which has imported what is slow. A
fork of it runs the command with exactly these, and its exit code comes back. A client that is killed kills the command.
What only the start of an interpreter can show needs `helpers.command.fresh`. Coverage is not measured.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
from typing import Any

HIGHEST = 100
"""Above all descriptors that a test passes."""


def main(path: str, arguments: list[str]) -> int:
    """Have a command run; returns its exit code, minus the number of a signal that killed it."""
    numbers = [number for number in range(HIGHEST) if _is_open(number)]  # before we open one ourselves
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        wanted = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ), "numbers": numbers}
        socket.send_fds(connection, [b"%"], numbers)
        connection.sendall(json.dumps(wanted).encode() + b"\n")
        return int(connection.makefile().readline() or 1)


def serve(path: str) -> None:
    """Fork for each client of the socket; the process never ends by itself."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{path}.new")
        listening.listen()
        os.rename(f"{path}.new", path)  # who sees it can connect
        while True:
            connection, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os._exit(_keep(connection))
            connection.close()


def _keep(connection: socket.socket) -> int:
    """Run what the client wants in a fork and tell it the exit code."""
    _, descriptors, _, _ = socket.recv_fds(connection, 1, HIGHEST)
    wanted = json.loads(connection.makefile(encoding="utf-8").readline())
    child = os.fork()
    if child == 0:
        _take_over(descriptors, wanted)
        os._exit(_run(wanted["arguments"]))
    for descriptor in (0, 1, 2, *descriptors):
        os.close(descriptor)  # a pipe ends when the command ends
    ended = os.pidfd_open(child)
    ready, _, _ = select.select([ended, connection], [], [])
    if ended not in ready:
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        connection.sendall(b"%d\n" % code)
    except OSError:
        return 1
    return 0


def _take_over(descriptors: list[int], wanted: dict[str, Any]) -> None:
    """Be as the client is: files, folder, environment and the streams that Python opens at its start."""
    import fcntl

    numbers = wanted["numbers"]
    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, HIGHEST) for descriptor in descriptors]
    os.closerange(0, HIGHEST)
    for descriptor, number in zip(high, numbers, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(wanted["folder"])
    os.environ.clear()
    os.environ.update(wanted["environment"])
    encoding = os.environ.get("PYTHONIOENCODING") or "utf-8"
    sys.stdin = open(0, encoding=encoding) if 0 in numbers else None  # noqa: SIM115
    sys.stdout = open(1, "w", encoding=encoding) if 1 in numbers else None  # noqa: SIM115
    sys.stderr = open(2, "w", encoding=encoding, errors="backslashreplace") if 2 in numbers else None  # noqa: SIM115
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr


def _run(arguments: list[str]) -> int:
    """The exit code that an interpreter would have."""
    import traceback

    from spantune.cli import main as command

    sys.argv = ["spantune", *arguments]
    code: object = 0
    try:
        command()
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
        code = 1
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and not stream.closed:
                stream.flush()
    except OSError:
        traceback.print_exc()
        code = 120
    return code if isinstance(code, int) else int(code is not None)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    code = main(sys.argv[1], sys.argv[2:])
    if code < 0:
        os.kill(os.getpid(), -code)
    os._exit(code)
