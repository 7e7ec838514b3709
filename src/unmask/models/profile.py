"""What a user declares about a checkpoint whose own files do not tell it.

Some weights of diffusion language models lie in the folder of the autoregressive model that they were made from, and
nothing in their config.json says otherwise (Stable-DiffCoder and DiffuLLaMA say "llama"). Their user adds one key to
config.json:

    "unmask": {
        "traits": {"sees": "blocks", "block": 4, "speaks": "here"},
        "mask_token_id": 5,
        "decoder": {"decoder": "sdar", "threshold": 0.9}
    }

Each part may be left out. `traits` changes the named fields of `unmask.base.vocab.Traits` and no others, `decoder`
takes the place of the family's decoding defaults. The key stays in the config.json of a saved model.
"""

from dataclasses import asdict, replace
from typing import Any

from unmask.base.errors import BadCheckpoint
from unmask.models.config import Reader, vocab
from unmask.models.families.unmask import traits_of
from unmask.models.family import Config, Described

KEY = "unmask"
PARTS = ("traits", "mask_token_id", "decoder")


def declared(described: Described, config: Config) -> Described:
    """What a family says of a config, and on top of it what the user says there.

    Raises:
        BadCheckpoint: an unknown key, or a value that can't be.
    """
    if KEY not in config:
        return described
    read = Reader(config)
    told = read.inside(KEY)
    if unknown := sorted(set(told.config) - set(PARTS)):
        raise BadCheckpoint(f"{told.where} has no {', '.join(unknown)}; it has {', '.join(PARTS)}")
    changes: dict[str, Any] = {}
    if "traits" in told:
        changes["traits"] = traits_of({**asdict(described.traits), **told.inside("traits").config})
    if "mask_token_id" in told:
        size = described.vocab.size
        changes["vocab"] = replace(described.vocab, mask=vocab(told, size, eos=None, bos=None, pad=None).mask)
    if "decoder" in told:
        changes["defaults"] = dict(told.inside("decoder").config)
    return replace(described, **changes)
