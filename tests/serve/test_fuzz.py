"""Requests that nobody wrote: from the server's own schema, valid and invalid, and malformed ones. No 5xx, no hang."""

import pytest
import schemathesis
import serve_fuzz
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from serving import toy

BOUNDED = settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
POSTS = [path for path, _ in serve_fuzz.GOOD]


@pytest.fixture(scope="module")
def operations(toy):
    schema = schemathesis.openapi.from_dict(toy.client.get("/openapi.json").json())
    return {found.ok().path: found.ok() for found in schema.get_all_operations() if found.ok().method == "post"}


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("path", dict.fromkeys(POSTS))
def test_requests_from_the_schema(toy, operations, path, mode):
    """Longer, against a server: `schemathesis run URL/openapi.json --mode all --checks not_a_server_error`."""
    seen = []

    @BOUNDED
    @given(case=operations[path].as_strategy(generation_mode=mode))
    def check(case):
        kwargs = case.as_transport_kwargs(base_url=str(toy.client.base_url))
        kwargs = {k: v for k, v in kwargs.items() if k in ("method", "url", "headers", "json", "data", "params") and v}
        if isinstance(kwargs.get("data"), bytes):
            kwargs["content"] = kwargs.pop("data")
        kwargs["headers"] = {k: v.encode("latin-1", "replace") for k, v in dict(kwargs.get("headers", {})).items()}
        answer = toy.client.request(**kwargs)
        seen.append(answer.status_code)
        assert answer.status_code < 500, answer.text
        assert answer.status_code != 422
        if answer.status_code >= 400:
            assert {*answer.json()["error"]} == {"message", "type", "param", "code"}

    check()
    assert seen


def test_every_post_is_fuzzed(operations):
    assert set(operations) == set(POSTS)


def test_malformed_bodies(toy):
    """The short form of `benchmarks/serve_fuzz.py`."""
    statuses, wrong = serve_fuzz.fuzz(toy.client, 600, seed=1)
    assert not wrong, wrong[:3]
    assert statuses[400] > 300
    assert statuses[200]
    assert not toy.engine.busy
