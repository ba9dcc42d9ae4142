"""A trained model with its data's maps: predictions for raw series, and a look at its oscillators.

Legend: N series, L steps, C channels of the files (without time), H features, P oscillators.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from .layer import AbstractHRULayer
from .normalisation import standardised
from .physics.oscillations import Oscillators, small_oscillations
from .rhel.hamiltonian import leapfrog
from .rhel.requirements import position_like
from .stack import HRU


class SeriesError(ValueError):
    """Series that a trained model cannot take, or an output that is not finite. The message names value and place."""


class Classes(NamedTuple):
    """The prediction of a classification: the name of the most probable class, and the probabilities of all.

    If several last steps are classified, `names` is (N, steps) and `probabilities` (N, steps, classes).
    """

    names: np.ndarray
    probabilities: Float[np.ndarray, "N *steps classes"]


class OfRawSeries(eqx.Module):
    """A trained model with the maps of its data set: its inputs and outputs have the units of the files.

    (x - mean) * scale for every channel (0 and 1 for the channel of time), then `trained`, then centre + unit * output,
    with one centre and unit for all outputs of a step or one for each.
    """

    trained: HRU
    mean: Float[Array, " data_dim"]
    scale: Float[Array, " data_dim"]
    label_centre: float | Float[Array, "1 label_dim"]
    label_unit: float | Float[Array, "1 label_dim"]

    def standardised(self, x: Float[Array, "L data_dim"]) -> Float[Array, "L data_dim"]:
        """The inputs of `trained`."""
        return (x - self.mean[None]) * self.scale[None]

    def __call__(self, x: Float[Array, "L data_dim"], state: eqx.nn.State, key: PRNGKeyArray | None = None):
        """Output and state, as from the trained model."""
        output, state = self.trained(self.standardised(x), state, key)
        return self.label_centre + self.label_unit * output, state


@dataclass(frozen=True, eq=False, repr=False)
class TrainedModel:
    """The model of a run. `model, state = load_run(folder)` takes it apart.

    - `folder`, `record`: of the run; the content of its config.json.
    - `trained`: the network as it was trained, for inputs as the loaders of the data serve them.
    - `model`: the network for series, with labels, in the units of the files, and with the channel of time. It is
      `trained` itself, or holds it as `model.trained` if the run standardised its channels or mapped its labels.
    - `state`: the averages of the BatchNorm.
    - `over(function)`: a function(model, state, batch) as several devices compute it. By default one computes it.

    The methods take raw series (N, L, C), without the channel of time, as arrays of numbers. If the run had padded
    data, series may be shorter: a list of arrays (L_i, C), or NaN after their ends. The methods work without dropout,
    in the precision of the run, batch by batch. They raise `SeriesError` for another shape than the series of the run
    had, for values that are missing or not finite, and for outputs that are not finite.
    """

    folder: Path
    record: dict[str, Any]
    trained: HRU
    model: HRU | OfRawSeries
    state: eqx.nn.State
    over: Callable[[Callable], Callable] = field(default=lambda function: function, kw_only=True)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.state))

    def __repr__(self) -> str:
        config, data = self.record["config"], self.record["data"]
        words = [config.get(name) for name in ("dataset_name", "model_name", "learning_algorithm")]
        title = " ".join(word for word in words if word) or type(self).__name__
        gives = ", ".join(self.class_names) if self.trained.classification else "numbers"
        return f"<{title} from {self.folder}: takes series (N, {data['length']}, {self.channels}), gives {gives}>"

    @property
    def channels(self) -> int:
        """The channels of the files, without time."""
        return self.record["data"]["data_dim"] - self._time

    @property
    def class_names(self) -> list[str]:
        """The classes in the order of the logits, for a classification. Classes without names have numbers."""
        data = self.record["data"]
        return data.get("class_names") or [str(number) for number in range(data["label_dim"])]

    @property
    def units(self) -> list[AbstractHRULayer]:
        """The unit of every block."""
        return [block.unit for block in self.trained.blocks]

    def predict(self, x: Any) -> Classes | Float[np.ndarray, "..."]:
        """For a classification the `Classes` of the series. For a regression the outputs in the units of the labels.

        The outputs have the shape of labels (N, output steps, outputs of a step) without axes of size 1: (N,) for one
        label a series, (N, outputs) for several of a series, (N, output steps) for one at each step.
        """
        outputs = np.concatenate(list(self.outputs(x)))
        if self.trained.classification:
            return self.classes(outputs)
        return outputs.reshape(len(outputs), *(size for size in outputs.shape[1:] if size > 1))

    def classes(self, logits: Float[np.ndarray, "N *steps classes"]) -> Classes:
        """The `Classes` of logits."""
        exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
        probabilities = exponentials / exponentials.sum(axis=-1, keepdims=True)
        return Classes(np.array(self.class_names)[np.argmax(logits, axis=-1)], probabilities)

    def outputs(self, x: Any) -> Iterator[Float[np.ndarray, "batch ..."]]:
        """Batch by batch, logits (batch, classes) or (batch, last steps, classes).

        Of a regression the outputs (batch, output steps, outputs).
        """
        model = eqx.nn.inference_mode(self.model)
        for start, size, batch in self._batches(x):
            with self._precision():
                outputs = np.asarray(self.over(_outputs)(model, self.state, jnp.asarray(batch)))[:size]
            bad = np.flatnonzero(~np.isfinite(outputs.reshape(size, -1)).all(axis=1))
            if len(bad):
                raise SeriesError(
                    f"the prediction for series {start + bad[0]} (from 0) is not finite: its values are too large."
                )
            yield outputs

    def oscillators(self) -> list[Oscillators]:
        """Frequency, period and time constant of the oscillators of every block; see `oscillators_of`."""
        with self._precision():
            return oscillators_of(self.trained)

    def drives(self, x: Any) -> list[Float[np.ndarray, "N L ..."]]:
        """For every block the drives of its unit along the series, (N, L, P), or as the ports of your own unit give."""
        return self._along(_drives, x)

    def energies(self, x: Any) -> list[Float[np.ndarray, "N L"]]:
        """For every block the energy of its unit after each step of the series, above the energy of q = p = 0.

        It is kinetic(p) + potential(q, 0), which is the sum of H times time step over the oscillators, without the
        term of the drive. The unit starts with the energy 0. The drive puts energy in and takes energy out; friction
        takes energy out. Without both the energy stays, up to the error of the leapfrog, O(step²). An energy that grows
        all along the series shows a drive in resonance, or an unstable unit.
        """
        return self._along(_energies, x)

    def require(self, series: np.ndarray) -> None:
        """Raises `SeriesError` if an array is not of numbers (N, L, C), with the L and C of the run."""
        length, channels = self.record["data"]["length"], self.channels
        if series.dtype.kind not in "biuf" or series.ndim != 3 or 0 in series.shape:
            hint = ""
            if series.shape == (length, channels):
                hint = " A single series is x[None]."
            elif channels == 1 and series.ndim == 2 and series.shape[1] == length:
                hint = " Series of one channel are x[:, :, None]."
            raise SeriesError(
                f"{series.dtype} of shape {series.shape}; needed are numbers (series, time steps, channels).{hint}"
            )
        is_shorter = self._padded and series.shape[1] < length
        if series.shape[2] != channels or not (is_shorter or series.shape[1] == length):
            hint = ""
            if series.shape[1:] == (channels, length):
                hint = " The axes are in another order: np.swapaxes(x, 1, 2) mends it."
            elif self._time and series.shape[1:] == (length, channels + 1):
                hint = " The channel of time is added here: leave it out."
            raise SeriesError(
                f"series of {series.shape[1]} time steps and {series.shape[2]} channels; the run {self.folder} was "
                f"trained on {'at most ' if self._padded else ''}{length} steps and {channels} channels.{hint}"
            )

    @property
    def _padded(self) -> bool:
        return bool(self.record["data"].get("padded"))

    @property
    def _time(self) -> bool:
        return bool(self.record["config"].get("time"))

    def _precision(self):
        return jax.enable_x64(self.record["precision"] == "float64")

    def _along(self, function, x: Any) -> list[np.ndarray]:
        model, batches = eqx.nn.inference_mode(self.model), []
        for _, size, batch in self._batches(x):
            with self._precision():
                of_blocks = self.over(function)(model, self.state, jnp.asarray(batch))
            batches.append([np.asarray(block)[:size] for block in of_blocks])
        return [np.concatenate(of_block) for of_block in zip(*batches, strict=True)]

    def _batches(self, x: Any) -> Iterator[tuple[int, int, Float[np.ndarray, "batch L data_dim"]]]:
        """The number of the first series, the number of series, and the batch with the channel of time.

        A batch has always the size of the training's: one compiled program, and the arithmetic of the evaluations.
        Holds one batch at a time.
        """
        series = x if isinstance(x, np.ndarray) else _stacked(x)
        self.require(series)
        batch_size = self.record["config"].get("batch_size") or len(series)
        for start in range(0, len(series), batch_size):
            with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is reported
                batch = np.asarray(series[start : start + batch_size]).astype(np.float32)
            if self._padded:
                batch = _with_zeros(batch, self.record["data"]["length"])
            bad = np.argwhere(~np.isfinite(batch))
            if len(bad):
                index, step, channel = bad[0]
                raise SeriesError(
                    f"a value is missing, infinite or beyond float32: series {start + index}, time step {step}, "
                    f"channel {channel} (from 0)."
                )
            if self._time:  # as in the loaders of the data: t/L, the first channel
                time = np.arange(batch.shape[1]) / batch.shape[1]
                times = np.broadcast_to(time.astype(np.float32)[:, None], (*batch.shape[:2], 1))
                batch = np.concatenate([times, batch], axis=2)
            yield start, len(batch), np.resize(batch, (batch_size, *batch.shape[1:]))


def _stacked(x: Any) -> np.ndarray:
    """An array of series (L_i, C), NaN after their ends if they differ in length."""
    try:
        return np.asarray(x)
    except ValueError:  # of different lengths
        pass
    try:
        values, lengths = np.concatenate(x), np.array([len(series) for series in x])
        data = np.full((len(lengths), lengths.max(), *values.shape[1:]), np.nan)
        data[np.arange(lengths.max()) < lengths[:, None]] = values
    except (ValueError, TypeError) as error:
        raise SeriesError(f"the series are no arrays of numbers (time steps, channels): {error}.") from error
    return data


def _with_zeros(series: Float[np.ndarray, "batch steps C"], length: int) -> Float[np.ndarray, "batch L C"]:
    """Zeros after the ends of the series, as in padded data. A series without any value stays NaN."""
    ended = np.cumsum(~np.isnan(series[:, ::-1]).all(axis=2), axis=1)[:, ::-1] == 0
    series = np.where((ended & ~ended[:, :1])[:, :, None], 0, series)
    return np.pad(series, ((0, 0), (0, length - series.shape[1]), (0, 0)))


def oscillators_of(network: HRU) -> list[Oscillators]:
    """Frequency, period and time constant of the oscillators of every block, in steps of the series.

    They are small oscillations around the position of rest at the drive 0, which is the average drive: BatchNorm has
    taken the mean off the inputs. LinHRU: the values hold at any amplitude. NonlinHRU and others: small amplitudes
    only. A complex unit has its oscillators twice, first the real parts and then the imaginary parts.

    Raises `ValueError` if a unit has no position of rest.
    """
    found = []
    for block in network.blocks:
        system = block.unit.system()
        inputs = jax.ShapeDtypeStruct((1, network.encoder.weight.shape[0]), network.encoder.weight.dtype)
        drive = np.zeros(jax.eval_shape(system.drive, inputs).shape[1:])
        position, rate = position_like(system, inputs), block.unit.damping_rate()
        n_osc = None if position.shape == drive.shape else position.shape[0]
        found.append(
            small_oscillations(system.hamiltonian, drive, n_osc=n_osc, damping_rate=0.0 if rate is None else rate)
        )
    return found


@eqx.filter_jit
def _outputs(model, state, x: Float[Array, "batch L data_dim"]) -> Float[Array, "batch ..."]:
    return jax.vmap(model, axis_name="batch", in_axes=(0, None, None), out_axes=(0, None))(x, state, None)[0]


@eqx.filter_jit
def _drives(model, state, x: Float[Array, "batch L data_dim"]) -> list[Float[Array, "batch L ..."]]:
    def of_series(x):
        trained = model
        if isinstance(model, OfRawSeries):
            trained, x = model.trained, model.standardised(x)
        drives, x = [], jax.vmap(trained.encoder)(x)
        for block in trained.blocks:
            standardisation, _ = block.norm(x, state)
            drives.append(standardised(block.unit.system(), standardisation).drive(x))
            x, _ = block(x, state)
        return drives

    return jax.vmap(of_series, axis_name="batch")(x)


@eqx.filter_jit
def _energies(model, state, x: Float[Array, "batch L data_dim"]) -> list[Float[Array, "batch L"]]:
    trained = model.trained if isinstance(model, OfRawSeries) else model
    of_blocks = zip(trained.blocks, _drives(model, state, x), strict=True)
    return [jax.vmap(lambda drives, unit=block.unit: _energy(unit, drives))(drives) for block, drives in of_blocks]


def _energy(unit: AbstractHRULayer, drives: Float[Array, "L ..."]) -> Float[Array, " L"]:
    """The energy of a unit after each step, from rest."""
    system, rate = unit.system(), unit.damping_rate()
    hamiltonian = system.hamiltonian
    kept = 1 if rate is None else jnp.exp(-rate)
    zeros = jnp.zeros(system.position_shape(drives.shape[1:]), drives.dtype)

    def energy(state):
        q, p = state
        return hamiltonian.kinetic(p) + hamiltonian.potential(q, jnp.zeros_like(drives[0]))

    def step(state, drive):
        state, _ = leapfrog(hamiltonian.velocity, hamiltonian.force, state, drive)
        state = jax.tree.map(lambda x: kept * x, state)
        return state, energy(state)

    start = (zeros, zeros)
    return jax.lax.scan(step, start, drives)[1] - energy(start)
