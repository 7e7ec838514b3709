"""The diffusion transformer of MDLM, BD3-LM, SEDD and RADD: its golden outputs, its noise level, its files."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from unmask.base.attend import Attend
from unmask.base.canvas import Canvas
from unmask.base.errors import BadCheckpoint, BadInput, TooLong, Unsupported
from unmask.base.vocab import Traits, Vocab
from unmask.decode.decoder import build
from unmask.decode.propose import Sampling, propose
from unmask.lm.load import load as load_lm
from unmask.models.backbone import Shape, Transformer
from unmask.models.load import load, save
from unmask.objectives.loss import nll

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = ["mdlm", "bd3lm", "bd3lm_noadaln", "sedd", "radd"]
TOLD = {
    "mdlm": Traits(),
    "bd3lm": Traits(sees="blocks", block=4),
    "bd3lm_noadaln": Traits(sees="blocks", block=6),
    "sedd": Traits(says="score", clock=True, sigmas=(0.0, -math.log(1e-3))),
    "radd": Traits(),
}
ROWS = [
    *(("mdlm", case) for case in ("full", "batch2", "allmask")),
    *(("bd3lm", case) for case in ("sample", "sample_short")),
    *(("bd3lm_noadaln", case) for case in ("sample", "sample_short")),
    *(("sedd", case) for case in ("full", "batch2", "allmask")),
    *(("radd", case) for case in ("full", "batch2", "allmask")),
]
BLOCKS = ["bd3lm", "bd3lm_noadaln"]


def golden(name, case):
    found = load_file(GOLDEN / name / "golden.safetensors")
    return {key.removeprefix(f"{case}."): value for key, value in found.items() if key.startswith(f"{case}.")}


def same(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def variant(name, folder, **changes):
    """A golden checkpoint with some keys of its config.json changed; None takes one away."""
    folder.mkdir(exist_ok=True)
    shutil.copy(GOLDEN / name / "model.safetensors", folder)
    config = json.loads((GOLDEN / name / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


@pytest.fixture(scope="module")
def lms():
    return {name: load_lm(GOLDEN / name, device="cpu") for name in NAMES}


def sees(length, block):
    """Who sees whom in a row of [noised | clean], written out."""
    visible = torch.zeros(2 * length, 2 * length, dtype=torch.bool)
    for q in range(2 * length):
        for k in range(2 * length):
            mine, other = q % length // block, k % length // block
            if k < length:
                visible[q, k] = q < length and mine == other
            else:
                visible[q, k] = other < mine if q < length else other <= mine
    return visible


class TestGolden:
    @pytest.mark.parametrize(("name", "case"), ROWS)
    def test_whole_rows(self, lms, name, case):
        said = golden(name, case)
        out = lms[name].logits(said["input_ids"], sigma=said.get("sigma"))
        same(out, said["log_score" if name == "sedd" else "logits"])

    def test_a_noise_level_that_is_used(self, tmp_path):
        lm, said = load_lm(variant("mdlm", tmp_path, time_conditioning=True), device="cpu"), golden("mdlm", "time_cond")
        assert lm.model.traits == Traits(clock=True, sigmas=(0.0, -math.log(1e-3)))
        same(lm.logits(said["input_ids"], sigma=said["sigma"]), said["logits"])

    @pytest.mark.parametrize("name", BLOCKS)
    def test_the_training_pass(self, lms, name):
        lm, said = lms[name], golden(name, "train")
        tokens, block = said["input_ids"], lm.model.traits.block
        length = tokens.shape[1] // 2
        positions = torch.arange(length).repeat(2).expand_as(tokens)
        given = sees(length, block).expand(len(tokens), -1, -1)
        out = lm.logits(tokens, sigma=said["sigma"], attend=given, positions=positions)
        same(out[:, :length], said["logits"])
        two = Attend(kind="two_stream", block=block, length=length)
        with torch.no_grad():
            same(lm.model(tokens, positions=positions, attend=two)[:, :length], said["logits"])

    @pytest.mark.parametrize("name", BLOCKS)
    @torch.no_grad()
    def test_over_a_cache(self, lms, name):
        model, said = lms[name].model, golden(name, "cached")
        tokens, block, found = said["input_ids"], lms[name].model.traits.block, []
        cache, length = model.cache(1, tokens.shape[1]), tokens.shape[1]
        for start in range(0, length, block):
            positions = torch.arange(start, start + block)[None]
            keep = (positions >= 0) & (start + block < length)
            piece, rule = tokens[:, start : start + block], Attend.native(model.traits)
            found.append(model.head(model.read(piece, positions=positions, attend=rule, cache=cache, keep=keep)))
        same(torch.cat(found, 1), torch.cat([said["prefix_logits"], said["block_logits"]], 1))
        assert cache.held.tolist() == [length - block]

    @pytest.mark.parametrize(("name", "key"), [("mdlm", "subs_log_probs"), ("radd", "log_probs")])
    @pytest.mark.parametrize("case", ["full", "batch2", "allmask"])
    @torch.no_grad()
    def test_log_probabilities_of_clean_tokens(self, lms, name, key, case):
        """As training computes them for every token, and as decoding offers them at the masks."""
        model, said = lms[name].model, golden(name, case)
        tokens, mask = said["input_ids"], model.vocab.mask
        hidden = tokens == mask
        wanted = said[key][hidden][:, :mask].double()
        logits = model(tokens)[hidden]
        found = torch.stack([-nll(logits, torch.full((len(logits),), token), mask) for token in range(mask)], dim=1)
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=2e-5)

        canvas = Canvas.of([(row, [t == mask for t in row]) for row in tokens.tolist()], mask=mask)
        decoder = build("mdlm", traits=model.traits, vocab=model.vocab)
        plan = decoder.window(canvas, model.traits, None)
        offer = propose(model, plan, Sampling())
        rows, at = offer.is_open.nonzero(as_tuple=True)
        assert [(r, int(plan.targets[r, i])) for r, i in zip(rows, at, strict=True)] == [*map(tuple, hidden.nonzero())]
        best = wanted.topk(2)
        assert torch.equal(offer.tokens[rows, at], best.indices[:, 0])
        torch.testing.assert_close(offer.log_prob[rows, at], best.values[:, 0], rtol=0, atol=2e-5)
        torch.testing.assert_close(offer.margin[rows, at], -best.values.exp().diff()[:, 0], rtol=0, atol=2e-5)
        torch.testing.assert_close(offer.entropy[rows, at], -(wanted.exp() * wanted).sum(1), rtol=0, atol=1e-4)
        assert offer.mass is None


class TestNoiseLevel:
    def test_held_at_zero_it_is_taken_and_changes_nothing(self, lms):
        for name in ("mdlm", *BLOCKS):
            tokens = golden(name, "full" if name == "mdlm" else "sample")["input_ids"]
            assert torch.equal(lms[name].logits(tokens, sigma=torch.tensor([3.0])), lms[name].logits(tokens))

    def test_used_it_is_needed(self, lms):
        tokens = golden("sedd", "full")["input_ids"]
        with pytest.raises(BadInput, match="reads a noise level and was given none; give sigma"):
            lms["sedd"].logits(tokens)
        one, other = (lms["sedd"].logits(tokens, sigma=torch.tensor([s])) for s in (1.0, 2.0))
        assert not torch.allclose(one, other)

    def test_networks_without_one_refuse_it(self, lms):
        tokens = golden("radd", "full")["input_ids"]
        with pytest.raises(Unsupported, match="radd is not defined over a noise level; leave sigma out"):
            lms["radd"].logits(tokens, sigma=torch.tensor([1.0]))
        with pytest.raises(Unsupported, match="not defined over a noise level"):
            lms["radd"].model.at(torch.tensor([1.0]), tokens)

    @pytest.mark.parametrize("sigma", [[1.0, 2.0], [-1.0], [math.nan], [math.inf], [[1.0]]])
    def test_what_is_no_noise_level(self, lms, sigma):
        with pytest.raises(BadInput, match="sigma is the total noise of each row, 1 numbers"):
            lms["sedd"].logits([[1, 2, 3]], sigma=torch.tensor(sigma))

    def test_positions_count_and_not_slots(self, lms):
        lm, length = lms["bd3lm"], lms["bd3lm"].model.max_length
        tokens, at = torch.ones(1, 2 * length, dtype=torch.int64), torch.arange(length).repeat(2)
        assert lm.logits(tokens, positions=at[None]).shape == (1, 2 * length, 98)
        with pytest.raises(TooLong, match=f"{2 * length} positions are more"):
            lm.logits(tokens)
        with pytest.raises(BadInput, match="positions are of the shape of tokens"):
            lm.logits(tokens, positions=at[None, 1:])

    @pytest.mark.parametrize(
        ("noise", "formula"),
        [
            ({"type": "loglinear"}, lambda t: -math.log(1 - (1 - 1e-3) * t)),
            ({"type": "geometric", "sigma_min": 1e-2, "sigma_max": 5}, lambda t: 1e-2 ** (1 - t) * 5**t),
        ],
    )
    @torch.no_grad()
    def test_a_time_becomes_the_noise_of_the_networks_own_schedule(self, tmp_path, noise, formula):
        model = load(variant("sedd", tmp_path, noise=noise), "cpu")
        tokens, times = golden("sedd", "batch2")["input_ids"], [0.15, 1.0]
        levels = torch.tensor([formula(t) for t in times], dtype=torch.float64)
        same(model(tokens, t=torch.tensor(times, dtype=torch.float64)), model.at(levels, tokens))

    def test_its_keys_and_values_are_never_final(self, lms):
        model = lms["sedd"].model
        with pytest.raises(Unsupported, match="no keys and values are final"):
            model.read(
                torch.tensor([[1]]),
                positions=torch.tensor([[0]]),
                attend=Attend(),
                t=torch.tensor([0.5]),
                cache=model.cache(1, 4),
            )

    def test_scores_have_no_likelihood_here(self, lms):
        with pytest.raises(Unsupported, match="trait says"):
            lms["sedd"].score([1, 2, 3])


class TestFiles:
    @pytest.mark.parametrize("name", NAMES)
    def test_they_are_recognised_and_come_back(self, tmp_path, name):
        model = load(GOLDEN / name, "cpu")
        assert model.origin.family == name.removesuffix("_noadaln")
        assert model.traits == TOLD[name]
        assert model.vocab == Vocab(size=model.shape.vocab_size, mask=model.shape.vocab_size - 1)
        assert build(None, traits=model.traits, vocab=model.vocab, defaults=model.defaults)
        save(model, tmp_path)
        before, after = (load_file(folder / "model.safetensors") for folder in (GOLDEN / name, tmp_path))
        assert sorted(after) == sorted(before)
        assert all(torch.equal(after[key], value) for key, value in before.items())
        told, said = (json.loads((folder / "config.json").read_text()) for folder in (GOLDEN / name, tmp_path))
        assert said == told

    def test_published_decoders(self, tmp_path):
        assert {name: load(GOLDEN / name, "cpu").defaults["decoder"] for name in NAMES} == {
            "mdlm": "mdlm",
            "bd3lm": "bd3",
            "bd3lm_noadaln": "bd3",
            "sedd": "sedd-euler",
            "radd": "mdlm",
        }
        assert load(variant("sedd", tmp_path, sampling={"predictor": "analytic"}), "cpu").defaults == {
            "decoder": "sedd-analytic"
        }

    def test_a_model_without_blocks_is_read_whole(self, tmp_path):
        model = load(variant("bd3lm", tmp_path, cross_attn=False), "cpu")
        assert (model.traits, model.defaults) == (Traits(), {"decoder": "mdlm"})

    def test_a_prefix_may_be_missing(self, tmp_path):
        from safetensors.torch import save_file

        folder = variant("mdlm", tmp_path)
        tensors = {k.removeprefix("backbone."): v.clone() for k, v in load_file(folder / "model.safetensors").items()}
        save_file(tensors, folder / "model.safetensors")
        tokens = golden("mdlm", "full")["input_ids"]
        with torch.no_grad():
            same(load(folder, "cpu")(tokens), golden("mdlm", "full")["logits"])

    @pytest.mark.parametrize(
        ("name", "changes", "error", "says"),
        [
            (
                "sedd",
                {"graph": {"type": "uniform"}},
                Unsupported,
                "graph: type is 'uniform'; this code only does 'absorb'",
            ),
            ("sedd", {"noise": {"type": "cosine"}}, Unsupported, "noise: type is 'cosine'"),
            ("sedd", {"noise": {"type": "geometric", "sigma_min": 1}}, BadCheckpoint, "noise lacks sigma_max"),
            (
                "sedd",
                {"noise": {"type": "geometric", "sigma_min": 9, "sigma_max": 1}},
                BadCheckpoint,
                "can't run between the sigmas",
            ),
            ("sedd", {"sampling": {"predictor": "none"}}, Unsupported, "predictor is 'none'"),
            ("sedd", {"tokens": None}, BadCheckpoint, "lacks tokens"),
            ("radd", {"model": {"hidden_size": "big"}}, BadCheckpoint, "hidden_size must be a whole number"),
            ("sedd", {"model": {"hidden_size": 48}}, BadCheckpoint, "model lacks cond_dim"),
            ("sedd", {"tokens": 96}, BadCheckpoint, "expected \\[97, 48\\]"),
            ("radd", {"model": {"type": "ddit", "hidden_size": 48}}, Unsupported, "only does 'ddit_wot'"),
            ("bd3lm", {"causal": True}, Unsupported, "causal is True"),
            ("bd3lm", {"adaln": False}, BadCheckpoint, "unexpected backbone"),
            ("bd3lm_noadaln", {"time_conditioning": True}, Unsupported, "nothing would read the time"),
            ("mdlm", {"cond_dim": None}, BadCheckpoint, "lacks cond_dim"),
            ("mdlm", {"cond_dim": 12}, BadCheckpoint, "backbone.*shape"),
        ],
    )
    def test_what_does_not_fit_is_one_clear_line(self, tmp_path, name, changes, error, says):
        with pytest.raises(error, match=says) as caught:
            load(variant(name, tmp_path, **changes), "cpu")
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_our_own_layout_holds_it(self, tmp_path, dtype):
        model = dit(sigma="used", traits=CLOCK).to(dtype)
        save(model, tmp_path)
        back = load(tmp_path, "cpu", dtype)
        assert (back.shape, back.traits) == (model.shape, model.traits)
        x, t = ids(2, 9), torch.tensor([0.2, 0.9])
        with torch.no_grad():
            assert torch.equal(back(x, t=t), model(x, t=t))
            assert model(x, t=t).dtype == dtype


SIZES = {"vocab_size": 29, "width": 32, "depth": 2, "heads": 4, "hidden": 40, "max_length": 64, "condition": 12}
SIZES |= {"norm": "layer_no_bias", "mlp": "plain", "activation": "gelu_tanh", "head_bias": True, "tied": False}
CLOCK = Traits(says="score", clock=True, schedule="geometric", sigmas=(1e-3, 9.0))


def dit(*, traits=None, random=True, **switches):
    """A network with beliefs that depend on everything."""
    shape = Shape(**{**SIZES, "sigma": "zero", "scale_by_sigma": switches.get("sigma") == "used", **switches})
    model = Transformer(shape, Vocab(size=29, mask=28), traits or Traits(), seed=3)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=draw) * 0.2 * random)
    return model


def ids(rows, length):
    return torch.randint(29, (rows, length), generator=torch.Generator().manual_seed(2))


class TestNetwork:
    @torch.no_grad()
    def test_layers_do_nothing_at_first(self):
        model, x = dit(random=False), ids(2, 9)
        expected = torch.nn.functional.layer_norm(model.embed_tokens(x), (32,)) @ model.lm_head.weight.T
        torch.testing.assert_close(model(x), expected)

    @pytest.mark.parametrize("sigma", ["zero", "used"])
    def test_gradients_reach_everything(self, sigma):
        model = dit(sigma=sigma, traits=CLOCK if sigma == "used" else None)
        model(ids(2, 9), t=torch.tensor([0.3, 0.8])).logsumexp(-1).sum().backward()
        assert [name for name, weight in model.named_parameters() if not weight.grad.abs().max() > 0] == []

    @torch.no_grad()
    def test_each_row_has_a_noise_level_of_its_own(self):
        model, x, t = dit(sigma="used", traits=CLOCK), ids(3, 9), torch.tensor([0.1, 0.5, 1.0])
        together = model(x, t=t)
        for row in range(3):
            torch.testing.assert_close(model(x[row : row + 1], t=t[row : row + 1])[0], together[row])

    @pytest.mark.parametrize(
        ("wrong", "says"),
        [
            ({"sigma": "none"}, "a condition is made of sigma"),
            ({"condition": -1}, "a condition is made of sigma"),
            ({"sigma": "used", "condition": 0, "scale_by_sigma": False}, "by a network with a condition"),
            ({"scale_by_sigma": True}, "scale_by_sigma needs sigma 'used'"),
            ({"sigma": "some"}, "no use of sigma called 'some'"),
        ],
    )
    def test_switches_that_contradict_each_other(self, wrong, says):
        with pytest.raises(BadInput, match=says):
            Shape(**{**SIZES, "sigma": "zero", **wrong})

    def test_traits_that_contradict_the_network(self):
        with pytest.raises(Unsupported, match="takes no time"):
            dit(traits=Traits(clock=True, sigmas=(0.0, 5.0)))
        for traits in (Traits(), Traits(clock=True), replace(CLOCK, clock=False)):
            with pytest.raises(BadInput, match="needs traits with a clock and the sigmas"):
                dit(sigma="used", traits=traits)


class TestDecoding:
    @pytest.mark.parametrize("name", NAMES)
    def test_its_published_decoder_fills_everything_and_obeys_the_seed(self, lms, name):
        lm = lms[name]
        one, same_again, other = (lm.generate([3, 5, 7], length=13, seed=seed) for seed in (0, 0, 1))
        assert len(one.tokens) == 13
        assert lm.model.vocab.mask not in one.tokens
        assert one.tokens == same_again.tokens
        assert one.tokens != other.tokens

    @pytest.mark.parametrize("decoder", ["sedd-euler", "sedd-analytic", "mdlm", "llada", "remdm"])
    def test_other_decoders_read_scores_too(self, lms, decoder):
        out = lms["sedd"].generate([3, 5, 7], length=8, decoder=decoder, steps=4)
        assert len(out.tokens) == 8
        assert lms["sedd"].model.vocab.mask not in out.tokens
        assert out.stats.forwards <= 4

    def test_a_window_with_a_cache_is_refused(self, lms):
        with pytest.raises(Unsupported, match="use the window 'whole'"):
            lms["sedd"].generate([3], length=8, decoder="fast-dllm-prefix")
