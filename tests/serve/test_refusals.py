"""Bad input of every kind: the right status, the field named, OpenAI's shape; never a 422, never silence."""

import pytest
from serving import serving, toy

CHAT, TEXT, FIM, EDIT, APPLY = (
    f"/v1/{p}" for p in ("chat/completions", "completions", "fim/completions", "edit/completions", "apply/completions")
)
INFILL, REFINE, SCORE, LLAMA = "/v1/infill", "/v1/refine", "/v1/score", "/infill"
USER = [{"role": "user", "content": "x"}]
HOLE = {"mask": {"min": 1, "max": 2}}

WRONG = [
    # what is not there, or not known
    (CHAT, {}, "messages"),
    (TEXT, {}, "prompt"),
    (REFINE, {}, "text"),
    (INFILL, {}, "segments"),
    (SCORE, {}, "text"),
    ("/tokenize", {}, "prompt"),
    ("/detokenize", {}, "tokens"),
    (CHAT, {"messages": USER, "frobnicate": 1}, "frobnicate"),
    (TEXT, {"prompt": "x", "diffusing": True}, "diffusing"),
    (TEXT, {"prompt": "x", "diffusion": {"stepz": 3}}, "diffusion.stepz"),
    (CHAT, {"messages": [{"role": "user", "content": "x", "name": "n"}]}, "messages[0].name"),
    (CHAT, {"messages": USER, "stream": True, "stream_options": {"foo": 1}}, "stream_options.foo"),
    (INFILL, {"segments": [{"mask": {"min": 1, "max": 2, "mean": 1}}]}, "segments[0].mask.mean"),
    (CHAT, {"messages": USER, "chat_template": "{{ 7 }}"}, "chat_template"),
    (CHAT, {"messages": USER, "chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs"),
    # types and ranges
    (CHAT, {"messages": "hi"}, "messages"),
    (CHAT, {"messages": []}, "messages"),
    (CHAT, {"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
    (CHAT, {"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    (CHAT, {"messages": [{"role": "user"}]}, "messages[0].content"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content[0].type",
    ),
    (
        CHAT,
        {"messages": [{"role": "assistant", "content": "x", "annotations": [{}]}, *USER]},
        "messages[0].annotations",
    ),
    (CHAT, {"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
    (CHAT, {"messages": USER, "stop": ["a", "half \ud83d"]}, "stop"),
    (INFILL, {"segments": [{"text": "x"}]}, "segments"),
    (REFINE, {"text": ""}, "text"),
    (SCORE, {"text": "x", "given": "y " * 2000, "samples": 1}, "given"),
    (SCORE, {"text": "x " * 2000, "given": "y", "samples": 1}, "text"),
    (TEXT, {"prompt": ""}, "prompt"),
    (TEXT, {"prompt": []}, "prompt"),
    (TEXT, {"prompt": ["a", ""]}, "prompt"),
    (TEXT, {"prompt": [[]]}, "prompt"),
    (TEXT, {"prompt": 7}, "prompt"),
    (TEXT, {"prompt": None}, "prompt"),
    (TEXT, {"prompt": [99999999]}, "prompt"),
    (TEXT, {"prompt": [-1]}, "prompt[0]"),
    (TEXT, {"prompt": [True]}, "prompt[0]"),
    (TEXT, {"prompt": "half a pair \ud83d"}, "prompt"),
    (TEXT, {"prompt": "x", "max_tokens": 0}, "max_tokens"),
    (TEXT, {"prompt": "x", "max_tokens": -3}, "max_tokens"),
    (TEXT, {"prompt": "x", "max_tokens": 2.5}, "max_tokens"),
    (TEXT, {"prompt": "x", "max_tokens": "5"}, "max_tokens"),
    (TEXT, {"prompt": "x", "max_tokens": 100000}, "max_tokens"),
    (TEXT, {"prompt": "x", "max_tokens": 2**31}, "max_tokens"),
    (TEXT, {"prompt": "x " * 2000, "max_tokens": 2**31}, "max_tokens"),
    (TEXT, {"prompt": "x " * 2000, "max_tokens": 5}, "prompt"),
    (TEXT, {"prompt": "x", "suffix": "y", "max_tokens": 2**31}, "max_tokens"),
    (TEXT, {"prompt": "x", "suffix": "y " * 2000, "max_tokens": 5}, "suffix"),
    (FIM, {"prompt": "x", "max_tokens": 2**31}, "max_tokens"),
    (CHAT, {"messages": USER, "max_tokens": 2**31}, "max_tokens"),
    (CHAT, {"messages": USER, "max_completion_tokens": 2**31}, "max_completion_tokens"),
    (LLAMA, {"input_prefix": "x", "n_predict": 2**31}, "n_predict"),
    (LLAMA, {"input_prefix": "x", "input_suffix": "y", "n_predict": 2**31}, "n_predict"),
    (TEXT, {"prompt": "x", "temperature": 10**400}, "temperature"),
    (TEXT, {"prompt": "x", "diffusion": {"top_k": 10**400}}, "diffusion.top_k"),
    (TEXT, {"prompt": "x", "n": 10**400}, "n"),
    (TEXT, {"prompt": "x", "suffix": "y", "max_tokens": 10**400}, "max_tokens"),
    (TEXT, {"prompt": "x" * 5000}, "prompt"),
    (TEXT, {"prompt": "x", "max_tokens": 4, "min_tokens": 5}, "min_tokens"),
    (TEXT, {"prompt": "x", "n": 0}, "n"),
    (TEXT, {"prompt": "x", "n": 9}, "n"),
    (TEXT, {"prompt": "x", "n": 10**30}, "n"),
    (TEXT, {"prompt": ["x"] * 33}, "prompt"),
    (TEXT, {"prompt": "x", "seed": 2**63}, "seed"),
    (TEXT, {"prompt": "x", "seed": "1"}, "seed"),
    (TEXT, {"prompt": "x", "temperature": -1}, "temperature"),
    (TEXT, {"prompt": "x", "temperature": "hot"}, "temperature"),
    (TEXT, {"prompt": "x", "top_p": 0}, "top_p"),
    (TEXT, {"prompt": "x", "top_p": 1.5}, "top_p"),
    (TEXT, {"prompt": "x", "stop": [""]}, "stop"),
    (TEXT, {"prompt": "x", "stop": ["a"] * 17}, "stop"),
    (TEXT, {"prompt": "x", "stop": "a" * 257}, "stop"),
    (TEXT, {"prompt": "x", "stop": 3}, "stop"),
    (TEXT, {"prompt": "x", "pins": {"one": "a"}}, "pins"),
    (TEXT, {"prompt": "x", "pins": {"900": "a"}}, "pins"),
    (TEXT, {"prompt": "x", "eos": "never"}, "eos"),
    (TEXT, {"prompt": "x", "stream": "yes"}, "stream"),
    # decoding options
    (TEXT, {"prompt": "x", "diffusion": 3}, "diffusion"),
    (TEXT, {"prompt": "x", "diffusion": {"threshold": 2}}, "diffusion.threshold"),
    (TEXT, {"prompt": "x", "diffusion": {"steps": 0}}, "diffusion.steps"),
    (TEXT, {"prompt": "x", "diffusion": {"steps": 10**9}}, "diffusion.steps"),
    (TEXT, {"prompt": "x", "diffusion": {"rank": "beauty"}}, "diffusion.rank"),
    (TEXT, {"prompt": "x", "diffusion": {"eta": 0.5}}, "diffusion.eta"),
    (TEXT, {"prompt": "x", "diffusion": {"decoder": "magic"}}, "diffusion.decoder"),
    (TEXT, {"prompt": "x", "diffusion": {"decoder": "whole x magic"}}, "diffusion.decoder"),
    (TEXT, {"prompt": "x", "diffusion": {"decoder": "block x threshold"}}, "diffusion.decoder"),
    (TEXT, {"prompt": "x", "diffusion": {"decoder": "w" * 300}}, "diffusion.decoder"),
    (TEXT, {"prompt": "x", "diffusion": {"deadline_s": 0}}, "diffusion.deadline_s"),
    (TEXT, {"prompt": "x", "diffusion": {"deadline_s": 1e9}}, "diffusion.deadline_s"),
    (TEXT, {"prompt": "x", "diffusion": {"latency_s": 0}}, "diffusion.latency_s"),
    (TEXT, {"prompt": "x", "diffusion": {"latency_s": 1, "decoder": "whole x everything"}}, "diffusion.latency_s"),
    (CHAT, {"messages": USER, "reasoning_effort": "utmost"}, "reasoning_effort"),
    (CHAT, {"messages": USER, "reasoning_effort": "low", "diffusion": {"effort": "low"}}, "reasoning_effort"),
    (
        CHAT,
        {"messages": USER, "reasoning_effort": "low", "diffusion": {"decoder": "whole x everything"}},
        "reasoning_effort",
    ),
    (TEXT, {"prompt": "x", "reasoning_effort": "low"}, "reasoning_effort"),
    (TEXT, {"prompt": "x", "temperature": 1, "diffusion": {"temperature": 1}}, "temperature"),
    # what can't be honoured
    (CHAT, {"messages": USER, "tools": [{"type": "function"}]}, "tools[0].function"),
    (CHAT, {"messages": USER, "tool_choice": "required"}, "tool_choice"),
    (CHAT, {"messages": USER, "response_format": {"type": "json_schema"}}, "response_format"),
    (
        CHAT,
        {"messages": USER, "response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        "response_format.json_schema.schema",
    ),
    (CHAT, {"messages": USER, "response_format": {"type": "xml"}}, "response_format.type"),
    (CHAT, {"messages": USER, "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    (CHAT, {"messages": USER, "top_logprobs": 1}, "top_logprobs"),
    (CHAT, {"messages": USER, "logit_bias": {"10000000": 1}}, "logit_bias"),
    (CHAT, {"messages": USER, "logit_bias": {"-1": 1}}, "logit_bias"),
    (CHAT, {"messages": USER, "logit_bias": {"a": 1}}, "logit_bias"),
    (CHAT, {"messages": USER, "logit_bias": {"9": 1, "09": 1}}, "logit_bias"),
    (CHAT, {"messages": USER, "logit_bias": {"9": 100.5}}, "logit_bias"),
    (CHAT, {"messages": USER, "logit_bias": {"9": 10**400}}, "logit_bias.9"),
    (CHAT, {"messages": USER, "logit_bias": {"9": "1"}}, "logit_bias.9"),
    (CHAT, {"messages": USER, "logit_bias": {"0": 1}}, "logit_bias"),  # the mask
    (CHAT, {"messages": USER, "logit_bias": [[9, 1]]}, "logit_bias"),
    (CHAT, {"messages": USER, "logit_bias": {str(i): 1 for i in range(301)}}, "logit_bias"),
    (TEXT, {"prompt": "x", "suffix": "y", "logit_bias": {"1": 1}}, "logit_bias"),  # no end of text before a suffix
    (INFILL, {"segments": [HOLE], "logit_bias": {"10000000": 1}}, "logit_bias"),
    (REFINE, {"text": "abc", "logit_bias": {"10000000": 1}}, "logit_bias"),
    (CHAT, {"messages": USER, "frequency_penalty": 0.5}, "frequency_penalty"),
    (CHAT, {"messages": USER, "presence_penalty": 1}, "presence_penalty"),
    (CHAT, {"messages": USER, "store": True}, "store"),
    (CHAT, {"messages": USER, "max_tokens": 3, "max_completion_tokens": 3}, "max_tokens"),
    (TEXT, {"prompt": "x", "logprobs": 6}, "logprobs"),
    (TEXT, {"prompt": "x", "diffusion": {"top_logprobs": 3}}, "diffusion.top_logprobs"),
    (TEXT, {"prompt": "x", "echo": True}, "echo"),
    (TEXT, {"prompt": "x", "best_of": 2}, "best_of"),
    (TEXT, {"prompt": ["x", "y"], "suffix": "z"}, "prompt"),
    (TEXT, {"prompt": "x", "suffix": "z", "eos": "forbid"}, "eos"),
    (FIM, {"prompt": "", "suffix": ""}, "prompt"),
    (FIM, {"prompt": "x", "repetition_penalty": 1.2}, "repetition_penalty"),
    # llama.cpp's
    (LLAMA, {}, "input_prefix"),
    (LLAMA, {"input_prefix": "x" * 5000, "input_suffix": "y"}, "input_suffix"),
    (LLAMA, {"input_prefix": "x", "input_suffix": "y", "samplers": ["mirostat"]}, "samplers"),
    (LLAMA, {"input_prefix": "x", "input_suffix": "y", "samplers": []}, "samplers"),
    (LLAMA, {"input_prefix": "x", "input_suffix": "y", "stream": True}, "stream"),
    (LLAMA, {"input_prefix": "x", "input_suffix": "y", "n": 2}, "n"),
    (LLAMA, {"input_prefix": "x", "input_suffix": "y", "n_predict": -2}, "n_predict"),
    (LLAMA, {"input_prefix": "x", "input_suffix": "y", "grammar": "root ::= x"}, "grammar"),
    (LLAMA, {"input_prefix": "x", "input_extra": [{"filename": "a.py"}]}, "input_extra[0].text"),
    (
        LLAMA,
        {"input_prefix": "x", "t_max_predict_ms": 9, "diffusion": {"decoder": "whole x everything"}},
        "t_max_predict_ms",
    ),
    # holes and spans
    (INFILL, {"segments": []}, "segments"),
    (INFILL, {"segments": [{"text": "x"}]}, "segments"),
    (INFILL, {"segments": [{}]}, "segments[0]"),
    (INFILL, {"segments": [{"text": "a", **HOLE}]}, "segments[0]"),
    (INFILL, {"segments": [{"mask": {"min": 3, "max": 2}}]}, "segments[0].mask"),
    (INFILL, {"segments": [{"mask": {"min": 0, "max": 2}}]}, "segments[0].mask.min"),
    (INFILL, {"segments": [{"mask": {"min": 1, "max": 10**6}}]}, "segments"),
    (INFILL, {"segments": [{"mask": {"min": 2**30, "max": 2**31}}]}, "segments"),
    (INFILL, {"segments": [HOLE, {**HOLE, "regex": "(a"}]}, "segments[1].regex"),
    (INFILL, {"segments": [{**HOLE, "schema": {"type": 3}}]}, "segments[0].schema"),
    (INFILL, {"segments": [{"text": "a", "regex": "a"}]}, "segments[0].regex"),
    (INFILL, {"segments": [HOLE] * 65}, "segments"),
    (REFINE, {"text": "abc", "spans": [[0, 4]]}, "spans"),
    (REFINE, {"text": "abc", "spans": [[2, 1]]}, "spans"),
    (REFINE, {"text": "abc", "spans": [[0, 2], [1, 3]]}, "spans"),
    (REFINE, {"text": "abc", "spans": [[0]]}, "spans[0]"),
    (REFINE, {"text": "abc", "strength": 0}, "strength"),
    (REFINE, {"text": "abc", "strength": 1.5}, "strength"),
    (REFINE, {"text": "abc", "strength": 0.5, "length": 3}, "strength"),
    (REFINE, {"text": "abc", "length": 0}, "length"),
    (REFINE, {"text": "abc", "length": 2**31}, "length"),
    (REFINE, {"text": "abc", "length": [5, 2]}, "length"),
    (EDIT, {"messages": USER}, "messages[0].content"),
    (EDIT, {"messages": [*USER, *USER]}, "messages"),
    (EDIT, {"messages": [{"role": "system", "content": "x"}]}, "messages[0].role"),
    (EDIT, {"messages": USER, "stream": True}, "messages[0].content"),
    (EDIT, {"messages": USER, "stop": "x"}, "stop"),
    (APPLY, {"messages": USER}, "messages[0].content"),
    (SCORE, {"text": ""}, "text"),
    (SCORE, {"text": "x", "estimator": "guess"}, "estimator"),
    (SCORE, {"text": "x", "samples": 0}, "samples"),
    (SCORE, {"text": "x", "samples": 10**6}, "samples"),
    (SCORE, {"text": "x", "estimator": "ar"}, "text"),
    ("/detokenize", {"tokens": [10**7]}, "tokens"),
    ("/tokenize", {"prompt": "\udead"}, "prompt"),
]


def shaped(answer, status=400):
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert {*answer.json()} == {"error"}
    assert {*error} == {"message", "type", "param", "code"}
    assert error["message"]
    return error


@pytest.mark.parametrize(("path", "body", "param"), WRONG, ids=lambda x: None if isinstance(x, dict) else str(x))
def test_it_is_refused_by_name(toy, path, body, param):
    error = shaped(toy.post(path, **body))
    assert error["param"] == param, error
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [(p, b, q) for p, b, q in WRONG if p in (CHAT, TEXT, FIM) and "stream" not in b][::4],
    ids=lambda x: None if isinstance(x, dict) else str(x),
)
def test_so_is_a_stream_before_it_begins(toy, path, body, param):
    answer = toy.post(path, **{**body, "stream": True})
    assert shaped(answer)["param"] == param
    assert answer.headers["content-type"] == "application/json"


def test_another_model(toy):
    for path, body in ((CHAT, {"messages": USER}), (TEXT, {"prompt": "x"}), ("/tokenize", {"prompt": "x"})):
        error = shaped(toy.post(path, model="gpt-4", **body), 404)
        assert (error["param"], error["code"]) == ("model", "model_not_found")


@pytest.mark.parametrize("path", [TEXT, FIM])
def test_a_suffix_that_the_model_can_not_see(serving, ar_lm, path):
    error = shaped(serving(ar_lm).post(path, prompt="x", suffix="y"))
    assert (error["param"], error["code"]) == ("suffix", "unsupported")


def test_holes_that_the_model_can_not_see_behind(serving, ar_lm):
    served = serving(ar_lm)
    assert shaped(served.post(INFILL, segments=[HOLE]))["param"] == "segments"
    assert served.client.get("/v1/models").json()["data"][0]["capabilities"]["fim"] is False


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"3",
        b'"x"',
        b"\xff\xfe",
        b'{"prompt": NaN}',
        b'{"prompt": "x", "temperature": NaN}',
        b'{"prompt": "x", "temperature": Infinity}',
        b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"prompt": "\\ud800", "\\ud800": 1}',
    ],
    ids=lambda body: body[:12].decode("latin-1"),
)
def test_what_is_no_json_object(toy, body):
    shaped(toy.client.post(TEXT, content=body, headers={"content-type": "application/json"}))


def test_what_is_no_json_by_its_own_words(toy):
    for kind in ("text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded", ""):
        shaped(toy.client.post(TEXT, content=b'{"prompt": "x"}', headers={"content-type": kind}))


def test_routes_that_are_not_there(toy):
    shaped(toy.client.get("/v1/nothing"), 404)
    shaped(toy.client.get("/openapi.json/.."), 404)
    shaped(toy.post(f"{CHAT}/", messages=USER), 404)  # no redirect, which would be made of what the Host header says
    answer = toy.client.get(TEXT)
    shaped(answer, 405)
    assert answer.headers["allow"] == "POST"
    shaped(toy.client.delete("/v1/models", headers={"content-type": "application/json"}), 405)


def test_the_schema_says_what_refusals_look_like(toy):
    paths = toy.client.get("/openapi.json").json()["paths"]
    responses = [op["responses"] for path in paths.values() for op in path.values()]
    assert all("4XX" in one and "422" not in one for one in responses)


def test_every_known_option_is_in_the_schema(toy):
    from unmask.decode.options import OPTIONS

    known = toy.client.get("/openapi.json").json()["components"]["schemas"]["Diffusion"]["properties"]
    assert set(OPTIONS) < set(known)
    assert all(known[name]["description"] for name in OPTIONS)
