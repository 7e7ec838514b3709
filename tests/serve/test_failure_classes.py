"""Twenty ways in which servers of language models were broken or abused, and that this one is not; a test for each.

Classes of which another file has the whole test are pinned down here in a line or two.
"""

import ast
import inspect
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from serving import LOCAL, serving, toy, until
from starlette.testclient import TestClient

import unmask
from unmask.base.errors import BadInput
from unmask.lm.model import LanguageModel
from unmask.serve import guard, routes
from unmask.serve.limits import Limits
from unmask.serve.run import serve
from unmask.text.chat import ChatTemplate

ROOT = Path(unmask.__file__).parent
TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
USER = [{"role": "user", "content": "x"}]


def calls(*names):
    """Files that call something, and what."""
    found = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in names:
                found.add((str(path.relative_to(ROOT)), ast.unparse(node.func)))
    return found


def imports(folder):
    return {
        name.split(".")[0]
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
    }


OWN = ("models/unpickle", "data/", "constrain/compile")
"""Where files are read that the user has vouched for, or what a process of ours hands to its child."""


def test_1_no_pickle_is_read_where_a_server_could_be_sent_one():
    loaders = calls("pickle.load", "pickle.loads", "pickle.Unpickler", "numpy.load", "np.load", "joblib.load")
    assert not {file for file, _ in loaders if not file.startswith(OWN)}
    for file, _ in calls("torch.load"):
        assert "weights_only=True" in (ROOT / file).read_text()
    assert not {"pickle", "marshal", "shelve", "dill"} & imports("serve")


def test_2_nothing_listens_but_the_one_door():
    assert not {"zmq", "multiprocessing", "xmlrpc", "socketserver"} & imports("serve")
    assert not {file for file, _ in calls("socket.create_server", "asyncio.start_server") if file.startswith("serve")}


def test_3_no_code_of_a_repository_runs_and_no_assert_keeps_a_door():
    assert not [path for path in ROOT.rglob("*.py") if "trust_remote_code=" in path.read_text()]
    source = inspect.getsource(guard)
    assert not [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assert)]


ESCAPE = "{{ ''.__class__.__mro__[1].__subclasses__() }}"


def templated(lm, source):
    return LanguageModel(lm.model, lm.tokenizer, name="toy", template=ChatTemplate(source, lm.tokenizer))


def test_4_a_template_can_not_reach_python(serving, lm):
    served = serving(templated(lm, ESCAPE))
    answer = served.post(CHAT, messages=USER, max_tokens=2)
    assert answer.status_code >= 400
    assert "class" not in answer.json()["error"]["message"]
    assert served.post(TEXT, prompt="x", max_tokens=2).is_success


def test_5_nobody_sends_templates_and_a_slow_one_is_ended(serving, lm, monkeypatch, toy):
    for field in ("chat_template", "chat_template_kwargs", "template"):
        assert toy.post(CHAT, messages=USER, **{field: ESCAPE}).json()["error"]["param"] == field
    monkeypatch.setattr("unmask.text.sandbox.CPU_S", 1)
    slow = serving(templated(lm, "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"))
    answers = []
    thread = threading.Thread(target=lambda: answers.append(slow.post(CHAT, messages=USER, max_tokens=2)))
    thread.start()
    assert slow.post(TEXT, prompt="x", max_tokens=2).is_success  # others are written meanwhile
    thread.join(60)
    assert answers[0].status_code >= 400


def test_6_no_grammar_takes_all_time_or_memory(serving, lm):
    """The long list is in test_compiling.py; here, that it ends in a process of its own, and how."""
    served = serving(lm, compile_s=1.0, compile_bytes=1 << 28, states=2000)
    for bound in ({"regex": "(a+)+" * 3000}, {"schema": {"type": "string", "maxLength": 10**7}}):
        segment = {"mask": {"min": 1, "max": 1}, **bound}
        error = served.post("/v1/infill", segments=[segment]).json()["error"]
        assert (error["code"], error["param"]) == ("invalid_value", f"segments[0].{next(iter(bound))}")
        assert "budget" in error["message"]


def test_7_nothing_grows_with_what_is_asked(serving, lm):
    served = serving(lm)
    for number in range(12):
        options = {"decoder": "whole x ancestral + remask", "eta": number / 20, "steps": 2}
        assert served.post(TEXT, prompt="x", max_tokens=3, seed=number, diffusion=options).is_success
        assert served.post(
            TEXT, prompt="x", max_tokens=3, diffusion={"decoder": "whole x " + "quota + " * number + "quota"}
        )
    assert not served.engine._crowds
    assert not served.worker._where
    assert not served.worker._active
    assert len(served.engine._readings) <= 1


