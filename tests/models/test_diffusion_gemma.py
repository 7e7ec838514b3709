"""DiffusionGemma computes what transformers computes: a tiny random model, saved by it and loaded by us."""

import json
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from test_backbone import build

from unmask.base.attend import Attend
from unmask.base.errors import BadCheckpoint, Unsupported
from unmask.models.backbone import Transformer
from unmask.models.families import FAMILIES, diffusion_gemma
from unmask.models.load import CONFIG, WEIGHTS, load, save

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

CONTEXT, CANVAS, SIZE = 21, 8, 61
SLIDING, FULL = "sliding_attention", "full_attention"
TEXT = {
    "vocab_size": SIZE,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "global_head_dim": 16,
    "num_global_key_value_heads": 1,
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "num_experts": 5,
    "top_k_experts": 2,
    "sliding_window": 6,
    "max_position_embeddings": 64,
    "layer_types": [SLIDING, FULL, SLIDING, FULL],
}
EYES = {
    "model_type": "gemma4_vision",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "patch_size": 4,
    "position_embedding_size": 8,
}


@pytest.fixture(autouse=True, scope="module")
def family():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, diffusion_gemma.FAMILY.name, diffusion_gemma.FAMILY)
        yield


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Their model, ours, and the folder between."""
    folder = tmp_path_factory.mktemp("model")
    config = transformers.DiffusionGemmaConfig(
        text_config=TEXT,
        vision_config=EYES,
        canvas_length=CANVAS,
        image_token_id=SIZE - 1,
        boi_token_id=SIZE - 2,
        eoi_token_id=SIZE - 3,
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(3)
        theirs = transformers.DiffusionGemmaForBlockDiffusion(config).eval()
        for weight in theirs.parameters():  # far from the first weights: scales not 1, logits not flat
            weight.add_(torch.randn_like(weight) * 0.15)
        for i in range(TEXT["num_hidden_layers"]):
            theirs.model.decoder.layers[i].layer_scalar.fill_(0.7 + 0.1 * i)
            theirs.model.encoder.language_model.layers[i].layer_scalar.fill_(1.3 - 0.1 * i)
    theirs.save_pretrained(folder)
    return theirs, load(folder, "cpu"), folder


def tokens(rows=2, length=CONTEXT + CANVAS):
    return torch.randint(SIZE, (rows, length), generator=torch.Generator().manual_seed(5))


def said(theirs, features):
    """Their output map over features of the context, which their model has no call for."""
    return (theirs.lm_head(features) / 30).tanh() * 30


def same(found, wanted):
    # float32 through a whole network: 2.5e-5 was seen where the processor sums in wider vectors
    torch.testing.assert_close(found, wanted, rtol=0, atol=5e-5)


@pytest.mark.parametrize("attention", ["plain", "sdpa"])
@torch.no_grad()
def test_a_context_and_a_canvas(pair, attention):
    theirs, ours, _ = pair
    x = tokens()
    wanted = theirs(input_ids=x[:, :CONTEXT], decoder_input_ids=x[:, CONTEXT:])
    assert float(wanted.logits.std()) > 0.5
    ours.attention = attention
    found = ours(x)
    same(found[:, CONTEXT:], wanted.logits)
    same(found[:, :CONTEXT], said(theirs, wanted.encoder_last_hidden_state))


@torch.no_grad()
def test_all_context(pair):
    theirs, ours, _ = pair
    x = tokens()
    context = theirs.model.encoder(input_ids=x).last_hidden_state
    same(ours(x, attend=Attend(kind="causal")), said(theirs, context))


@torch.no_grad()
def test_a_canvas_without_context_and_a_given_rule(pair):
    _, ours, _ = pair
    x = tokens()
    same(ours(x, attend=Attend()), ours(x, attend=Attend(kind="canvas", start=0)))
    places = torch.arange(x.shape[1])
    starts = torch.tensor([9, CONTEXT])
    rule = Attend(kind="canvas", start=starts)
    given = rule.allows(places.expand_as(x), places.expand_as(x))
    both = ours(x, attend=Attend(kind="given", given=given))
    same(both, ours(x, attend=rule))
    same(both[1:], ours(x[1:]))
    assert float((both[0] - ours(x[:1])[0]).abs().max()) > 0.1


@torch.no_grad()
def test_padding_on_the_left(pair):
    theirs, ours, _ = pair
    x, there = tokens(), torch.ones(2, CONTEXT + CANVAS, dtype=torch.bool)
    there[0, :7] = False
    places = (there.cumsum(1) - 1).clamp(min=0)
    wanted = theirs(
        input_ids=x[:, :CONTEXT],
        attention_mask=there[:, :CONTEXT],
        position_ids=places[:, :CONTEXT],
        decoder_input_ids=x[:, CONTEXT:],
        decoder_attention_mask={
            # Without the sizes that their masks have in layers with a window: these keep fewer keys.
            FULL: there[:, None, None].expand(-1, 1, CANVAS, -1),
            SLIDING: there[:, None, None, CONTEXT - 5 :].expand(-1, 1, CANVAS, -1),
        },
        decoder_position_ids=places[:, CONTEXT:],
    )
    found = ours(x, positions=places.masked_fill(~there, -1))
    same(found[:, CONTEXT:], wanted.logits)


@torch.no_grad()
def test_self_conditioning(pair):
    theirs, ours, _ = pair
    x, first = tokens(), torch.randn(2, CANVAS, SIZE, generator=torch.Generator().manual_seed(7)) * 3
    wanted = theirs(input_ids=x[:, :CONTEXT], decoder_input_ids=x[:, CONTEXT:], self_conditioning_logits=first).logits
    cache, places, rule = (
        ours.cache(2, x.shape[1]),
        torch.arange(x.shape[1]).expand_as(x),
        Attend(kind="canvas", start=CONTEXT),
    )
    at = places[:, CONTEXT:]
    ours.read(x[:, :CONTEXT], positions=places[:, :CONTEXT], attend=rule, cache=cache, keep=places[:, :CONTEXT] >= 0)
    plain = ours.head(ours.read(x[:, CONTEXT:], positions=at, attend=rule, cache=cache))
    rows = torch.arange(2).repeat_interleave(CANVAS)
    ours.carry(first.flatten(0, 1), cache=cache, rows=rows, positions=at.flatten())
    found = ours.head(ours.read(x[:, CONTEXT:], positions=at, attend=rule, cache=cache))
    same(found, wanted)
    assert float((found - plain).abs().max()) > 0.5
    again = ours.head(ours.read(x[1:, CONTEXT:], positions=at[1:], attend=rule, cache=cache, rows=torch.tensor([1])))
    same(again, wanted[1:])


@torch.no_grad()
def test_canvas_after_canvas_over_a_cache(pair):
    """The commit of a canvas rides in the first forward of the next; they read it once more, by itself."""
    theirs, ours, _ = pair
    x = tokens(length=13 + 2 * CANVAS)
    memory = theirs.model.encoder(input_ids=x[:, :13]).cache
    cache, held = ours.cache(2, x.shape[1]), 0
    for start in (13, 13 + CANVAS):
        end = start + CANVAS
        if start > 13:
            theirs.model.encoder(input_ids=x[:, 13:start], cache=memory)
        noisy = torch.cat([x[:, :start], (x[:, start:end] + 1) % SIZE], 1)
        wanted = theirs(cache=memory, decoder_input_ids=noisy[:, start:]).logits
        at = torch.arange(held, end).expand(2, -1)
        features = ours.read(
            noisy[:, held:], positions=at, attend=Attend(kind="canvas", start=start), cache=cache, keep=at < start
        )
        same(ours.head(features)[:, start - held :], wanted)
        held = start
        assert cache.held.tolist() == [start, start]


@torch.no_grad()
def test_rows_with_canvases_in_different_places(pair):
    _, ours, _ = pair
    x, starts, rule = tokens(rows=3), torch.tensor([5, 12, 20]), None
    for b, start in enumerate(starts.tolist()):
        row = x[b : b + 1, : start + CANVAS]
        alone = ours(row, attend=Attend(kind="canvas", start=start))
        places = torch.arange(x.shape[1]).expand_as(x)
        rule = Attend(kind="canvas", start=starts)
        there = places < starts[:, None] + CANVAS
        cache = ours.cache(3, x.shape[1])
        features = ours.read(x, positions=places.masked_fill(~there, -1), attend=rule, cache=cache)
        same(ours.head(features)[b, : start + CANVAS], alone[0])


@torch.no_grad()
def test_dtypes(pair):
    theirs, ours, folder = pair
    x, wanted = tokens(), ours(tokens())
    torch.testing.assert_close(load(folder, "cpu", "float64")(x).float(), wanted, rtol=0, atol=5e-5)
    half = deepcopy(theirs).to(torch.bfloat16)
    published = half(input_ids=x[:, :CONTEXT], decoder_input_ids=x[:, CONTEXT:]).logits
    found = load(folder, "cpu", "bfloat16")(x)[:, CONTEXT:].float()
    rounding = (published - wanted[:, CONTEXT:]).abs().mean()
    assert float((found - wanted[:, CONTEXT:]).abs().mean()) < 1.5 * rounding


def test_gradients_reach_everything(pair):
    _, ours, _ = pair
    model = type(ours)(ours.shape, ours.vocab, ours.traits, seed=1)
    model(tokens()).square().mean().backward()
    still = {name for name, weight in model.named_parameters() if weight.grad is None or not bool(weight.grad.any())}
    # Nothing was said before, so the map over what was said has nothing to learn from.
    assert {name for name in still if "experts" not in name} == {
        f"self_conditioning.{name}.weight" for name in ("pre_norm", "gate_proj", "up_proj", "down_proj")
    }


def test_it_goes_back_as_it_came(pair, tmp_path):
    _, ours, folder = pair
    save(ours, tmp_path)
    before, after = load_file(folder / WEIGHTS), load_file(tmp_path / WEIGHTS)
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert json.loads((folder / CONFIG).read_text()) == json.loads((tmp_path / CONFIG).read_text())


def test_a_fresh_one_has_no_layout(pair, tmp_path):
    _, ours, _ = pair
    with pytest.raises(Unsupported, match="a fresh Gemma has no layout"):
        save(type(ours)(ours.shape, ours.vocab, ours.traits), tmp_path)


def test_what_it_says_of_itself(pair):
    _, ours, _ = pair
    assert (ours.traits.sees, ours.traits.block, ours.traits.noise) == ("context-then-canvas", CANVAS, "uniform")
    assert ours.traits.carries
    assert (ours.vocab.mask, ours.vocab.eos, ours.vocab.bos, ours.vocab.pad) == (None, 1, 2, 0)
    with pytest.raises(Unsupported, match="neither tells a canvas from its context"):
        Transformer(build().shape, ours.vocab, ours.traits)
    with pytest.raises(Unsupported, match="can't tell them apart under 'blocks'"):
        ours(tokens(), attend=Attend(kind="blocks", block=4))
    with pytest.raises(Unsupported, match="a rule with a start"):
        ours.read(tokens(), positions=torch.arange(29).expand(2, -1), attend=Attend.native(ours.traits))


@torch.no_grad()
def test_the_published_config_spells_the_wide_heads_once(pair, tmp_path):
    _, ours, folder = pair
    told = json.loads((folder / CONFIG).read_text())
    told["text_config"].pop("per_layer_config")
    told["text_config"] |= {"global_head_dim": 16, "num_global_key_value_heads": 1, "final_logit_softcapping": 20.0}
    save_file(load_file(folder / WEIGHTS), tmp_path / WEIGHTS)
    (tmp_path / CONFIG).write_text(json.dumps(told))
    other = load(tmp_path, "cpu")
    assert other.shape == replace(ours.shape, softcap=20.0)
    found, wanted = other(tokens()) / 20, ours(tokens()) / 30
    same(found.atanh() * 20, wanted.atanh() * 30)


BROKEN = {
    "no canvas": ({"canvas_length": 0}, BadCheckpoint, "a canvas of 1 position at least"),
    "untied": ({"tie_word_embeddings": False}, Unsupported, "tie_word_embeddings is False"),
    "no text": ({"text_config": None}, BadCheckpoint, "text_config lacks"),
    "all around": ({"use_bidirectional_attention": "all"}, Unsupported, "use_bidirectional_attention is 'all'"),
    "layers": ({"layer_types": [SLIDING]}, BadCheckpoint, "for each of 4 layers"),
    "kinds": ({"layer_types": [SLIDING, "linear_attention"] * 2}, BadCheckpoint, "layer_types must name"),
    "no experts": ({"num_experts": None}, BadCheckpoint, "lacks num_experts"),
    "few experts": ({"top_k_experts": 9}, BadCheckpoint, "9 can't be chosen"),
    "no window": ({"sliding_window": 0}, BadCheckpoint, "a window"),
    "one layer apart": ({"per_layer_config": {"1": {"head_dim": 16}, "3": {"head_dim": 8}}}, Unsupported, "alike"),
    "another change": ({"per_layer_config": {"1": {"hidden_size": 3}, "3": {"hidden_size": 3}}}, Unsupported, "alike"),
    "heads": ({"per_layer_config": {i: {"num_key_value_heads": 3} for i in "13"}}, BadCheckpoint, "3 key heads"),
    "no rope": ({"rope_parameters": None}, BadCheckpoint, "rope_parameters lacks sliding_attention and full_attention"),
    "rope": ({"rope_parameters": {SLIDING: {"rope_type": "longrope"}, FULL: {"a": 1}}}, Unsupported, "'longrope'"),
    "lies": ({"moe_intermediate_size": 25}, BadCheckpoint, "gate_up_proj has shape"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_bad_configs_are_one_clear_line(pair, tmp_path, case):
    _, _, folder = pair
    changes, kind, words = BROKEN[case]
    told = json.loads((folder / CONFIG).read_text())
    (told if set(changes) & set(told) else told["text_config"]).update(changes)
    save_file(load_file(folder / WEIGHTS), tmp_path / WEIGHTS)
    (tmp_path / CONFIG).write_text(json.dumps(told))
    with pytest.raises(kind, match=words) as caught:
        load(tmp_path, "cpu")
    assert "\n" not in str(caught.value)
