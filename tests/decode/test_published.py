"""Token-identical with the published samplers, forward by forward, on tiny random checkpoints (see tests/golden)."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import unmask
from unmask.base.canvas import Canvas
from unmask.decode.decoder import build
from unmask.decode.loop import denoise

GOLDEN = Path(__file__).parents[1] / "golden"
SAMPLERS = {
    "llada_generate": "llada",
    "fastdllm_generate": "fast-dllm",
    "fastdllm_prefix_cache": "fast-dllm-prefix",
    "fastdllm_dual_cache": "fast-dllm-dual",
}
RANKS = {"entropy": "entropy", "maskgit_plus": "confidence", "topk_margin": "margin"}


def llada(told):
    rule = next((k for k in ("threshold", "factor") if told.get(k)), "steps")
    guided = {"guidance": told["cfg_scale"]} if told.get("cfg_scale") else {}
    return {"decoder": SAMPLERS[told["sampler"]], "block": told["block_length"], rule: told[rule], **guided}


def dream(told):
    filters = {k: told[k] for k in ("top_p", "top_k") if k in told}
    return {"decoder": "dream", "steps": told["steps"], "rank": RANKS[told["alg"]], **filters}


def sdar(told):
    options = {"decoder": "sdar", "steps": told["denoising_steps"], "block": told["block_length"]}
    if told["remasking_strategy"] == "low_confidence_dynamic":
        options["threshold"] = told["confidence_threshold"]
    if told["remasking_strategy"] == "sequential":
        options["rank"] = "position"
    return options | ({"top_k": told["top_k"]} if "top_k" in told else {})


OPTIONS = {"llada": llada, "dream": dream, "sdar": sdar}


@cache
def checkpoint(name):
    folder = GOLDEN / f"sampler_{name}"
    cases = json.loads((folder / "cases.json").read_text())["cases"]
    return unmask.load(folder), load_file(folder / "golden.safetensors"), cases


class Case:
    """One published run: rows without their left padding, what to ask for, what has to come."""

    def __init__(self, family, name):
        self.lm, golden, cases = checkpoint(family)
        self.golden = {key.removeprefix(f"{name}."): v for key, v in golden.items() if key.startswith(f"{name}.")}
        self.told, self.nfe = cases[name]["settings"], int(self.golden["nfe"])
        real = self.golden["attention_mask"].bool()
        self.pads = (~real).sum(1).tolist()
        self.prompts = [ids[keep].tolist() for ids, keep in zip(self.golden["prompt_ids"], real, strict=True)]
        self.length = self.told.get("gen_length", self.told.get("max_new_tokens"))
        self.options = OPTIONS[family](self.told)
        self.output = self.golden["output_ids"][:, real.shape[1] :]  # as long as the published canvas

    def texts(self, length):
        outs = self.lm.generate(self.prompts, length=length, eos="keep", **self.options)
        return [out.tokens for out in outs], [out.stats.forwards for out in outs]

    def turns(self):
        """The canvas, and every turn on it, for rows as long as the published canvas."""
        model, width = self.lm.model, self.output.shape[1]
        options = {k: v for k, v in self.options.items() if k != "decoder"}
        decoder = build(self.options["decoder"], traits=model.traits, vocab=model.vocab, **options)
        rows = [([*p, *[0] * width], [False] * len(p) + [True] * width) for p in self.prompts]
        canvas = Canvas.of(rows, mask=model.vocab.mask)
        return canvas, denoise(model, canvas, decoder)

    def fed(self):
        """(forwards, B, L) what we feed, as the file has it."""
        canvas, turns = self.turns()
        forwards = []
        for turn in turns:
            at = torch.full((len(self.prompts), self.golden["fed"].shape[2]), -1)
            for row, positions, tokens in zip(*(x.tolist() for x in self._each(turn.plan)), strict=True):
                for position, token in zip(positions, tokens, strict=True):
                    if position >= 0:
                        at[row, position + self.pads[row]] = token
            forwards.append(at)
        return torch.stack(forwards), canvas

    @staticmethod
    def _each(plan):
        return plan.rows, plan.positions, plan.tokens


def names(family, without=()):
    return [n for n in checkpoint(family)[2] if not any(part in n for part in without)]


@pytest.mark.parametrize("name", names("llada", ["released"]))
def test_llada_and_fast_dllm(name):
    case = Case("llada", name)
    tokens, forwards = case.texts(case.length)
    assert tokens == case.output.tolist()
    assert forwards == [case.nfe] * len(tokens)
    ours, _ = case.fed()
    theirs = case.golden["fed"].clone()
    for row, pads in enumerate(case.pads):
        theirs[:, row, :pads] = -1  # hidden there, absent here
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", [n for n in names("llada") if "released" in n])
def test_the_released_factor_loop_takes_one_too_many(name):
    """Where it first does something else than the rule of the paper, it has taken exactly one token more than we."""
    case = Case("llada", name)
    ours, _ = case.fed()
    theirs = case.golden["fed"]
    differs = [i for i in range(len(theirs)) if not torch.equal(ours[i], theirs[i])]
    first, mask = differs[0], case.lm.model.vocab.mask
    assert first > 0
    both = (ours[first] != -1) & (theirs[first] != -1)  # its next block may have begun
    more = both & (ours[first] == mask) & (theirs[first] != mask)
    assert int(more.sum()) == 1
    assert torch.equal(both & (ours[first] != theirs[first]), more)


@pytest.mark.parametrize("name", names("dream"))
def test_dream(name):
    case = Case("dream", name)
    tokens, forwards = case.texts(case.length)
    assert tokens == case.output.tolist()
    assert all(spent <= case.nfe for spent in forwards)  # a step that takes nothing needs no forward of its own
    canvas, turns = case.turns()
    for _, state in zip(turns, case.golden["states"][1:], strict=True):
        for row, pads in enumerate(case.pads):
            real = state[row, pads:]
            assert torch.equal(canvas.tokens[row, : len(real)], real)


@pytest.mark.parametrize("name", names("sdar", ["partial"]))
def test_sdar(name):
    case = Case("sdar", name)
    tokens, forwards = case.texts(case.length)
    assert tokens == case.output[:, : case.length].tolist()  # published runs end with a whole block, ours is cut there
    assert forwards[0] < case.nfe
    theirs = [f[f != -1].tolist() for f in case.golden["fed"][case.golden["store"] == 0, 0]]
    canvas, turns = case.turns()
    ours = [t.plan.tokens[0][torch.isin(t.plan.positions[0], t.plan.targets[0])].tolist() for t in turns]
    assert ours == theirs  # the tokens of the active block at each denoising step; prompt and commits ride along
    assert canvas.tokens[0, -case.output.shape[1] :].tolist() == case.output[0].tolist()


def test_sdars_release_overwrites_the_end_of_the_prompt_and_we_do_not():
    """One step for a block that begins with two tokens of the prompt: its top-4 takes those two as well."""
    case = Case("sdar", "static_1step_partial")
    prompt, published = case.prompts[0], case.golden["output_ids"][0].tolist()
    assert published[: len(prompt)] != prompt
    canvas, turns = case.turns()
    assert len(list(turns)) == canvas.tokens.shape[1] // 4 - 1  # one forward a block; the first block is prompt
    ours = canvas.tokens[0].tolist()
    assert ours[: len(prompt)] == prompt
    assert ours[len(prompt) : 8] == published[len(prompt) : 8]  # from here on the prompts differ


def test_approximate_caches_do_not_mix_rows():
    """Rows that are at different blocks in the same forward write what they write alone."""
    lm, golden, _ = checkpoint("llada")
    prompts = [golden[f"fast_dual_thr0.{t}.prompt_ids"][0].tolist() for t in (9, 5)]
    prompts.append(golden["llada_full.prompt_ids"][0, :3].tolist())
    for decoder in ("fast-dllm-prefix", "fast-dllm-dual"):
        options = {"length": 24, "decoder": decoder, "block": 8, "threshold": 0.4, "eos": "keep"}
        alone = [lm.generate(prompt, **options) for prompt in prompts]
        together = lm.generate(prompts, **options)
        assert [out.tokens for out in together] == [out.tokens for out in alone]
        assert len({out.stats.forwards for out in alone}) > 1