def test_8_no_number_makes_one_request_into_thousands(toy):
    limits = Limits()
    for path, body, param in (
        (TEXT, {"prompt": "x", "n": 2**62}, "n"),
        (TEXT, {"prompt": ["x"] * 10_000}, "prompt"),
        (TEXT, {"prompt": "x", "stop": ["a"] * 10_000}, "stop"),
        (TEXT, {"prompt": "x", "diffusion": {"steps": 2**40}}, "diffusion.steps"),
        ("/v1/infill", {"segments": [{"mask": {"min": 1, "max": 1}}] * 10_000}, "segments"),
        ("/v1/score", {"text": "abc", "samples": 2**40}, "samples"),
        ("/detokenize", {"tokens": [5] * (limits.prompt_tokens + 1)}, "tokens"),
    ):
        error = toy.post(path, **body).json()["error"]
        assert (error["code"], error["param"]) == ("limit_exceeded", param)
    costly = {"decoder": "whole x quota", "steps": limits.steps}
    error = toy.post(TEXT, prompt=["x"] * 32, n=8, max_tokens=90, diffusion=costly).json()["error"]
    assert (error["code"], error["param"]) == ("limit_exceeded", "diffusion.steps")


def test_9_log_probabilities_are_bounded(toy):
    assert toy.post(CHAT, messages=USER, logprobs=True, top_logprobs=21).status_code == 400
    assert toy.post(TEXT, prompt="x", logprobs=10**6).status_code == 400
    assert toy.post(TEXT, prompt="x", prompt_logprobs=1).json()["error"]["param"] == "prompt_logprobs"


def test_10_ids_out_of_range_reach_nobody(serving, lm):
    served = serving(lm, gated=True)
    answers = []
    ask = {"prompt": "def add(", "max_tokens": 8}
    thread = threading.Thread(target=lambda: answers.append(served.post(TEXT, **ask)))
    thread.start()
    for wrong in ([lm.model.vocab.size], [2**31 - 1], [2**63], [-1]):
        assert served.post(TEXT, prompt=wrong).status_code == 400
        assert served.post("/v1/score", text=wrong).status_code == 400
    assert served.post(TEXT, prompt="x", pins={"999999999": "a"}).status_code == 400
    assert served.post(TEXT, prompt="x", logit_bias={"-1": 100}).status_code == 400
    served.gate.open()
    thread.join(60)
    assert answers[0].json()["choices"][0]["text"] == lm.generate("def add(", length=8).completion


def test_11_no_request_ends_the_engine(serving, lm):
    served = serving(lm, gated=True)
    served.gate.poison = poison = lm.tokenizer.encode("🙂")[-1]
    results = {}
    asks = {"good": "def add(", "bad": [*lm.reader.start, poison], "other": "import os"}

    def ask(name):
        results[name] = served.post(TEXT, prompt=asks[name], max_tokens=8, temperature=1.0)

    threads = [threading.Thread(target=ask, args=[name]) for name in asks]
    for thread in threads:
        thread.start()
    until(lambda: served.worker.num_open == 3)
    served.gate.open()
    for thread in threads:
        thread.join(60)
    assert results["bad"].status_code == 500
    for name in ("good", "other"):
        alone = lm.generate(asks[name], length=8, temperature=1.0).completion
        assert results[name].json()["choices"][0]["text"] == alone
    assert served.worker.state == "ready"
    assert served.post(TEXT, prompt="", max_tokens=8).status_code == 400


def test_12_no_path_and_no_host_gets_around_the_keys(serving, lm):
    served = serving(lm, keys=["right"])
    client = TestClient(served.guard, base_url=LOCAL)
    for path in ("/v1/models", "//v1/models", "/%2e/v1/models", "/health/../v1/models", "/health%2f..%2fv1/models"):
        for host in ("127.0.0.1", "127.0.0.1/health?", "x/health#"):
            assert client.get(path, headers={"host": host}).status_code in (401, 404), path
            assert client.get(path, headers={"host": host}).status_code == 401
    assert client.request("POST", "/health", json={}).status_code == 401
    assert client.request("OPTIONS", "/v1/models").status_code == 401
    source = inspect.getsource(guard)
    assert ".url" not in source  # of which the Host header is a part
    assert len(routes.ROUTERS) == 8


def test_13_nobody_is_let_in_from_outside_without_a_key():
    with pytest.raises(BadInput, match="reached by others"):
        serve(lambda: None, host="0.0.0.0")
    assert inspect.signature(serve).parameters["host"].default == "127.0.0.1"


