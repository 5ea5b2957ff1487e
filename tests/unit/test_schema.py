"""The schema reader: what it makes of the shipped schemas, and how it refuses what does not fit."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pyarrow as pa
import pytest
import yaml

from mail_core.errors import InputError
from mail_core.schema.arrow import features_schema, input_schema, vocabulary_type
from mail_core.schema.definition import Checks
from mail_core.schema.reader import SCHEMAS, load_schema, parse_schema

ALIMAMA = (SCHEMAS / "alimama.yaml").read_text(encoding="utf-8")


def changed(path: str, value: object) -> str:
    """Alimama's YAML with the key at a dotted path set to `value` (None removes it)."""
    document = yaml.safe_load(ALIMAMA)
    *parents, last = path.split(".")
    node = document
    for key in parents:
        node = node[key]
    if value is None:
        del node[last]
    else:
        node[last] = value
    return yaml.safe_dump(document, sort_keys=False)


@pytest.mark.parametrize(("name", "counts"), [("alimama", [9, 4, 6]), ("livestream", [21, 75, 105])])
def test_the_papers_data_sets_have_its_feature_counts(name, counts):
    schema = load_schema(name)
    assert [len(schema.group(g)) for g in ("user", "context", "item")] == counts


def test_headers_are_kept_to_the_letter():
    columns = load_schema("alimama").users.columns
    assert columns[-1].header == "new_user_class_level " and columns[-1].name == "new_user_class_level"


def test_behaviors_share_the_target_items_vocabularies():
    schema = load_schema("alimama")
    assert schema.behavior_vocabularies == {
        "behavior_btag": "behavior_btag", "behavior_cate": "cate_id", "behavior_brand": "brand"}


def test_user_id_feature_is_the_attribute_on_the_users_key():
    assert load_schema("movielens").user_id_feature == "user_id"


def test_features_table_holds_keys_then_features_then_behaviors():
    schema = load_schema("movielens")
    table = features_schema(schema)
    assert table.names[:5] == ["day", "user", "item", "time", "label"]
    assert table.names[5:] == input_schema(schema).names
    assert table.field("genres").type == pa.list_(pa.string())
    assert vocabulary_type(schema, "genres") == pa.string()
    assert vocabulary_type(schema, "behavior_rating") == pa.string()


def test_fingerprint_ignores_comments_and_sees_content():
    schema = load_schema("alimama")
    assert parse_schema(ALIMAMA + "\n# a comment\n", "x").fingerprint == schema.fingerprint
    assert parse_schema(changed("sequence_length", 50), "x").fingerprint != schema.fingerprint


def test_logs_that_go_on_have_no_last_day():
    assert parse_schema(changed("last_day", None), "x").last_day is None


def test_checks_have_defaults_and_can_be_given_one_by_one():
    assert load_schema("alimama").checks == Checks()
    found = parse_schema(changed("checks", {"rows": [0, 3], "ignored": ["unknown.campaign_id"]}), "x").checks
    assert found == Checks(rows=(0.0, 3.0), ignored=("unknown.campaign_id",))


def test_a_schema_without_conversions_has_the_fingerprint_that_it_had_before_there_were_any():
    schema = load_schema("alimama")
    content = repr(replace(schema, text="")).replace("label='nonclk', conversion=None", "label='nonclk'")
    assert "conversion" not in content
    assert schema.fingerprint == hashlib.sha256(content.encode()).hexdigest()
    named = load_schema("alimama_conversions")
    unnamed = replace(named, impressions=replace(named.impressions, conversion=None))
    assert len({schema.fingerprint, named.fingerprint, unnamed.fingerprint}) == 3


