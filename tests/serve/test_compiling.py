"""Constraints are made beside the loop, within bounds, and end with whoever waits; hostile ones hurt nobody."""

import asyncio
import json
import re
import threading

import jsonschema
import pytest
from serving import events, serving, toy, until
from test_constraints_http import CHAT, PERSON, SHARP, STRICT, TEXT, USER
from test_refusals import shaped

from unmask.base.errors import OverBudget
from unmask.constrain.compile import Child
from unmask.constrain.spec import Constraint, Regex, Schema
from unmask.lm.model import LanguageModel


def nested(levels):
    found = {"type": "string"}
    for _ in range(levels):
        found = {"type": "object", "properties": {"a": found}, "required": ["a"], "additionalProperties": False}
    return found


TREE = {"$ref": "#/$defs/node", "$defs": {"node": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 9}}}
WIDE = {
    "$ref": "#/$defs/a",
    "$defs": {
        "a": {
            "type": "object",
            "properties": {f"p{i}": {"$ref": "#/$defs/a"} for i in range(12)},
            "additionalProperties": False,
        }
    },
}
HOSTILE = {
    "exponential": {"regex": "([^x]*){3}[01].{20}x"},
    "nested counts": {"regex": "(((a{50}){50}){50}){50}"},
    "unicode counts": {"regex": r"\p{L}{300}"},
    "long": {"regex": "(a|b)?" * 3000},
    "maxLength": {"schema": {"type": "string", "maxLength": 10**9}},
    "minLength": {"schema": {"type": "string", "minLength": 10**300}},
    "maxItems": {"schema": {"type": "array", "items": {"type": "string"}, "minItems": 10**7}},
    "nothing, often": {"schema": {"type": "array", "items": False, "minItems": 10**9}},
    "a large number": {"schema": {"type": "integer", "multipleOf": 999, "maximum": 10**60}},
    "deep": {"schema": nested(200)},
    "deeper": {"schema": nested(400)},
    "a deep value": {"schema": {"const": json.loads("[" * 600 + "]" * 600)}},
    "recursive and wide": {"schema": WIDE},
    "in a circle": {"schema": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}},
    "all of itself": {"schema": {"allOf": [{"$ref": "#"}]}},
    "any of itself": {"schema": {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}},
    "many keys": {"schema": {"properties": {f"k{i}": {"type": "string"} for i in range(2000)}}},
    "many choices": {"choices": [f"{i:x}" * 12 for i in range(5000)]},
    "many banned": {"banned": [f"{i:x}{i:o}" for i in range(4000)]},
    "much": {"schema": {"enum": ["x" * 70_000]}},
}


SMALL = {"compile_s": 1.0, "compile_bytes": 1 << 28, "states": 3000}


class TestHostile:
    """What was made to take all time or memory: a clear word within bounds, and nobody else notices."""

    @pytest.mark.parametrize("name", HOSTILE)
    def test_it_ends_with_a_word(self, serving, lm, name):
        served = serving(lm, **SMALL)
        (field,) = HOSTILE[name]
        answer = served.post(TEXT, prompt="x", max_tokens=8, **HOSTILE[name])
        error = shaped(answer)
        assert error["param"] == field, error
        assert len(error["message"]) < 1000
        assert served.guard.app.state.service.compiler.num_open == 0
        assert threading.active_count() < 60

    def test_what_is_recursive_but_bounded_is_written(self, toy):
        said = toy.post(TEXT, prompt="x", max_tokens=30, schema=TREE, **SHARP).json()
        jsonschema.validate(json.loads(said["choices"][0]["text"]), TREE)

    @pytest.mark.parametrize(
        "text", ["e\u0301\u202e\u2066", "\ufeff\u00a0\u2028", "\U000e0041\U0001f469\u200d", '"\\\u007f']
    )
    def test_letters_of_every_kind(self, toy, text):
        for asked in ({"choices": [text]}, {"schema": {"const": text}}, {"regex": re.escape(text)}):
            answer = toy.post(TEXT, prompt="x", max_tokens=60, **asked)
            assert answer.is_success, answer.text
            said = answer.json()["choices"][0]["text"]
            assert (json.loads(said) if "schema" in asked else said) == text

    def test_neighbours_write_what_they_write_alone(self, serving, lm):
        served, said = serving(lm, **SMALL), {}
        asks = {seed: {"prompt": "def add(", "max_tokens": 24, "temperature": 1.0, "seed": seed} for seed in range(6)}

        def post(key, body):
            said[key] = served.post(TEXT, **body)

        hostile = [
            (name, {"prompt": "x", **HOSTILE[name]}) for name in ("exponential", "maxLength", "recursive and wide")
        ]
        threads = [threading.Thread(target=post, args=one) for one in (*hostile, *asks.items())]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        for seed in asks:
            out = lm.generate("def add(", length=24, temperature=1.0, seed=seed)
            assert said[seed].json()["choices"][0]["text"] == out.completion
        assert [said[name].status_code for name, _ in hostile] == [400] * 3
        assert not served.engine.busy


