"""A recipe says what it must, or the message says which key is wrong and why."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from small_run import raw_recipe, recipe
from unmask.base.errors import BadRecipe
from unmask.objectives import TABLE
from unmask.train.recipe import Recipe, load, override

RECIPES = sorted((Path(__file__).parent.parent.parent / "recipes").glob("*.yaml"))
MINIMAL = """
model: {width: 32, depth: 1, heads: 2, hidden: 48}
tokenizer: {size: 300}
data:
  sources: [{kind: text, path: nowhere.txt}]
  length: 32
objective: {name: masked}
train: {steps: 10}
"""


def written(tmp_path, text=MINIMAL, name="recipe.yaml"):
    file = tmp_path / name
    file.write_text(text)
    return file


def refused(tmp_path, **changes):
    with pytest.raises(BadRecipe) as error:
        Recipe.of(raw_recipe(tmp_path, **changes))
    message = str(error.value)
    assert "\n" not in message
    return message


class TestShippedRecipes:
    @pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
    def test_loads_without_its_data(self, path, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        chosen = load(path)
        assert chosen.data.sources
        assert not Path(chosen.data.sources[0].path).exists()
        assert chosen.shape(chosen.tokenizer.size).max_length >= chosen.data.length

    def test_the_twins_differ_in_objective_and_decoding_alone(self):
        names = {"tiny": "mixture", "tiny-ar": "ar", "tiny-whole": "masked", "tiny-block": "block"}
        found = {path.stem: load(path).model_dump() for path in RECIPES if path.stem in names}
        assert {stem: told.pop("objective")["name"] for stem, told in found.items()} == names
        decoders = {stem: told.pop("decoding")["decoder"] for stem, told in found.items()}
        assert decoders["tiny"] != decoders["tiny-ar"]
        assert all(told == found["tiny"] for told in found.values())

    def test_there_are_some(self):
        assert {path.stem for path in RECIPES} >= {"tiny", "tiny-ar"}


class TestKeys:
    @pytest.mark.parametrize(
        ("change", "path", "near"),
        [
            ({"trian": {}}, "'trian'", "train"),
            ({"train__stpes": 3}, "'train.stpes'", "steps"),
            ({"model__widht": 3}, "'model.widht'", "width"),
            ({"optimizer__weight_decy": 0.1}, "'optimizer.weight_decy'", "weight_decay"),
            ({"objective": {"name": "masked", "wieght": "none"}}, "'objective.wieght'", "weight"),
            ({"data__sources": [{"kind": "text", "path": "x", "feild": "a"}]}, "'data.sources.0.feild'", "field"),
        ],
    )
    def test_an_unknown_key_has_its_path_and_a_guess(self, tmp_path, change, path, near):
        message = refused(tmp_path, **change)
        assert f"unknown key {path}" in message
        assert message.endswith(f"Did you mean {near!r}?")

    def test_a_key_like_none_gets_no_guess(self, tmp_path):
        message = refused(tmp_path, train__zzzz=1)
        assert "Did you mean" not in message
        assert "steps" in message

    @pytest.mark.parametrize("key", ["model.width", "train.steps", "data.sources"])
    def test_a_missing_key(self, tmp_path, key):
        section, _, name = key.partition(".")
        raw = raw_recipe(tmp_path)
        del raw[section][name]
        with pytest.raises(BadRecipe, match=rf"{section}\.{name} is missing"):
            Recipe.of(raw)

    @pytest.mark.parametrize("section", ["model", "tokenizer", "data", "objective", "train"])
    def test_a_missing_section(self, tmp_path, section):
        raw = raw_recipe(tmp_path)
        del raw[section]
        with pytest.raises(BadRecipe, match=section):
            Recipe.of(raw)

    def test_sections_with_defaults_may_be_missing(self, tmp_path):
        raw = raw_recipe(tmp_path)
        del raw["optimizer"], raw["schedule"]
        assert Recipe.of(raw).optimizer.name == "muon"


class TestTypes:
    @pytest.mark.parametrize(
        ("change", "path"),
        [
            ({"train__steps": "ten"}, "train.steps"),
            ({"train__steps": 2.5}, "train.steps"),
            ({"train__steps": True}, "train.steps"),
            ({"train__steps": 0}, "train.steps"),
            ({"train__steps": None}, "train.steps"),
            ({"train__keep_before_decay": 1}, "train.keep_before_decay"),
            ({"train__precision": "float8"}, "train.precision"),
            ({"model__width": "32"}, "model.width"),
            ({"model__qk_norm": "yes"}, "model.qk_norm"),
            ({"optimizer__name": "sgd"}, "optimizer.name"),
            ({"optimizer__lr": -1}, "optimizer.lr"),
            ({"optimizer__lr": float("nan")}, "optimizer.lr"),
            ({"optimizer__betas": [0.9]}, "optimizer.betas"),
            ({"data__held_out": 0.5}, "data.held_out"),
            ({"data__held_out": 0}, "data.held_out"),
            ({"data__sources": []}, "data.sources"),
            ({"data__sources": "corpus.txt"}, "data.sources"),
            ({"data__sources": [{"kind": 3, "path": "x"}]}, "data.sources.0.kind"),
            ({"tokenizer__size": 259}, "tokenizer.size"),
            ({"train": [1, 2]}, "train"),
            ({"model": "small"}, "model"),
            ({"objective": "masked"}, "objective.name"),
        ],
    )
    def test_a_wrong_value_has_its_path(self, tmp_path, change, path):
        assert refused(tmp_path, **change).startswith(path)

    def test_the_message_shows_what_came(self, tmp_path):
        assert "got text ('ten')" in refused(tmp_path, train__steps="ten")

    @pytest.mark.parametrize("raw", [None, [], "text", 3])
    def test_no_mapping(self, raw):
        with pytest.raises(BadRecipe, match="a recipe is a mapping of sections"):
            Recipe.of(raw)

    def test_a_whole_number_is_a_number(self, tmp_path):
        assert recipe(tmp_path, optimizer__lr=1).optimizer.lr == 1.0

    def test_it_does_not_change(self, tmp_path):
        with pytest.raises(ValueError, match="frozen"):
            recipe(tmp_path).train.steps = 3


class TestFiles:
    def test_minimal(self, tmp_path):
        chosen = load(written(tmp_path))
        assert (chosen.train.steps, chosen.data.sources[0].path) == (10, "nowhere.txt")
        assert chosen.model.max_length == 32

    def test_missing(self, tmp_path):
        with pytest.raises(BadRecipe, match=r"no recipe at .*gone\.yaml: there is no such file"):
            load(tmp_path / "gone.yaml")

    def test_a_folder(self, tmp_path):
        with pytest.raises(BadRecipe, match="no recipe at"):
            load(tmp_path)

    def test_no_utf8(self, tmp_path):
        file = tmp_path / "recipe.yaml"
        file.write_bytes(b"train: \xff\xfe")
        with pytest.raises(BadRecipe, match="no recipe at"):
            load(file)

    @pytest.mark.parametrize(
        "text", ["a: [1, 2", "a: b: c", "\t- x", "a: &x [*x]", "!!python/object:os.system {}", "? [a]\n: 1"]
    )
    def test_no_yaml(self, tmp_path, text):
        with pytest.raises(BadRecipe, match=r"recipe\.yaml") as error:
            load(written(tmp_path, text))
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("text", ["", "# nothing\n"])
    def test_empty(self, tmp_path, text):
        with pytest.raises(BadRecipe, match=r"recipe\.yaml: "):
            load(written(tmp_path, text))

    @pytest.mark.parametrize(
        ("text", "key", "line"),
        [
            (MINIMAL + "train: {steps: 3}\n", "train", 2),
            (MINIMAL.replace("train: {steps: 10}", "train:\n  steps: 3\n  rows: 2\n  steps: 4\n"), "steps", 9),
        ],
    )
    def test_a_key_twice(self, tmp_path, text, key, line):
        with pytest.raises(BadRecipe, match=rf"the key '{key}' comes twice \(line {line}"):
            load(written(tmp_path, text))

    def test_the_message_names_the_file(self, tmp_path):
        with pytest.raises(BadRecipe, match=r"recipe\.yaml: unknown key 'train\.stpes'"):
            load(written(tmp_path, MINIMAL.replace("steps", "stpes")))

    @pytest.mark.parametrize(
        ("said", "value"), [("1e-3", 0.001), ("1.5E-2", 0.015), (".5", 0.5), ("2", 2.0), ("1e2", 100)]
    )
    def test_numbers_as_people_write_them(self, tmp_path, said, value):
        assert load(written(tmp_path, MINIMAL + f"optimizer: {{lr: {said}}}\n")).optimizer.lr == value


class TestOverrides:
    def test_applied_in_order(self, tmp_path):
        chosen = load(
            written(tmp_path), ["train.steps=20", "train.steps=30", "optimizer.lr=1e-2", "model.qk_norm=true"]
        )
        assert (chosen.train.steps, chosen.optimizer.lr, chosen.model.qk_norm) == (30, 0.01, True)

    def test_items_of_lists(self, tmp_path):
        chosen = load(written(tmp_path), ["data.sources.0.path=else.txt"])
        assert chosen.data.sources[0].path == "else.txt"

    def test_a_section_that_is_empty_or_not_there(self, tmp_path):
        assert load(written(tmp_path), ["schedule.warmup=7"]).schedule.warmup == 7
        assert load(written(tmp_path, MINIMAL + "schedule:\n"), ["schedule.warmup=7"]).schedule.warmup == 7

    def test_null_and_lists_as_values(self, tmp_path):
        chosen = load(written(tmp_path), ["tokenizer.size=null", "tokenizer.path=x", "optimizer.betas=[0.8, 0.9]"])
        assert (chosen.tokenizer.size, chosen.tokenizer.path, chosen.optimizer.betas) == (None, "x", (0.8, 0.9))

    def test_the_original_stays(self):
        raw = {"train": {"steps": 3}}
        assert override(raw, ["train.steps=4"]) == {"train": {"steps": 4}}
        assert raw == {"train": {"steps": 3}}

    @pytest.mark.parametrize(
        ("setting", "says"),
        [
            ("train.steps", "is written section.key=value"),
            ("=3", "is written section.key=value"),
            ("train..steps=3", "is written section.key=value"),
            ("train.steps=[1", "is not YAML"),
            ("train.stpes=3", "Did you mean 'steps'"),
            ("train.steps.x=3", "nothing to set below it"),
            ("data.sources.4.path=x", "0 to 0"),
            ("data.sources.first.path=x", "0 to 0"),
            ("data.sources.4=x", "0 to 0"),
        ],
    )
    def test_what_is_wrong(self, tmp_path, setting, says):
        with pytest.raises(BadRecipe) as error:
            load(written(tmp_path), [setting])
        assert says in str(error.value)

    @pytest.mark.parametrize("text", ["only words", "[1, 2]", "3"])
    def test_of_a_file_that_is_no_mapping(self, tmp_path, text):
        with pytest.raises(BadRecipe):
            load(written(tmp_path, text), ["train=3"])


class TestObjectives:
    OPTIONS = {"block": {"block": 8}}  # noqa: RUF012

    @pytest.mark.parametrize("name", TABLE)
    def test_its_keys_are_its_classs_fields(self, tmp_path, name):
        chosen = recipe(tmp_path, objective={"name": name, **self.OPTIONS.get(name, {})})
        fields = {field.name for field in dataclasses.fields(TABLE[name])}
        assert set(type(chosen.objective).model_fields) == {"name"} | fields
        assert isinstance(chosen.build_objective(), TABLE[name])

    def test_values_arrive(self, tmp_path):
        chosen = recipe(tmp_path, objective={"name": "mixture", "blocks": [1, 4, None], "shares": [1, 2, 3.5]})
        built = chosen.build_objective()
        assert (built.blocks, built.shares) == ((1, 4, None), (1.0, 2.0, 3.5))

    def test_an_unknown_name(self, tmp_path):
        message = refused(tmp_path, objective={"name": "maskd"})
        assert "objective.name: expected one of" in message
        assert message.endswith("Did you mean 'masked'?")

    def test_a_key_of_another_objective(self, tmp_path):
        assert "'objective.block'" in refused(tmp_path, objective={"name": "masked", "block": 4})

    def test_a_missing_key_of_its_class(self, tmp_path):
        assert "objective.block is missing" in refused(tmp_path, objective={"name": "block"})

    @pytest.mark.parametrize(
        "objective",
        [
            {"name": "masked", "times": "often"},
            {"name": "masked", "schedule": "cosine"},  # its law draws counts
            {"name": "masked", "weight": "heavy"},
            {"name": "block", "block": 0},
            {"name": "mixture", "blocks": []},
            {"name": "mixture", "blocks": [1, 2], "shares": [1.0]},
        ],
    )
    def test_values_that_its_class_refuses(self, tmp_path, objective):
        assert refused(tmp_path, objective=objective)


class TestContradictions:
    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"tokenizer": {}}, "tokenizer: give either size"),
            ({"tokenizer": {"size": 300, "path": "x"}}, "tokenizer: give either size"),
            ({"model__max_length": 16}, "model.max_length is 16, but data.length"),
            ({"train__accumulate": 3}, "train.accumulate must divide train.rows (4), got 3"),
            ({"schedule__decay_start": 25}, "schedule.decay_start is 25, behind the last step"),
            ({"model__heads": 3}, "model: heads must divide width"),
            ({"model__kv_heads": 3}, "model: kv_heads must divide heads"),
        ],
    )
    def test_is_refused(self, tmp_path, change, says):
        assert says in refused(tmp_path, **change)


class TestAsYaml:
    @pytest.mark.parametrize("explain", [False, True])
    @pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
    def test_the_way_back(self, tmp_path, path, explain):
        chosen = load(path)
        again = load(written(tmp_path, chosen.as_yaml(explain=explain)))
        assert again.model_dump() == chosen.model_dump()
        assert again.as_yaml() == chosen.as_yaml()

    def test_every_objective(self, tmp_path):
        for name in TABLE:
            chosen = recipe(tmp_path, objective={"name": name, **TestObjectives.OPTIONS.get(name, {})})
            assert load(written(tmp_path, chosen.as_yaml())).model_dump() == chosen.model_dump()

    def test_every_default_is_written_out(self, tmp_path):
        plain = yaml.safe_load(load(written(tmp_path)).as_yaml())
        assert plain["optimizer"]["weight_decay"] == 0.1
        assert plain["train"]["keep"] == 3
        assert plain["objective"]["times"] == "exact-k-stratified"

    def test_explanations(self, tmp_path):
        text = load(written(tmp_path)).as_yaml(explain=True)
        assert "  # optimiser steps in all; a finished run goes on when this grows\n  steps: 10\n" in text
