"""The short way to a norm's call: taken where Keras would only look, and never where Keras has something to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops
from tests.keras.cases import array, numpy

import evenly

Ours = evenly.keras.BatchNormalization
pytestmark = pytest.mark.backend("torch")
X = array(8, 3, mean=2.0)


class Outer(keras.layers.Layer):
    """Calls the norm as it is told."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.norm = Ours(**options)
        self.norm.build((None, 3))
        self.ask: Callable[[Any], Any] = lambda x: self.norm(x)

    def call(self, x: Any, training: bool | None = None) -> Any:
        """What is asked of the norm."""
        return self.ask(x)


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keras's own way through a norm leaves a line here: only it opens a name scope."""
    seen: list[str] = []
    scope = Ours._open_name_scope
    monkeypatch.setattr(Ours, "_open_name_scope", lambda self: (seen.append("keras"), scope(self))[1])
    return seen


def called(outer: Outer, ways: list[str], x: Any = X, **kwargs: Any) -> bool:
    """Whether Keras's own way was taken in a call."""
    ways.clear()
    outer(ops.convert_to_tensor(x), **kwargs)
    return bool(ways)


def ready(**options: Any) -> Outer:
    """A layer that has been called once, which is Keras's to do."""
    outer = Outer(**options)
    outer(ops.convert_to_tensor(X))
    return outer


@pytest.mark.skipif(not keras.__version__.startswith("3.15."), reason="read for Keras 3.15 only")
@pytest.mark.parametrize("options", [{}, {"activation": "relu"}, {"scale": False}])
def test_taken_in_models(ways: list[str], options: dict[str, Any]) -> None:
    """A norm in a Sequential, a functional and a subclassed model goes the short way once it has been called."""
    inputs = keras.Input((3,))
    models = [keras.Sequential([inputs, Ours(**options)]), keras.Model(inputs, Ours(**options)(inputs))]

    for model in [*models, ready(**options)]:
        assert not called(model, ways, training=True)
        assert not called(model, ways, training=False)
        assert not called(model, ways)


def _hooked(kind: str) -> Callable[[Outer, pytest.MonkeyPatch], None]:
    return lambda outer, patch: getattr(outer.norm, kind)(lambda *_: None)


def _set(name: str, value: Any) -> Callable[[Outer, pytest.MonkeyPatch], None]:
    return lambda outer, patch: setattr(outer.norm, name, value)


def _vars(name: str, value: Any) -> Callable[[Outer, pytest.MonkeyPatch], None]:
    return lambda outer, patch: patch.setitem(vars(outer.norm), name, value)


def _asks(ask: Callable[[Any, Any], Any]) -> Callable[[Outer, pytest.MonkeyPatch], None]:
    return lambda outer, patch: setattr(outer, "ask", lambda x: ask(outer.norm, x))


def _subclass(outer: Outer, patch: pytest.MonkeyPatch) -> None:
    outer.norm.__class__ = type("Own", (Ours,), {})


def _version(outer: Outer, patch: pytest.MonkeyPatch) -> None:
    from evenly.keras import shortcut

    patch.setattr(shortcut, "known", False)


def _global_hook(outer: Outer, patch: pytest.MonkeyPatch) -> None:
    from torch.nn.modules import module

    patch.setitem(module._global_forward_hooks, -1, lambda *_: None)


def _around(owner: str) -> Callable[[Outer, pytest.MonkeyPatch], None]:
    def set_up(outer: Outer, patch: pytest.MonkeyPatch) -> None:
        import torch

        cls = {"keras": keras.layers.Layer, "torch": torch.nn.Module}[owner]
        theirs = cls.__call__
        patch.setattr(cls, "__call__", lambda self, *args, **kwargs: theirs(self, *args, **kwargs))

    return set_up


def _masked(norm: Any, x: Any) -> Any:
    x = x * 1
    x._keras_mask = ops.ones(x.shape[:-1], "bool")
    return norm(x)


