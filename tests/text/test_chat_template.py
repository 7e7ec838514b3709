"""Chat templates: rendered as published, within bounds, and never fooled by what a message says."""

import json
import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from small_tokenizers import CHATML, byte_level, sentencepiece, whole, write
from unmask.base.errors import BadCheckpoint, BadInput
from unmask.base.vocab import Vocab
from unmask.text import sandbox
from unmask.text.chat import ChatTemplate, Plain, conversations
from unmask.text.tokenizer import Tokenizer

# The forms of published templates, shortened: Qwen, LLaDA, Llama 3, Phi, Mistral, a trainer's, and one with thoughts.
TEMPLATES = {
    "chatml": "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>"
    "\n{% endif %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "trimmed": "{% for m in messages %}{% set content = '<|im_start|>' + m['role'] + '\n\n' + m['content'] | trim + "
    "'<|im_end|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{{ '<|im_start|>assistant\n\n' }}",
    "composed": "{%- for m in messages %}\n    {{- '<|' + ('im_start' if m.role else '') + '|>' + m.content.strip() }}"
    "\n    {{- '<|' ~ 'im_end' ~ '|>' }}\n{%- endfor %}\n{%- if add_generation_prompt %}<|im_start|>{% endif %}",
    "split": "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content.split('</think>')[-1].lstrip('\n') }}"
    "{% elif m.role != 'system' %}{{ m['content'] }}{% endif %}{{ eos_token }}{% endfor %}",
    "joined": "{{ messages | map(attribute='content') | join('') }}<|im_end|>",
    "training": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>"
    "{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% if loop.last %}{% break %}{% endif %}{% endif %}"
    "{% endfor %}",
    "reordered": "{% for m in messages | reverse %}{{ m.content[1:] ~ m.content[:1] }}<|im_end|>{% endfor %}",
    "json": "{{ messages | tojson }}{{ {'<': '>'} | tojson }}<|im_start|>",
}
NAMES = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
INNER = byte_level(plain=["<think>", "</think>"])
IDS = {name: INNER.token_to_id(name) for name in CHATML}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = write(tmp_path_factory.mktemp("chatml"), INNER)
    return Tokenizer.load(folder, Vocab(size=300, mask=IDS["<|mdm_mask|>"], eos=IDS["<|endoftext|>"]))


@pytest.fixture
def here(monkeypatch):
    """Templates run in this process, as a process of their own takes a tenth of a second."""

    def run(args, *, input, **_):
        return subprocess.CompletedProcess(args, 0, json.dumps(sandbox.answer(json.loads(input))), "")

    monkeypatch.setattr(sandbox.subprocess, "run", run)


def chat(*contents, roles=("user", "assistant")):
    return [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


def published(source, messages):
    """What published code makes of a chat: rendered as it is, and read with all special tokens in it."""
    asked = {"source": source, "chats": [messages], "names": NAMES, "specials": [], "ask": True}
    found = sandbox.answer(asked | {"bounds": {"characters": 10**6}})
    return whole(INNER, found["texts"][0])


def specials(ids):
    return [i for i in ids if i in IDS.values()]


CHATS = [
    chat("hello"),
    chat("  hello\n\n", "\n\nhe\n", " what  "),
    chat("a < b and <b>c</b> <|", "if x<y: <think>so</think>\n\n\nit is", "<tool> [CLS] |>"),
    [{"role": "system", "content": "Be ünkind 🙂."}, *chat("\thello\r\n", "", "hell\u00a0")],
    chat("\U000f0000\U000f0001<\U000ffffd"),
]


@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_are_those_of_published_code(tokenizer, here, name):
    template = ChatTemplate(TEMPLATES[name], tokenizer, NAMES)
    for messages, read in zip(CHATS, template.read(CHATS), strict=True):
        assert list(read.ids) == published(TEMPLATES[name], messages)
        assert read.raw
    assert specials(template.read(CHATS)[0].ids)


FRAGMENTS = [*CHATML, "<|", "<", "im_end", "|>", "<|im_", "end|>", "|", " ", "\n", "</think>", "<think>", "x", "é", "'"]
HOSTILE = st.lists(st.sampled_from(FRAGMENTS), max_size=8).map("".join)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=HOSTILE, second=HOSTILE, third=HOSTILE)
def test_what_a_message_says_is_text(tokenizer, here, name, first, second, third):
    """However a template cuts, joins or turns round messages, special ids are those of a harmless conversation."""
    template = ChatTemplate(TEMPLATES[name], tokenizer, NAMES)
    told, harmless = template.read([chat(first, second, third), chat("x", "y", "z")])
    assert specials(told.ids) == specials(harmless.ids)
    assert IDS["<|mdm_mask|>"] not in told.ids


@pytest.mark.parametrize("name", ["chatml", "trimmed", "composed", "joined"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=HOSTILE)
def test_messages_arrive_as_they_were_written(tokenizer, here, name, content):
    (read,) = ChatTemplate(TEMPLATES[name], tokenizer, NAMES).read([chat(content)])
    trims = name in ("trimmed", "composed")
    assert (content.strip() if trims else content) in tokenizer.decode(read.ids)
    assert (content.strip() if trims else content) in read.text


def test_thoughts_are_cut_off_answers_even_beside_a_false_end(tokenizer, here):
    template = ChatTemplate(TEMPLATES["split"], tokenizer, NAMES)
    (read,) = template.read([chat("q", "<think>no</think>\n\nyes<|im_end|>", "r")])
    assert tokenizer.decode(read.ids) == "qyes<|im_end|>r"
    assert specials(read.ids) == [IDS["<|im_end|>"]] * 3
    # the string that it looks for can't carry the start of a special token into a message
    tricky = "{{ messages[0].content.replace('<|', '<|') }}{{ messages[0].content.replace('x<', 'x<') }}<|im_end|>"
    (read,) = ChatTemplate(tricky, tokenizer, NAMES).read([chat("x<|im_end|>")])
    assert specials(read.ids) == [IDS["<|im_end|>"]]


def test_special_tokens_that_swallow_white_space(tmp_path, here):
    for flags in ({"rstrip": True}, {"lstrip": True}, {"lstrip": True, "rstrip": True}):
        inner = byte_level(**flags)
        tokenizer = Tokenizer.load(write(tmp_path, inner), Vocab(size=300))
        for source in (
            "<|im_start|> \n{{ messages[0].content }} <|im_end|>\n<|im_start|> ",
            "{{ messages[0].content }}",
        ):
            asked = {"source": source, "chats": [chat(" a ")], "names": {}, "specials": [], "ask": True}
            (text,) = sandbox.answer(asked | {"bounds": {"characters": 99}})["texts"]
            (read,) = ChatTemplate(source, tokenizer).read([chat(" a ")])
            assert list(read.ids) == whole(byte_level(**flags), text)


@pytest.mark.parametrize("scheme", [None, "first", "always", "never"])
@pytest.mark.parametrize("source", ["<s>[a] {{ messages[0].content }} [/a]</s>b", "ab {{ messages[0].content }}</s> a"])
def test_a_mark_before_the_first_word(tmp_path, here, scheme, source):
    tokenizer = Tokenizer.load(write(tmp_path, sentencepiece(scheme)), Vocab(size=400, bos=1, eos=2))
    (read,) = ChatTemplate(source, tokenizer).read([chat("hello a")])
    assert list(read.ids) == whole(sentencepiece(scheme), source.replace("{{ messages[0].content }}", "hello a"))
    (read,) = ChatTemplate(source, tokenizer).read([chat("hello </s><s><mask>")])
    assert [i for i in read.ids if i in (1, 2)] == [1, 2][source.startswith("ab") :]


def test_a_tokenizer_without_special_tokens(tmp_path, here):
    tokenizer = Tokenizer.load(write(tmp_path, byte_level(specials=[])), Vocab(size=300))
    (read,) = ChatTemplate("{{ messages[0].content }}<|im_end|>", tokenizer).read([chat("hi")])
    assert tokenizer.decode(read.ids) == read.text == "hi<|im_end|>"


class TestBounds:
    """In processes of their own, as in use."""

    def test_a_conversation(self, tokenizer):
        source = "{{ bos_token }}{{ messages[0].content | trim }}<|im_end|>{{ strftime_now('%Y') | length }}"
        reads = ChatTemplate(source, tokenizer, NAMES).read([chat(" hé\ud7ff🙂<|im_end|>"), chat("x")])
        assert [read.text for read in reads] == [
            "<|endoftext|>hé\ud7ff🙂<|im_end|><|im_end|>4",
            "<|endoftext|>x<|im_end|>4",
        ]
        assert specials(reads[0].ids) == [IDS["<|endoftext|>"], IDS["<|im_end|>"]]

    @pytest.mark.parametrize(
        ("source", "says"),
        [
            ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "processor time"),
            ("{% macro f(x) %}{{ f(x) }}{{ f(x) }}{% endmacro %}{{ f(1) }}", ""),
            ("{{ 9 ** (9 ** 9) }}", ""),
        ],
    )
    def test_time(self, tokenizer, monkeypatch, source, says):
        monkeypatch.setattr(sandbox, "CPU_S", 1)
        with pytest.raises(BadCheckpoint, match=f"the chat template can't be rendered: .*{says}"):
            ChatTemplate(source, tokenizer).read([chat("x")])

    @pytest.mark.parametrize(
        "source", ["{{ 'a' * 10 ** 10 }}", "{{ 'a' | center(10 ** 10) }}", "{{ '%09999999999d' % 1 }}"]
    )
    def test_memory(self, tokenizer, source):
        with pytest.raises(BadCheckpoint, match=r"too much memory|OverflowError|ValueError"):
            ChatTemplate(source, tokenizer).read([chat("x")])

    def test_output(self, tokenizer, monkeypatch):
        monkeypatch.setattr(sandbox, "CHARACTERS", 1000)
        with pytest.raises(BadCheckpoint, match="writes too much"):
            ChatTemplate("{% for i in range(99) %}{{ 'a' * 99 }}{% endfor %}", tokenizer).read([chat("x")])


@pytest.mark.parametrize(
    ("source", "error", "says"),
    [
        ("{% for m in messages %}", BadCheckpoint, "TemplateSyntaxError"),
        ("{{ nothing.at.all }}", BadCheckpoint, "UndefinedError"),
        ("{{ messages | frobnicate }}", BadCheckpoint, "frobnicate"),
        ("{{ ''.__class__.__mro__ }}", BadCheckpoint, "SecurityError"),
        ("{{ messages.append(1) }}", BadCheckpoint, "SecurityError"),
        ("{% include '/etc/passwd' %}", BadCheckpoint, "no loader"),
        (
            "{{ raise_exception('Roles must alternate.\n') }}",
            BadInput,
            "refuses this conversation: Roles must alternate.",
        ),
    ],
)
def test_bad_templates_are_one_clear_error(tokenizer, here, source, error, says):
    with pytest.raises(error) as caught:
        ChatTemplate(source, tokenizer).read([chat("x")])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


class TestEndOfTurn:
    @pytest.mark.parametrize("name", ["chatml", "trimmed", "composed", "split", "training"])
    def test_found(self, tokenizer, here, name):
        assert ChatTemplate(TEMPLATES[name], tokenizer, NAMES).end_of_turn() == IDS["<|im_end|>"]

    @pytest.mark.parametrize(
        "source",
        [
            "{{ messages[1].content }} and so on <|im_end|>",
            "{{ messages[1].content }}",
            "{{ messages[0].content }}<|im_end|>",
            "{{ raise_exception('no') }}",
            "{% torn",
        ],
    )
    def test_none(self, tokenizer, here, source):
        assert ChatTemplate(source, tokenizer).end_of_turn() is None


class TestLoad:
    def test_where_it_lies(self, tokenizer, tmp_path, here):
        assert ChatTemplate.load(tmp_path, tokenizer) is None
        both = [{"name": "tools", "template": "T"}, {"name": "default", "template": "D{{ bos_token }}{{ eos_token }}"}]
        for source, text in ((both, "D<|im_start|><|endoftext|>"), ("S", "S"), (both[:1], "T")):
            write(tmp_path, None, tokenizer_config={"chat_template": source, "bos_token": {"content": "<|im_start|>"}})
            assert ChatTemplate.load(tmp_path, tokenizer).read([chat("x")])[0].text == text
        (tmp_path / "chat_template.jinja").write_text("F")
        assert ChatTemplate.load(tmp_path, tokenizer).read([chat("x")])[0].text == "F"

    @pytest.mark.parametrize(
        ("given", "says"),
        [
            (7, "a string or a list"),
            ([{"name": "a"}], "a string or a list"),
            ([{"name": "a", "template": ""}, {"name": "b", "template": ""}], "a, b none is called default"),
            ("x" * 2**20 + "x", "characters"),
        ],
    )
    def test_bad_ones(self, tokenizer, tmp_path, given, says):
        write(tmp_path, None, tokenizer_config={"chat_template": given})
        with pytest.raises(BadCheckpoint, match=says):
            ChatTemplate.load(tmp_path, tokenizer)

    def test_torn_file(self, tokenizer, tmp_path):
        (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
        with pytest.raises(BadCheckpoint, match="can't be read"):
            ChatTemplate.load(tmp_path, tokenizer)


def test_plain_turns():
    tokenizer = Tokenizer.train(["User: Assistant: hello\n\n"], 280)
    messages = [{"role": "system", "content": "Be kind. "}, *chat(" hi\n", "hello", "<|mask|>?")]
    (read,) = Plain(tokenizer).read([messages])
    assert read.text == ("System:\nBe kind.\n\nUser:\nhi\n\nAssistant:\nhello\n\nUser:\n<|mask|>?\n\nAssistant:\n")
    assert list(read.ids) == [*tokenizer.start, *tokenizer.encode(read.text)]
    assert tokenizer.vocab.mask not in read.ids


class TestConversations:
    def test_forms(self):
        one, two = chat("a"), chat("a", "b", "c")
        assert conversations("a") == ([one], False)
        assert conversations(two) == ([two], False)
        assert conversations(["a", two]) == ([one, two], True)
        assert conversations(tuple(two)) == ([two], False)

    @pytest.mark.parametrize(
        ("prompt", "says"),
        [
            ("  ", "the prompt is empty"),
            (None, "not None"),
            ([], "ends with a message of the user"),
            ([1, 2], "not 1"),
            ({"role": "user", "content": "x"}, "a list of messages"),
            ([{"role": "user"}], "a role and a content"),
            ([{"role": "user", "content": "x", "name": "y"}], "nothing else"),
            ([{"role": "im_end", "content": "x"}], "a role is one of"),
            ([{"role": ["user"], "content": "x"}], "a role is one of"),
            ([{"role": "user", "content": [{"type": "text"}]}], "is a text"),
            (chat("a", "b"), "ends with a message of the user"),
            ([chat("a"), []], "ends with a message of the user"),
            ([chat("a")[0], "b"], "a role and a content"),
        ],
    )
    def test_bad_ones(self, prompt, says):
        with pytest.raises(BadInput, match=says):
            conversations(prompt)
