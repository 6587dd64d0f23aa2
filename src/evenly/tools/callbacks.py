"""Thin skins: `watch` as a callback of Lightning's and of Keras's; each is imported when asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from evenly.tools.history import History
from evenly.tools.watch import Recorder, watch


def lightning_callback(every: int = 50, html: str | None = None) -> Any:
    """A Lightning callback that watches the model while ``Trainer.fit`` runs.

    Args:
        every: look at each so-manieth batch.
        html: write the page there at the end.

    Returns:
        A ``lightning.pytorch.Callback``, whose ``history`` is the `History`.

    Raises:
        ImportError: neither lightning nor pytorch_lightning is installed.
    """
    base = _first("lightning.pytorch", "pytorch_lightning").Callback
    return type("Watch", (_LightningWatch, base), {})(every, html)


def keras_callback(every: int = 50, html: str | None = None) -> Any:
    """A Keras 3 callback that watches the model's normalization layers while ``fit`` runs.

    Values can be looked at only where layers run one by one: on the torch backend.

    Args:
        every: look at each so-manieth batch.
        html: write the page there at the end.

    Returns:
        A ``keras.callbacks.Callback``, whose ``history_`` is the `History`.

    Raises:
        ImportError: keras is not installed.
        RuntimeError: keras runs on another backend.
    """
    keras = _first("keras")
    name = keras.backend.backend()
    if name != "torch":
        raise RuntimeError(
            f"keras runs on {name}; values can be watched on its torch backend: set KERAS_BACKEND=torch."
        )
    return type("Watch", (_KerasWatch, keras.callbacks.Callback), {})(every, html)


class _LightningWatch:
    """What Lightning calls around a fit."""

    def __init__(self, every: int, html: str | None) -> None:
        super().__init__()
        self._every, self._html, self.history = every, html, History()

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Begin to watch the module's norms; a training step seldom calls the module itself."""
        if stage == "fit":
            self._watch = watch(pl_module, self._every)
            self.history = self._watch.attach()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """A new step."""
        self._watch.begin()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """What was seen of it."""
        self._watch.end()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Take the hooks away; write the page."""
        if stage == "fit":
            self._watch.__exit__()
            if self._html is not None:
                self.history.to_html(self._html)


class _KerasWatch:
    """What Keras calls around a fit; it has no hooks, so each layer's ``call`` is stood in front of."""

    model: Any  # Keras sets it

    def __init__(self, every: int, html: str | None) -> None:
        super().__init__()
        self._every, self._html = every, html
        self._recorder = Recorder()
        self.history_ = self._recorder.history
        self._looking, self._step = False, -1
        self._layers: list[Any] = []

    def on_train_begin(self, logs: Any = None) -> None:
        """Stand before the call of each normalization layer."""
        for layer in self.model._flatten_layers(include_self=False):
            if "Normalization" in type(layer).__name__ and hasattr(layer, "axis"):
                self._layers.append(layer)
                layer.call = self._seen(layer, layer.call)

    def _seen(self, layer: Any, call: Any) -> Any:
        axis = layer.axis if isinstance(layer.axis, int) else layer.axis[-1]

        def seen(inputs: Any, *args: Any, **kwargs: Any) -> Any:
            output = call(inputs, *args, **kwargs)
            if self._looking:
                self._recorder.look(layer.name, inputs, output, axis % inputs.ndim)
            return output

        return seen

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """A new step."""
        self._step += 1
        self._looking = self._step % self._every == 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """What was seen of it."""
        if self._looking:
            self._looking = False
            self._recorder.flush(self._step)

    def on_train_end(self, logs: Any = None) -> None:
        """Give the layers their own call back; write the page."""
        for layer in self._layers:
            del layer.call
        self._layers.clear()
        if self._html is not None:
            self.history_.to_html(self._html)


def _first(*names: str) -> Any:
    """The first of these packages that is installed."""
    for name in names:
        try:
            return import_module(name)
        except ImportError:
            continue
    raise ImportError(f"this callback needs {' or '.join(names)}; install one of them.")
