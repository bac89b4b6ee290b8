"""Run the command line in a process that starts quickly, also from a shell: `python warmed.py SOCKET ARGUMENTS`.

The program sends its arguments, folder, environment and open files to a server process that has already imported the
slow libraries. A fork of the server runs the command with them, and the program ends with the command's exit code. If
the program is killed, the command is killed too. Coverage is not measured. A test of what happens at the start of an
interpreter must use `helpers.command.fresh`.
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
"""Higher than any file descriptor that a test passes."""


def main(path: str, arguments: list[str]) -> int:
    """Run a command on the server; return its exit code, or minus the number of the signal that killed it."""
    numbers = [number for number in range(HIGHEST) if _is_open(number)]  # before it opens its own
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        wanted = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ), "numbers": numbers}
        socket.send_fds(connection, [b"%"], numbers)
        connection.sendall(json.dumps(wanted).encode() + b"\n")
        return int(connection.makefile().readline() or 1)


def serve(path: str) -> None:
    """Fork for each client of the socket, without end."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{path}.new")
        listening.listen()
        os.rename(f"{path}.new", path)  # a client that sees the path can connect
        while True:
            connection, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os._exit(_keep(connection))
            connection.close()


def _keep(connection: socket.socket) -> int:
    """Run the client's command in a fork and send it the exit code."""
    _, descriptors, _, _ = socket.recv_fds(connection, 1, HIGHEST)
    wanted = json.loads(connection.makefile(encoding="utf-8").readline())
    child = os.fork()
    if child == 0:
        _take_over(descriptors, wanted)
        os._exit(_run(wanted["arguments"]))
    for descriptor in (0, 1, 2, *descriptors):
        os.close(descriptor)  # so that a pipe ends when the command ends
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
    """Take over the client's files, folder, environment and standard streams."""
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
    """Run the command; return the exit code that an interpreter would have."""
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