def test_a_schema_that_extends_another_has_its_content_and_carries_the_whole_text():
    base, schema = load_schema("alimama"), load_schema("alimama_conversions")
    assert schema.outcomes == {"label": "clk", "conversion": "conv"} and base.outcomes == {"label": "clk"}
    assert [c.name for c in schema.impressions.columns] == [*(c.name for c in base.impressions.columns), "conv"]
    assert features_schema(schema).names == [*features_schema(base).names[:5], "conversion", *input_schema(base).names]
    assert replace(schema, name=base.name, impressions=base.impressions) == base
    again = parse_schema(schema.text, "a model version")
    assert again == schema and again.fingerprint == schema.fingerprint and "extends" not in schema.text


def test_what_a_schema_extends_extends_none_itself():
    with pytest.raises(InputError, match="schema.extends: unknown key"):
        parse_schema("extends: alimama_conversions\nname: third", "third.yaml")
    with pytest.raises(InputError, match="schema 'nowhere'"):
        parse_schema("extends: nowhere", "mine.yaml")


def test_a_conversion_is_never_null():
    columns = {"columns": {"conv": {"type": "int", "nulls": [""]}}, "conversion": "conv"}
    with pytest.raises(InputError, match="impressions.conversion: column 'conv' can be NULL, expected 0 or 1"):
        parse_schema(yaml.safe_dump({"extends": "alimama", "impressions": columns}), "mine.yaml")


@pytest.mark.parametrize(("path", "value", "named"), [
    ("impresions", {}, "schema.impresions: unknown key"),
    ("users", None, "schema.users: required key is missing"),
    ("timezone", "Mars/Olympus", "timezone: 'Mars/Olympus'"),
    ("sequence_length", "100", "sequence_length: expected int, found '100'"),
    ("sequence_length", 0, "sequence_length: 0 is below 1"),
    ("sequence_length", True, "sequence_length: expected int, found True"),
    ("last_day", "soon", "last_day: expected date"),
    ("impressions.columns.clk.type", "bool", "impressions.columns.clk.type: 'bool' is not one of string, int"),
    ("impressions.columns.clk.vales", [0, 1], "impressions.columns.clk.vales: unknown key; allowed: header, type"),
    ("impressions.columns.pid.values", [4305481007], "impressions.columns.pid.values: 4305481007 is not a string"),
    ("impressions.columns.day", {"type": "int"}, "impressions.columns.day: the name 'day' is taken"),
    ("impressions.label", "click", "impressions.label: no column 'click'; columns: user, time_stamp"),
    ("impressions.conversion", "conv", "impressions.conversion: no column 'conv'; columns: user, time_stamp"),
    ("impressions.conversion", "pid", "impressions.conversion: column 'pid' is string, expected int"),
    ("features.item.conversion", {"kind": "dense", "column": "price"}, "conversion: the pipeline takes"),
    ("impressions.time", "clk", "impressions.time: column 'clk' is int, expected epoch_seconds"),
    ("impressions.file", "../raw.csv", "impressions.file: '../raw.csv'"),
    ("impressions.delimiter", ",,", "impressions.delimiter"),
    ("users.columns.userid.type", "string", "impressions.user: type long differs from users.key, string"),
    ("behaviors.item_fields.cate", "price", "behaviors.item_fields.cate: 'price' is not a categorical item feature"),
    ("features.user.nickname", {"kind": "categorical"}, "features.user.nickname.column: user_profile.csv has no"),
    ("features.item.price.kind", "categorical", "features.item.price.kind: categorical does not fit column 'price'"),
    ("features.item.brand.kind", "multi", "features.item.brand.kind: multi does not fit"),
    ("features.item.label", {"kind": "categorical", "column": "brand"}, "features.item.label: the pipeline takes"),
    ("features.item.weight", {"kind": "dense", "column": "price"}, "features.item.weight: the pipeline takes"),
    ("features.item.masked", {"kind": "dense", "column": "price"}, "features.item.masked: the pipeline takes"),
    ("features.item.class", {"kind": "dense", "column": "price"}, "features.item.class: 'class' is not a name"),
    ("features.context.brand", {"kind": "categorical", "column": "pid"}, "brand: the name stands in two groups"),
    ("features.item.brand.derive", "hour", "features.item.brand.derive: only a categorical context feature"),
    ("features.user.userid.id_dropout", 1.5, "features.user.userid.id_dropout: 1.5"),
    ("serving.time", "8pm", "serving.time: expected a quoted local time"),
    ("serving.pid", 7, "serving.pid: 7 is not a string"),
    ("serving.scene", "x", "serving: expected time and each context feature"),
    ("serving.scene", "x", "missing: none; no such feature: scene"),
    ("serving.pid", None, "missing: pid; no such feature: none"),
    ("checks", {"row": [0.5, 2]}, "checks.row: unknown key; allowed: days, least_days, rows"),
    ("checks", {"rows": [1.5, 2]}, "checks.rows: expected [least, most], multiples of the usual value such as [0.5"),
    ("checks", {"ctr": ["low", 2]}, "checks.ctr: expected [least, most]"),
    ("checks", {"null_rise": 2}, "checks.null_rise: 2 is not a share between 0 and 1"),
    ("checks", {"days": 0}, "checks.days: 0 is below 1"),
    ("checks", {"days": 2, "least_days": 3}, "checks.least_days: 3 of 2 days"),
    ("checks", {"ignored": ["unknown.hour"]}, "checks.ignored: 'unknown.hour' is not one of rows, ctr, new_users"),
    ("retention_days.scores", 3, "retention_days.scores: 'scores' is not one of"),
])
def test_departures_are_named_with_file_key_and_what_is_allowed(path, value, named):
    with pytest.raises(InputError) as error:
        parse_schema(changed(path, value), "mine.yaml")
    assert str(error.value).startswith("mine.yaml: ")
    assert named in str(error.value)


