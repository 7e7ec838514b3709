"""The decoder writes what the published `generate` writes, token for token, when both are given the same chance."""

import pytest
import torch
import transformers

from unmask.base import seeds
from unmask.base.canvas import Canvas
from unmask.decode.decoder import build
from unmask.decode.loop import denoise
from unmask.models.load import load

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

SIZE, BLOCK, PROMPT = 61, 8, 11
TEXT = {
    "vocab_size": SIZE,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "global_head_dim": 16,
    "num_global_key_value_heads": 1,
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "num_experts": 4,
    "top_k_experts": 2,
    "sliding_window": 6,
    "max_position_embeddings": 64,
    "layer_types": ["sliding_attention", "full_attention"],
}
EYES = {"model_type": "gemma4_vision", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
EYES |= {
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "patch_size": 4,
    "position_embedding_size": 8,
}


@pytest.fixture(scope="module", params=[2.0, 8.0], ids=["doubting", "sure"])
def pair(request, tmp_path_factory):
    """Their model and ours; logits flat or sharp."""
    folder = tmp_path_factory.mktemp("model")
    config = transformers.DiffusionGemmaConfig(
        text_config=TEXT,
        vision_config=EYES,
        canvas_length=BLOCK,
        image_token_id=SIZE - 1,
        boi_token_id=SIZE - 2,
        eoi_token_id=SIZE - 3,
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(6)  # with some weights, what is carried from step to step makes rounding grow without end
        theirs = transformers.DiffusionGemmaForBlockDiffusion(config).eval()
        for weight in theirs.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
        theirs.model.decoder.norm.weight.fill_(request.param)
    theirs.save_pretrained(folder)
    theirs.set_experts_implementation("eager")  # the grouped product has no float64
    return theirs.double(), load(folder, "cpu").double()  # rounding must not decide between two tokens


class Chance:
    """The random numbers of our decoder in the places where theirs draws."""

    def __init__(self, seed, start):
        self.seed, self.turn, self.at = torch.tensor([seed]), 0, torch.arange(start, start + BLOCK)
        self.fresh = True

    def noise(self, batch_size, device):
        """`EntropyBoundSampler.initialize_canvas`: at the start of each canvas, and once a step."""
        if self.fresh:
            key = seeds.key(self.seed[:, None], "open", self.at)
        else:
            key = seeds.key(self.seed[:, None], "noise", self.turn, self.at)
            self.turn += 1
        self.fresh = False
        return (seeds.uniform(key) * SIZE).long()

    def draw(self, probabilities, num_samples):
        """`torch.multinomial`."""
        key = seeds.key(self.seed[:, None], "token", self.turn, self.at)[0]
        numbers = seeds.uniform(seeds.key(key[:, None], "gumbel", torch.arange(SIZE)))
        return (probabilities.double().log() - torch.log(-torch.log(numbers))).argmax(-1, keepdim=True)

    def next(self):
        """A canvas is written."""
        self.at, self.fresh = self.at + BLOCK, True


def generate(theirs, monkeypatch, prompt, seed, **options):
    """Their tokens behind the prompt, and their forwards."""
    from transformers.models.diffusion_gemma import generation_diffusion_gemma as published

    chance = Chance(seed, len(prompt))
    finalize = theirs._finalize_canvas
    with monkeypatch.context() as patch:
        patch.setattr(published.EntropyBoundSampler, "initialize_canvas", lambda self, **k: chance.noise(**k))
        patch.setattr(published.EntropyBoundSampler, "renoise_canvas", renoise(chance))
        patch.setattr(torch, "multinomial", chance.draw)
        patch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: None)  # loads a compiler
        patch.setattr(theirs, "_finalize_canvas", lambda **k: (chance.next(), finalize(**k))[1], raising=False)
        bound = published.EntropyBoundSamplerConfig(entropy_bound=options.pop("bound"))
        out = theirs.generate(
            torch.tensor([prompt]),
            max_new_tokens=3 * BLOCK,
            sampler_config=bound,
            eos_token_id=1,
            pad_token_id=0,
            **options,
        )
    return out.sequences[0, len(prompt) :].tolist(), chance.turn


def renoise(chance):
    def renoise_canvas(self, accepted_canvas, cur_step):
        return torch.where(self.accepted_token_mask, accepted_canvas, chance.noise(1, accepted_canvas.device))

    return renoise_canvas


CASES = {
    "published": {"steps": 48, "bound": 0.1, "settle": 0.005},
    "few steps": {"steps": 5, "bound": 0.1, "settle": 0.005},
    "bold": {"steps": 9, "bound": 6.0, "settle": 1.0},
    "easily settled": {"steps": 12, "bound": 2.0, "settle": 3.0},
    "hot": {"steps": 6, "bound": 1.0, "settle": 0.5, "t_max": 2.0, "t_min": 0.9},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", [0, 3])
def test_token_for_token(pair, monkeypatch, case, seed):
    theirs, ours = pair
    prompt = torch.randint(2, SIZE, (PROMPT,), generator=torch.Generator().manual_seed(seed)).tolist()
    told = {"t_max": 0.8, "t_min": 0.4, **CASES[case]}
    wanted, forwards = generate(
        theirs,
        monkeypatch,
        prompt,
        seed,
        bound=told["bound"],
        max_denoising_steps=told["steps"],
        confidence_threshold=told["settle"],
        stability_threshold=1,
        t_max=told["t_max"],
        t_min=told["t_min"],
    )
    decoder = build("diffusion-gemma", traits=ours.traits, vocab=ours.vocab, **CASES[case])
    rows = [(prompt + [0] * 3 * BLOCK, [False] * PROMPT + [True] * 3 * BLOCK)]
    canvas = Canvas.of(rows, mask=0, eos=1, stop=True, seeds=[seed])
    turns = list(denoise(ours, canvas, decoder))
    end = wanted.index(1) + 1 if 1 in wanted else len(wanted)
    assert canvas.tokens[0, PROMPT : PROMPT + end].tolist() == wanted[:end]
    assert len(turns) == int(canvas.forwards[0]) == forwards
