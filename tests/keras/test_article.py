"""The call that the article shows is Keras's own, and evenly's layer takes it."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import keras

import evenly.keras

ARTICLE = (Path(__file__).parents[2] / "docs" / "article.md").read_text("utf-8")


def test_the_call_has_the_defaults_of_keras() -> None:
    """Each argument of the call stands in Keras's signature with this default; evenly's layer keeps each."""
    call = ARTICLE.split("tf.keras.layers.")[1].split("\n```")[0]
    shown = {word.arg or "": ast.literal_eval(word.value) for word in ast.parse(call).body[0].value.keywords}
    defaults = {n: p.default for n, p in inspect.signature(keras.layers.BatchNormalization).parameters.items()}
    kept = evenly.keras.BatchNormalization(**shown).get_config()

    assert len(shown) == 7
    assert shown == {name: defaults[name] for name in shown}
    for name in ("axis", "momentum", "epsilon", "center", "scale"):
        assert kept[name] == shown[name]