def test_14_no_page_in_a_browser_can_ask(toy):
    for headers in ({"host": "rebound.example"}, {"origin": "https://evil.example"}, {"origin": "null"}):
        answer = toy.client.post(TEXT, json={"prompt": "x"}, headers=headers)
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers
    simple = toy.client.post(TEXT, content=b'{"prompt": "x"}', headers={"content-type": "text/plain"})
    assert simple.status_code == 400
    assert "set-cookie" not in toy.client.get("/health").headers


def test_15_nothing_is_fetched_for_a_request(toy, monkeypatch):
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}]}]
    assert toy.post(CHAT, messages=image).status_code == 400
    assert toy.post(TEXT, model="http://127.0.0.1/x", prompt="x").status_code == 404
    assert not {"requests", "httpx", "httpx2", "urllib", "aiohttp"} & imports("serve")
    answer = toy.client.get("/health", headers={"x-request-id": "http://169.254.169.254/"})
    assert re.fullmatch(r"[0-9a-f]{24}", answer.headers["x-request-id"])


def test_16_bodies_are_counted_before_they_are_read(serving, lm):
    served = serving(lm, body_bytes=5000)
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    assert served.client.post(TEXT, content=b"x" * 5001, headers=headers).status_code == 413
    deep = b'{"prompt":' + b"[" * 4000
    assert served.client.post(TEXT, content=deep, headers={"content-type": "application/json"}).status_code == 400
    form = {"content-type": "multipart/form-data; boundary=x"}
    assert served.client.post(TEXT, content=b"--x--", headers=form).status_code == 400


def test_17_labels_are_a_fixed_set(toy):
    for number in range(5):
        toy.client.get(f"/nothing/{number}")
        toy.client.get(f"/v1/models/m{number}")
        toy.client.request(f"METHOD{number}", "/v1/models", headers={"content-type": "application/json"})
        toy.post(TEXT, prompt="x", model=f"m{number}", user=f"u{number}")
    text = toy.client.get("/metrics").text
    for word in ("nothing", "m1", "METHOD", "u1"):
        assert not re.search(rf'"[^"]*{word}[^"]*"', text)


def test_18_time_tells_no_key_and_no_prompt():
    source = inspect.getsource(guard.Keys)
    assert "compare_digest" in source
    assert "break" not in source
    keys = guard.Keys(["a", "b"])
    owners = {keys.owner({b"x-api-key": k}) for k in (b"a", b"b")}
    assert len(owners) == 2
    assert (
        keys.owner({b"x-api-key": b"c"}) is keys.owner({}) is None
    )  # what is shared, is within a key: test_operations


def test_19_answers_are_data_and_nothing_that_a_browser_would_run(toy):
    bad = "<script>alert(1)</script>"
    for answer in (
        toy.post(TEXT, prompt=bad, max_tokens=2),
        toy.post(TEXT, prompt="x", **{bad: 1}),
        toy.client.get(f"/{bad}"),
        toy.post(TEXT, prompt="x", model=bad),
    ):
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_20_what_one_row_leaves_is_not_seen_by_the_next(serving, block_lm):
    """Memory of a canvas or a page that is used again holds nothing of who had it before."""
    served = serving(block_lm, rows=1, cache_positions=96)
    options = {"decoder": "block x threshold"}
    for _ in range(2):
        served.post(TEXT, prompt="a secret that nobody may see " * 3, max_tokens=10, diffusion=options)
        said = served.post(TEXT, prompt="def", max_tokens=10, diffusion=options).json()["choices"][0]["text"]
        assert said == block_lm.generate("def", length=10, **options).completion


def test_literal_masks_are_text(toy):
    for word in ("<|mask|>", "[MASK]", "<|eos|>"):
        said = toy.post("/tokenize", prompt=word).json()["tokens"]
        assert not set(said) & toy.lm.model.vocab.specials
        assert toy.post(TEXT, prompt=word, max_tokens=2).json()["choices"][0]["finish_reason"] == "length"


def test_the_guard_holds_when_python_is_told_to_be_fast(tmp_path):
    """`python -O` takes assertions out; the keys are none."""
    code = """
import asyncio, json
from unmask.serve.guard import Guard, Keys
from unmask.serve.limits import Limits
from unmask.serve.metrics import Metrics
sent = []
async def send(message): sent.append(message)
async def app(scope, receive, send): raise SystemExit("inside")
scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": [(b"host", b"localhost")]}
asyncio.run(Guard(app, Keys(["k"]), Limits(), Metrics())(scope, None, send))
print(sent[0]["status"])
"""
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert done.stdout.strip() == "401", done.stderr
