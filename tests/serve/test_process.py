"""How the process ends: drained by a signal, at once by the second, by a kill that leaves nothing behind."""

import importlib.util
import signal
import threading

import httpx2 as httpx
import pytest
from serving import events, live, process, until

from unmask.base.errors import BadInput, UnknownName
from unmask.lm.load import load
from unmask.serve.run import serve

LONG = {"prompt": "x", "max_tokens": 300, "eos": "forbid"}


def asking(server, answers, **more):
    def ask():
        try:
            answers.append(httpx.post(server.url + "/v1/completions", json={**LONG, **more}, timeout=120))
        except httpx.TransportError as error:
            answers.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


def running(server, rows):
    return f"unmask_running {float(rows)}" in httpx.get(server.url + "/metrics").text


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_sigterm_lets_what_runs_end(process, backend):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    server, answers = process("--backend", backend), []
    threads = [asking(server, answers, max_tokens=120), asking(server, answers, max_tokens=120, stream=True)]
    until(lambda: running(server, 2))
    server.signal()
    server.line("draining")
    late = httpx.post(server.url + "/v1/completions", json=LONG)
    assert late.status_code == 503
    assert late.json()["error"]["code"] == "draining"
    assert httpx.get(server.url + "/ready").status_code == 503
    for thread in threads:
        thread.join(120)
    assert server.wait() == 0
    assert [a.status_code for a in answers] == [200, 200]
    (stream,) = (a for a in answers if a.text.startswith("id:"))
    assert events(stream.text)[-1] == (None, "[DONE]")


def test_what_does_not_end_in_time_is_told_so(process):
    server, answers = process("--limit", "drain_s=0.2"), []
    threads = [asking(server, answers), asking(server, answers, stream=True)]
    until(lambda: running(server, 2))
    server.signal(signal.SIGINT)
    for thread in threads:
        thread.join(60)
    assert server.wait() == 0
    plain, stream = sorted(answers, key=lambda a: a.status_code, reverse=True)
    assert (plain.status_code, plain.json()["error"]["code"]) == (503, "draining")
    assert events(stream.text)[-1][1]["error"]["code"] == "draining"


def test_a_kill_leaves_nothing_behind_and_the_second_signal_ends_at_once(process):
    server, answers = process(), []
    threads = [asking(server, answers)]
    until(lambda: running(server, 1))
    server.signal(signal.SIGKILL)
    assert server.wait() == -signal.SIGKILL
    again = process(port=server.port)
    assert again.port == server.port
    threads.append(asking(again, answers))
    until(lambda: running(again, 1))
    again.signal()
    again.line("draining")
    again.signal()
    assert again.wait() == 0
    again.line("ending at once")
    for thread in threads:
        thread.join(60)
    assert [isinstance(a, httpx.TransportError) for a in answers] == [True, True]


def test_what_can_not_be_served_is_told(live):
    with pytest.raises(UnknownName, match="no model called 'nonesuch'"):
        serve(lambda: load("nonesuch"), port=0)
    with pytest.raises(BadInput, match="can't listen"):
        serve(lambda: load("nonesuch"), port=live.port)