class Slow(Child):
    """A compilation that lasts until it is given up, or let through."""

    begun, through = [], threading.Event()

    def __init__(self):
        super().__init__()
        self.given_up = threading.Event()
        Slow.begun.append(self)

    def compile(self, asked, vocabulary, budget=None):
        while not self.given_up.wait(0.005):
            if Slow.through.is_set():
                return super().compile(asked, vocabulary, budget)
        raise OverBudget("given up")

    def end(self):
        self.given_up.set()
        super().end()


class TestCompiling:
    @pytest.fixture
    def slow(self, monkeypatch):
        Slow.begun, Slow.through = [], threading.Event()
        monkeypatch.setattr("unmask.serve.compiling.Child", Slow)
        return Slow

    @staticmethod
    def call(served, body, messages):
        """A request as a server passes it on; returns what was sent."""
        sent = []

        async def run():
            queue = asyncio.Queue()
            queue.put_nowait({"type": "http.request", "body": json.dumps(body).encode()})

            async def send(message):
                sent.append(message)

            scope = {"type": "http", "method": "POST", "path": TEXT, "raw_path": TEXT.encode(), "query_string": b""}
            headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
            task = asyncio.ensure_future(served.guard({**scope, "headers": headers}, queue.get, send))
            await messages(queue)
            await task

        asyncio.run(run())
        return sent

    def test_who_hangs_up_leaves_nothing(self, serving, lm, slow):
        served = serving(lm)
        compiler = served.guard.app.state.service.compiler

        async def leave(queue):
            while not slow.begun:
                await asyncio.sleep(0.005)
            assert compiler.num_open == 1
            queue.put_nowait({"type": "http.disconnect"})

        sent = self.call(served, {"prompt": "x", "regex": "a+"}, leave)
        assert sent[0]["status"] == 499
        assert slow.begun[0].given_up.is_set()
        assert compiler.num_open == 0
        assert served.worker.num_open == 0
        assert served.metric('unmask_constraints_total{end="dropped"}') == 1

    def test_others_go_on_meanwhile_and_one_is_made_for_all(self, serving, lm, slow):
        served, answers = serving(lm), []
        ask = {"prompt": "x", "max_tokens": 8, "regex": "[ab]+", **SHARP}
        threads = [threading.Thread(target=lambda: answers.append(served.post(TEXT, **ask))) for _ in range(3)]
        for thread in threads:
            thread.start()
        until(lambda: slow.begun)
        assert served.post(TEXT, prompt="def", max_tokens=4).json()["choices"][0]["text"]
        assert served.client.get("/health").is_success
        slow.through.set()
        for thread in threads:
            thread.join(60)
        out = lm.generate("x", length=8, regex="[ab]+", **SHARP)
        assert [a.json()["choices"][0]["text"] for a in answers] == [out.completion] * 3
        assert len(slow.begun) == 1
        assert served.metric('unmask_constraints_total{end="made"}') == 1
        assert served.post(TEXT, **ask).is_success
        assert served.metric('unmask_constraints_total{end="kept"}') >= 1

    def test_deadlines_count_from_the_beginning(self, serving, lm, slow):
        served = serving(lm)
        answer = served.post(TEXT, prompt="x", regex="a+", diffusion={"deadline_s": 0.05})
        assert shaped(answer, 504)["code"] == "deadline_exceeded"
        assert slow.begun[0].given_up.is_set()

    def test_places_and_queue_are_bounded(self, serving, lm, slow):
        served, answers = serving(lm, compilers=1, queue=2), []
        threads = [
            threading.Thread(target=lambda i=i: answers.append(served.post(TEXT, prompt="x", regex=f"a{{{i + 1}}}")))
            for i in range(3)
        ]
        for thread in threads:
            thread.start()
        until(lambda: answers)
        assert shaped(answers[0], 429)["code"] == "queue_full"
        assert len(slow.begun) == 1
        slow.through.set()
        for thread in threads:
            thread.join(60)
        assert sorted(a.status_code for a in answers) == [200, 200, 429]

    def test_what_is_kept_is_bounded(self, serving, lm):
        served = serving(lm, automata_bytes=1)
        for _ in range(2):
            assert served.post(TEXT, prompt="x", max_tokens=4, regex="a+").is_success
        assert served.metric('unmask_constraints_total{end="made"}') == 2
        assert served.metric('unmask_constraints_total{end="kept"}') == 0

    def test_a_constraint_is_one_whoever_wrote_it(self, serving, lm):
        """The cache is keyed by what is asked: response_format and schema are the same."""
        served = serving(lm)
        assert served.post(TEXT, prompt="x", max_tokens=50, response_format=STRICT).is_success
        assert served.post(CHAT, messages=USER, max_tokens=50, schema=PERSON).is_success
        assert served.metric('unmask_constraints_total{end="made"}') == 1
        assert Constraint(body=Schema.of(PERSON)) != Constraint(body=Regex("a"))
