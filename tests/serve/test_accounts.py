"""What answers tell beside their text: log-probabilities, usage, what was chosen; all of it is so."""

import math
import re

import pytest
from serving import events, serving, toy

from unmask.lm.model import LanguageModel
from unmask.serve.routes.llama import indented

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "def add("}]
SHARP = {"temperature": 1.0, "seed": 7}


class TestAccount:
    def test_usage(self, toy):
        said = toy.post("/v1/completions", prompt="def add(", max_tokens=12, n=2, **SHARP).json()["usage"]
        outs = toy.lm.generate("def add(", length=12, n=2, **SHARP)
        start = len(toy.lm.reader.start)
        assert said["prompt_tokens"] == start + len(toy.lm.tokenizer.encode("def add("))
        assert said["completion_tokens"] == sum(len(o.tokens) for o in outs)
        assert said["total_tokens"] == said["prompt_tokens"] + said["completion_tokens"]
        assert said["forwards"] == sum(o.stats.forwards for o in outs)
        assert said["tokens_per_forward"] == pytest.approx(said["completion_tokens"] / said["forwards"], abs=1e-4)
        assert said["edits"] == sum(o.stats.edits for o in outs)

    def test_what_became_of_a_target(self, toy):
        ask = {"prompt": "a", "max_tokens": 24, "eos": "forbid", "n": 2}
        decoder = {"decoder": "whole x quota", "steps": 24}
        said = toy.post("/v1/completions", **ask, diffusion={**decoder, "latency_s": 1e-6}).json()
        for eased in said["usage"]["eased"]:
            assert (eased["target_s"], eased["kept"], eased["effort"]) == (1e-6, False, "instant")
            assert eased["took_s"] > 0 < eased["steps"]
            assert eased["numbers"]
        plenty = toy.post("/v1/completions", **ask, diffusion={**decoder, "latency_s": 250}).json()
        untimed = toy.post("/v1/completions", **ask, diffusion=decoder).json()
        assert said["usage"]["forwards"] < untimed["usage"]["forwards"]
        assert [(e["kept"], e["steps"], e["numbers"]) for e in plenty["usage"]["eased"]] == [(True, 0, {})] * 2
        assert plenty["choices"] == untimed["choices"]
        assert "eased" not in untimed["usage"]

    def test_what_was_chosen_is_told(self, serving, block_lm):
        served = serving(block_lm)
        ask = {"prompt": "def add(", "max_tokens": 12}
        said, own = (
            served.post("/v1/completions", **ask, diffusion={"decoder": "sdar", **how}).json()
            for how in ({"block": "auto"}, {})
        )
        assert said["choices"] == own["choices"]
        assert said["usage"]["chosen"] == {"block": 8}
        assert "chosen" not in own["usage"]
        said, wrong = (
            served.post("/v1/completions", **ask, diffusion={"decoder": "d2f", "blocks": n}) for n in ("auto", "all")
        )
        number = said.json()["usage"]["chosen"]["blocks"]
        again = served.post("/v1/completions", **ask, diffusion={"decoder": "d2f", "blocks": number}).json()
        assert (again["choices"], number in (1, 2, 4, 8)) == (said.json()["choices"], True)
        assert wrong.status_code == 400
        assert wrong.json()["error"]["param"].startswith("diffusion.blocks")

    def test_an_audit_is_told(self, toy):
        options = {"decoder": "fast-dllm-dual", "block": 8, "audit": 1}
        ask = {"prompt": "def add(", "max_tokens": 16, "eos": "forbid"}
        said = toy.post("/v1/completions", **ask, diffusion=options).json()
        out = toy.lm.generate("def add(", length=16, eos="forbid", **options)
        (drift,) = said["usage"]["drift"]
        assert drift["targets"] > 0
        assert drift["mean_tv"] == pytest.approx(out.stats.drift.mean_tv)
        assert drift["flips"] == out.stats.drift.flips
        plain = toy.post("/v1/completions", **ask, diffusion=options | {"audit": None}).json()
        assert plain["choices"] == said["choices"]
        assert "drift" not in plain["usage"]

    def test_what_one_layer_read_is_counted_and_refused_where_nobody_can_be_asked(self, serving, lm, monkeypatch):
        served, ask = serving(lm), {"prompt": "a", "max_tokens": 16}
        kept = {"decoder": "fast-dllm-dual", "block": 8}
        assert served.post("/v1/completions", **ask, diffusion={**kept, "refresh": 3}).status_code == 200
        assert served.metric("unmask_glimpsed_total") == 0
        assert served.post("/v1/completions", **ask, diffusion={**kept, "drift": 0.01}).status_code == 200
        assert served.metric("unmask_glimpsed_total") > 16
        monkeypatch.setattr(type(lm.model), "first_layer", None)
        answer = served.post("/v1/completions", **ask, diffusion={**kept, "drift": 0.01})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (400, "unsupported", "diffusion.drift")
        assert "use refresh, which counts forwards" in error["message"]

    def test_edits_are_counted(self, toy):
        options = {"decoder": "whole x ancestral + remask", "steps": 12, "eta": 0.9}
        said = toy.post("/v1/completions", prompt="a", max_tokens=12, diffusion=options).json()["usage"]
        assert said["edits"] == toy.lm.generate("a", length=12, **options).stats.edits > 0

    def test_cached_tokens(self, serving, block_lm):
        served = serving(block_lm)
        ask = {
            "prompt": "def add(a, b):\n    return a + b\n" * 3,
            "max_tokens": 4,
            "diffusion": {"decoder": "block x threshold"},
        }
        first, again = (served.post("/v1/completions", **ask).json() for _ in range(2))
        cached = [said["usage"]["prompt_tokens_details"]["cached_tokens"] for said in (first, again)]
        assert cached[0] == 0 < cached[1] <= again["usage"]["prompt_tokens"]
        assert first["choices"] == again["choices"]

    def test_log_probabilities_of_a_chat(self, toy):
        said = toy.post(
            "/v1/chat/completions", messages=CHAT, max_tokens=12, logprobs=True, top_logprobs=20, **SHARP
        ).json()["choices"][0]
        out = toy.lm.generate(CHAT, chat=True, length=12, **SHARP, top_logprobs=20)
        content = said["logprobs"]["content"]
        assert [e["logprob"] for e in content] == out.logprobs
        assert [e["step"] for e in content] == [c.step for c in out.changes]
        spelled, unsaid = toy.lm.tokenizer.token_bytes, {}
        assert [e["bytes"] for e in content] == [list(spelled[t]) for t in out.tokens]
        for entry, rank in zip(content, out.top_logprobs, strict=True):
            assert len(entry["top_logprobs"]) == 20
            assert [e["logprob"] for e in entry["top_logprobs"]] == [value for _, value in rank]
            assert [e["bytes"] for e in entry["top_logprobs"]] == [list(spelled[t]) or None for t, _ in rank]
            for told, token in [(entry, None), *zip(entry["top_logprobs"], [t for t, _ in rank], strict=True)]:
                assert set(told) >= {"token", "bytes", "logprob"}
                if told["bytes"] is None:
                    unsaid[told["token"]] = token
                elif told["token"].startswith("bytes:"):
                    assert told["token"] == "bytes:" + "".join(f"\\x{one:02x}" for one in told["bytes"])
                else:
                    assert told["token"].encode() == bytes(told["bytes"])
        assert unsaid in ({}, {"<|eos|>": toy.lm.model.vocab.eos})
        none = toy.post("/v1/chat/completions", messages=CHAT, max_tokens=12, logprobs=True, **SHARP).json()
        assert [e["top_logprobs"] for e in none["choices"][0]["logprobs"]["content"]] == [[]] * len(content)
        assert len({e["step"] for e in content}) > 1

    def test_log_probabilities_of_a_completion(self, toy):
        said = toy.post("/v1/completions", prompt="a", max_tokens=12, logprobs=5, **SHARP).json()["choices"][0]
        out, told = toy.lm.generate("a", length=12, **SHARP, top_logprobs=5), said["logprobs"]
        assert told["token_logprobs"] == out.logprobs
        assert told["steps"] == [c.step for c in out.changes]
        assert told["text_offset"][0] == 0
        assert len(told["tokens"]) == len(told["text_offset"]) == len(told["top_logprobs"]) == len(out.tokens)
        for token, value, names, rank in zip(
            told["tokens"], told["token_logprobs"], told["top_logprobs"], out.top_logprobs, strict=True
        ):
            assert names[token] == value
            assert set(names.values()) == {value, *(nats for _, nats in rank)}
            assert len(names) in (5, 6)

    @pytest.mark.parametrize("stream", [False, True])
    def test_a_bias(self, toy, stream):
        out = toy.lm.generate("a", length=12, logit_bias={20: 9.5, 31: -100, 44: 3})
        plain = toy.lm.generate("a", length=12)
        assert out.completion != plain.completion
        ask = {"prompt": "a", "max_tokens": 12, "stream": stream}
        said = toy.post("/v1/completions", **ask, logit_bias={"20": 9.5, "31": -100, "44": 3})
        told = [one for _, one in events(said.text)[:-1]] if stream else [said.json()]
        assert "".join(one["choices"][0]["text"] for one in told) == out.completion
        said = toy.post("/v1/completions", **{**ask, "stream": False}, logit_bias={})
        assert said.json()["choices"][0]["text"] == plain.completion

    def test_a_bias_of_what_stands_between(self, toy):
        (x,) = toy.lm.tokenizer.encode("x")
        bias = {"logit_bias": {str(x): 100}}
        ask = {"segments": [{"text": "a"}, {"mask": {"min": 3, "max": 3}}, {"text": "b"}]}
        assert toy.post("/v1/infill", **ask, **bias).json()["choices"][0]["text"] == "axxxb"
        said = toy.post("/v1/completions", prompt="a", suffix="b", max_tokens=3, **bias).json()["choices"][0]
        assert set(said["text"]) == {"x"}
        said = toy.post("/v1/refine", text="import os", spans=[[7, 9]], **bias).json()["choices"][0]
        assert set(said["text"].removeprefix("import ")) == {"x"}

    def test_a_log_probability_is_that_of_the_step(self, toy):
        """One token at a time at temperature 0: the network is asked again for what it saw."""
        options = {"decoder": "whole x quota", "steps": 4}
        said = toy.post("/v1/completions", prompt="def", max_tokens=4, eos="keep", logprobs=0, diffusion=options).json()
        told, ids = said["choices"][0]["logprobs"], toy.lm.generate("def", length=4, eos="keep", **options).tokens
        vocab = toy.lm.model.vocab
        given = [*toy.lm.reader.start, *toy.lm.tokenizer.encode("def")]
        for at, (step, value) in enumerate(zip(told["steps"], told["token_logprobs"], strict=True)):
            seen = [t if s < step else vocab.mask for t, s in zip(ids, told["steps"], strict=True)]
            logits = toy.lm.logits([[*given, *seen]])[0, len(given) + at].double()
            logits[[vocab.mask, *({vocab.bos, vocab.pad} - {None})]] = -math.inf
            assert float(logits.log_softmax(-1)[ids[at]]) == pytest.approx(value, abs=1e-4)

    def test_a_score(self, toy):
        said = toy.post("/v1/score", text="def add(a", given="import os\n", samples=8, seed=3).json()
        s = toy.lm.score("def add(a", given="import os\n", samples=8, seed=3)
        assert (said["nats"], said["stderr"], said["tokens"]) == (s.nats, s.stderr, s.tokens)
        assert said["bits_per_byte"] == s.bits_per_byte
        assert said["bound"] is True

    def test_a_model_without_a_tokenizer_speaks_ids(self, serving, lm):
        silent = LanguageModel(lm.model, name="silent")
        served = serving(silent)
        said = served.post("/v1/completions", prompt=[2, 9, 8], max_tokens=6, logprobs=0).json()["choices"][0]
        assert said["token_ids"] == silent.generate([2, 9, 8], length=6).tokens
        assert served.post("/v1/completions", prompt="x").json()["error"]["param"] == "prompt"
        assert served.post("/v1/completions", prompt=[9], stream=True).json()["error"]["param"] == "stream"
        for path, body in (("/v1/chat/completions", {"messages": CHAT}), ("/tokenize", {"prompt": "x"})):
            assert served.post(path, **body).status_code == 400

    def test_models(self, toy):
        (card,) = toy.client.get("/v1/models").json()["data"]
        assert card["id"] == "toy"
        assert card["max_model_len"] == toy.lm.model.max_length
        assert card["capabilities"]["fim"]
        assert toy.client.get("/v1/models/toy").json() == card
        assert toy.client.get("/v1/models/none").status_code == 404

    def test_answers_are_the_same_again(self, toy):
        ask = {"prompt": "a", "max_tokens": 12, "temperature": 1.0}
        texts = [toy.post("/v1/completions", seed=seed, **ask).json()["choices"] for seed in (1, 1, 2)]
        assert texts[0] == texts[1] != texts[2]
        ids = [toy.post("/v1/completions", **ask).json()["id"] for _ in range(2)]
        assert ids[0] != ids[1]
        assert all(re.fullmatch(r"cmpl-[0-9a-f]{24}", id) for id in ids)