UNUSUAL = {
    "another Keras": _version,
    "a subclass": _subclass,
    "a mask on the input": _asks(_masked),
    "a mask as argument": _asks(lambda norm, x: norm(x, mask=ops.ones(x.shape[:-1], "bool"))),
    "an argument of the caller's": _asks(lambda norm, x: norm(inputs=x)),
    "a phase that is no bool": _asks(lambda norm, x: norm(x, training=np.True_)),
    "an array": _asks(lambda norm, x: norm(numpy(x))),
    "another type": _asks(lambda norm, x: norm(ops.cast(x, "float16"))),
    "integers": _asks(lambda norm, x: norm(ops.cast(x, "int32"))),
    "not called": _set("_called", False),
    "a policy of another type": _set("_dtype_policy", keras.dtype_policies.DTypePolicyMap()),
    "losses of the output": _set("activity_regularizer", keras.regularizers.L2(0.1)),
    "a context argument": _vars("_call_context_args", {"training", "phase"}),
    "rematerialization": _set("_remat_mode", keras.src.backend.common.remat.RematMode("larger_than", 10**9, [])),
    "an activation of the user's": _set("activation", ops.tanh),
    "a forward hook": _hooked("register_forward_hook"),
    "a forward pre-hook": _hooked("register_forward_pre_hook"),
    "a backward hook": _hooked("register_full_backward_hook"),
    "a backward pre-hook": _hooked("register_full_backward_pre_hook"),
    "a global hook": _global_hook,
    "a forward of the instance's": lambda outer, patch: patch.setitem(vars(outer.norm), "forward", outer.norm.forward),
    "a compiled call": _vars("_compiled_call_impl", lambda *args, **kwargs: args[0]),
    "a function around Keras's calls": _around("keras"),
    "a function around torch's calls": _around("torch"),
}


@pytest.mark.parametrize("unusual", UNUSUAL)
@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_left_where_keras_has_something_to_do(ways: list[str], monkeypatch: pytest.MonkeyPatch, unusual: str) -> None:
    """Each thing that Keras's way looks for leads to Keras's way."""
    outer = ready()
    UNUSUAL[unusual](outer, monkeypatch)

    assert called(outer, ways)


def test_left_in_scopes(ways: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A stateless scope, a distribution, and being called by nobody lead to Keras's way."""
    outer = ready()

    with keras.StatelessScope():
        assert called(outer, ways)

    class Layouts:
        def get_tensor_layout(self, path: str) -> None:
            return None

    keras.distribution.set_distribution(Layouts())
    try:
        assert called(outer, ways)
    finally:
        keras.distribution.set_distribution(None)
    ways.clear()
    outer.norm(ops.convert_to_tensor(X))
    assert ways


@pytest.mark.parametrize("state", ["is_compiling", "tracing"])
def test_left_where_a_graph_is_made(ways: list[str], monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    """While torch compiles or traces, Keras's way is taken."""
    import torch

    from evenly.keras import shortcut

    outer = ready()
    if state == "tracing":
        monkeypatch.setattr(torch._C, "_get_tracing_state", lambda: object())
    else:
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)

    assert not shortcut._eager()
    assert outer.norm.built


def test_input_that_does_not_fit_is_refused_as_by_keras() -> None:
    """The short way has Keras's own check of the input's shape."""
    outer = ready()

    with pytest.raises(ValueError, match="expected axis -1 of input shape to have value 3"):
        outer(ops.convert_to_tensor(array(8, 4)))


@pytest.mark.parametrize(("argument", "caller"), [(True, None), (False, True), (None, True), ("none", True)])
def test_phase_is_that_of_keras(argument: Any, caller: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The phase comes from the argument, else from the caller, and later layers of the caller see it, as in Keras."""
    from evenly.keras import shortcut

    found = []
    for known in (True, False):
        outer = ready()
        monkeypatch.setattr(shortcut, "known", known and shortcut.known)
        kwargs = {} if argument == "none" else {"training": argument}
        later = Ours()
        later.build((None, 3))
        outer.ask = lambda x, outer=outer, later=later, kwargs=kwargs: later(outer.norm(x, **kwargs))
        outer(ops.convert_to_tensor(X), training=caller)
        found.append(np.concatenate([*outer.norm.get_weights(), *later.get_weights()]))

    np.testing.assert_array_equal(*found)


def test_input_that_seems_to_fit_fits() -> None:
    """What the quick look at a specification lets pass, Keras's own does; what it does not like is Keras's to judge."""
    from keras.src.layers.input_spec import assert_input_compatibility

    from evenly.keras import shortcut

    specs = [
        keras.layers.InputSpec(ndim=2, axes={1: 5}),
        keras.layers.InputSpec(ndim=3, axes={-1: 5}),
        keras.layers.InputSpec(axes={1: None}),
        keras.layers.InputSpec(min_ndim=3),
        keras.layers.InputSpec(max_ndim=2),
        keras.layers.InputSpec(dtype="float16"),
        keras.layers.InputSpec(shape=(4, 5)),
    ]
    passed = 0
    for spec in specs:
        for shape in ((4, 5), (4, 6), (4, 5, 5), (4, 5, 6)):
            if shortcut._fits(spec, ops.zeros(shape)):
                passed += 1
                assert_input_compatibility(spec, ops.zeros(shape), layer_name="norm")

    assert passed == 6
    assert not shortcut._fits(None, ops.zeros((4, 5)))
