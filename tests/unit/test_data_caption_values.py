"""Captions as they are found: what is one, what is missing, what is broken."""

import codecs
import json

import pytest

from experiments.data.caption_values import MAX_CHARACTERS, clean_caption, json_value, text_encoding
from experiments.data.damage import DecodeError

FIRST = ["list of captions, first taken"]


@pytest.mark.parametrize(
    ("value", "text", "notes"),
    [
        ("  a\tred\n house\u3000", "a red house", []),
        ("nan", "nan", []),
        (["a cat", "a dog"], "a cat", FIRST),
        (["", None, "a dog"], "a dog", FIRST),
        (("a cat",), "a cat", FIRST),
        ("\ufeffa cat", "a cat", []),
        ("é".encode(), "é", []),
        (b"\xe9t\xe9", "\ufffdt\ufffd", ["caption not in UTF-8"]),
        (codecs.BOM_UTF8 + b"a cat", "a cat", []),
        (codecs.BOM_UTF16_LE + "été".encode("utf-16-le"), "été", []),
        (codecs.BOM_UTF16_BE + "été".encode("utf-16-be"), "été", []),
        (codecs.BOM_UTF32_LE + "été".encode("utf-32-le"), "été", []),
        ("x" * 10_000_000, "x" * MAX_CHARACTERS, [f"caption cut at {MAX_CHARACTERS} characters"]),
    ],
)
def test_texts(value, text, notes):
    assert clean_caption(value) == (text, notes)


@pytest.mark.parametrize("value", [None, float("nan"), "", " \n", [], [None], [""], [" "], b"", "\ufeff", ()])
def test_nothing_is_a_missing_caption(value):
    with pytest.raises(DecodeError) as caught:
        clean_caption(value)
    assert caught.value.kind == "missing caption"


@pytest.mark.parametrize(
    "value", [True, 0, 7, 1.5, {"en": "a cat"}, {}, [1, 2], [True], [["a"]], [{}], "a \ud83d cat", float("inf")]
)
def test_anything_else_is_a_broken_caption(value):
    with pytest.raises(DecodeError) as caught:
        clean_caption(value)
    assert caught.value.kind == "broken caption"
    str(caught.value).encode()


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b'{"caption": "a cat"}', "a cat"),
        (b'{"other": 1}', None),
        (b'{"caption": NaN}', None),
        (codecs.BOM_UTF8 + b'{"caption": ["a"]}', ["a"]),
        (json.dumps({"caption": "\U0001f600"}).encode(), "\U0001f600"),
        (json.dumps({"caption": "a"}).encode("utf-16"), "a"),
    ],
)
def test_json(content, value):
    found = json_value(content, "caption")
    assert found == value or (value is None and found != found)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b'"a"', b"[" * 100_000, b'{"a": ' * 100_000, b"\xff{}", b"9" * 9999]
)
def test_broken_json(content):
    with pytest.raises(DecodeError) as caught:
        json_value(content, "caption")
    assert caught.value.kind == "broken caption"


def test_byte_order_marks():
    assert text_encoding("a".encode("utf-32")) == "utf-32-le"
    assert text_encoding("a".encode("utf-16")) == "utf-16-le"
    assert text_encoding(b"a") is None