def test_context_at_serving_time_is_null_where_it_may_be_and_the_yaml_leaves_it_out():
    context = load_schema("livestream").serving.context
    assert context["scene"] == "home_feed" and context["page"] == 0
    assert context["scene_ctr_1d"] is None and context["song_tags"] is None
    assert set(context) == {f.name for f in load_schema("livestream").logged_context}


def test_a_multi_valued_context_feature_is_a_list_at_serving_time():
    def given(tags: object) -> str:
        return yaml.safe_dump({"extends": "livestream", "serving": {"song_tags": tags}})
    assert parse_schema(given(["rock", "live"]), "x").serving.context["song_tags"] == ("rock", "live")
    for tags, named in (("rock", "song_tags: 'rock' is not a list"), ([7], "song_tags: 7 is not a string")):
        with pytest.raises(InputError, match=named):
            parse_schema(given(tags), "x")


def test_a_key_that_stands_twice_is_refused_with_its_line():
    line = ALIMAMA.splitlines().index("    occupation: {type: int, nulls: [\"\"]}") + 1
    doubled = ALIMAMA.replace("    occupation: {type: int, nulls: [\"\"]}\n", "    occupation: {type: int}\n" * 2)
    with pytest.raises(InputError, match=f"(?s)'occupation' stands there twice.*mine.yaml|line {line + 1}"):
        parse_schema(doubled, "mine.yaml")


def test_a_mapping_may_join_another_and_change_a_key_of_it():
    level = '{type: int, nulls: [""]}'
    text = ALIMAMA.replace(f"cms_segid: {level}", f"cms_segid: &level {level}")
    text = text.replace(f"age_level: {level}", 'age_level: {<<: *level, nulls: ["", none]}')
    column = parse_schema(text, "x").users.column("age_level")
    assert column.type == "int" and column.nulls == ("", "none")


def test_a_missing_file_and_broken_yaml_are_named():
    with pytest.raises(InputError, match="schema 'nowhere'"):
        load_schema("nowhere")
    with pytest.raises(InputError, match="mine.yaml: not YAML"):
        parse_schema("a: [", "mine.yaml")
    with pytest.raises(InputError, match="mine.yaml: schema: expected a mapping"):
        parse_schema("- a", "mine.yaml")
