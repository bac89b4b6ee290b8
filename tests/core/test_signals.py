"""The first signal requests an orderly stop, the second ends the process; real signals are sent to this process."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from spantune.core import Interrupted, Stopped, StopRequest


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_is_a_request_and_the_second_is_not(
    number: int, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    stop, before = StopRequest(), signal.getsignal(number)
    seen = []
    with stop.listening():
        stop.check()
        with pytest.raises(Stopped) as stopped:
            for item in stop.watch(range(5)):
                seen.append(item)
                if item == 2:
                    os.kill(os.getpid(), number)
        assert seen == [0, 1, 2] and bool(stop) and stopped.value.exit_code == code
        assert "stopping after this step; a second signal stops now" in capfd.readouterr().err
        with pytest.raises(Interrupted) as ended:
            os.kill(os.getpid(), number)
        assert not isinstance(ended.value, Stopped) and ended.value.exit_code == code
    assert signal.getsignal(number) is before


def test_any_two_signals_are_two() -> None:
    stop = StopRequest()
    with stop.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt) as ended:
            os.kill(os.getpid(), signal.SIGINT)
    assert isinstance(ended.value, Interrupted) and ended.value.exit_code == 130


def test_outside_the_main_thread_nothing_is_handled() -> None:
    before, found = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with StopRequest().listening():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]
