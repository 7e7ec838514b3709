"""Small tokenizers like those of published models, written into folders as their publishers do."""

import json

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|mdm_mask|>"]


def letters():
    return {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}


def byte_level(specials=CHATML, plain=(), **flags):
    """Byte-level BPE of single bytes and a few merges, as Qwen, LLaDA and GPT-2 have it; ids 0-255 are bytes."""
    merges = [("h", "e"), ("l", "l"), ("Ċ", "Ċ"), ("Ġ", "Ġ"), ("<", "|"), ("|", ">")]
    vocab = letters()
    for a, b in merges:
        vocab[a + b] = len(vocab)
    inner = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(name, normalized=False, special=True, **flags) for name in specials])
    inner.add_tokens([AddedToken(name, normalized=False) for name in plain])
    return inner


def sentencepiece(scheme=None, specials=("<s>", "</s>", "<mask>")):
    """Byte-fallback BPE as Llama has it: a begin of text before every text and a mark before its first word."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{b:02X}>" for b in range(256)),
        *"▁abcdefghilmnoprstuw<>/[]|_.,?",
        "▁a",
        "ab",
    ]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[("▁", "a"), ("a", "b")], byte_fallback=True, unk_token="<unk>"))
    if scheme is None:
        inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        inner.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    ending = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    inner.decoder = decoders.Sequence(ending)
    inner.add_special_tokens([AddedToken(x, normalized=False, special=True) for x in ("<unk>", *specials)])
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocab["<s>"])])
    return inner


def write(folder, inner, **files):
    """Put a tokenizer and further JSON files (name without .json) into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if inner is not None:
        inner.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def whole(inner, text):
    """What the library makes of a text in which special tokens count: how published code reads a rendered chat."""
    inner.encode_special_tokens = False
    return inner.encode(text, add_special_tokens=False).ids
