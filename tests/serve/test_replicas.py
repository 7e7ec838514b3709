"""Three Ray nodes, one killed under load: every request gets an answer or a clear error, and new ones succeed.

benchmarks/ray_chaos.py is the long form. What needs no Ray is in test_gateway.py.
"""

import asyncio
import importlib.util
import signal

import httpx2 as httpx
import pytest
from ray_chaos import crowd, healthy, nodes
from serving import process, until

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install 'unmask[ray]'"
)

TOKENS = 48


@pytest.fixture
def cluster():
    with nodes(3) as found:
        yield found


@pytest.mark.filterwarnings("default")  # ray's own
def test_a_node_is_killed_under_load(cluster, process):
    server = process("tiny", "--replicas", "3", "--ray-address", cluster.address, "--limit", "drain_s=20")
    prompts = [f"def f{i}(" for i in range(10)]
    expected = asyncio.run(healthy(server.url, prompts, TOKENS))
    assert len(_by_replica(server, "unmask_forwards_total")) == 3
    victim = next(iter(cluster.worker_nodes))

    def kill():
        cluster.remove_node(victim, allow_graceful=False)

    under = asyncio.run(crowd(server.url, expected, TOKENS, kill, allowed=("replica_lost",)))
    assert not under.wrong
    assert sum(under.ends.values()) == len(prompts)
    after = asyncio.run(crowd(server.url, expected, TOKENS, None, allowed=()))
    assert not after.wrong
    assert after.ends == {"done": len(prompts)}
    with httpx.stream("POST", server.url + "/v1/completions", json={**LONG, "stream": True}, timeout=60) as answer:
        next(answer.iter_lines())
    until(lambda: not any(_by_replica(server, "unmask_open").values()))  # who hung up was let go
    assert httpx.get(server.url + "/ready").status_code == 200
    server.signal(signal.SIGTERM)
    assert server.wait(60) == 0


LONG = {"prompt": "x", "max_tokens": 300, "eos": "forbid"}


def _by_replica(server, name):
    lines = httpx.get(server.url + "/metrics", timeout=30).text.splitlines()
    return {line.split()[0]: float(line.split()[1]) for line in lines if line.startswith(name + '{replica="')}
