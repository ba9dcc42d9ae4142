"""The network around a unit: the block, the stack of blocks with its encoder and decoder.

A network acts on one sequence (L, ..) under `jax.vmap(..., axis_name="batch")`, over which BatchNorm averages. Inside,
what is wide (L, H) passes through functions that get the whole batch at once, time first: so nothing is transposed on
its way from one to the next, and every product contracts over the batch.
"""

from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry_2x32
from jaxtyping import Array, Float, PRNGKeyArray, Shaped, UInt32

from .layer import AbstractHRULayer
from .normalisation import BatchNorm
from .rhel.batching import batched_at_once
from .rhel.stretches import accelerated_length, by_platform, scan_stretches, stretch_length


def _at_every_step(layer: eqx.nn.Linear, x: Float[Array, "... in"]) -> Float[Array, "... out"]:
    assert layer.bias is not None
    return x @ layer.weight.T + layer.bias[(None,) * (x.ndim - 1)]


_affine = batched_at_once(_at_every_step)


class GLU(eqx.Module):
    """Gated linear unit: w1(x) * sigmoid(w2(x))."""

    w1: eqx.nn.Linear
    w2: eqx.nn.Linear

    def __init__(self, input_dim: int, output_dim: int, *, key: PRNGKeyArray):
        w1_key, w2_key = jax.random.split(key)
        self.w1 = eqx.nn.Linear(input_dim, output_dim, key=w1_key)
        self.w2 = eqx.nn.Linear(input_dim, output_dim, key=w2_key)

    def __call__(self, x: Float[Array, "... in"]) -> Float[Array, "... out"]:
        """The same unit at every step."""
        return _at_every_step(self.w1, x) * jax.nn.sigmoid(_at_every_step(self.w2, x))


class FeedForward(eqx.Module):
    """GELU -> dropout -> GLU -> dropout, the same at every step.

    A step draws one random word for each of its features. The two halves of the word give the two masks, so the dropout
    rate is a multiple of 1/65536. With `remat` the layer is computed one stretch of steps at a time, and computed again
    for the gradient: only the input of the whole sequence is kept.
    """

    glu: GLU
    dropout: eqx.nn.Dropout
    remat: bool = eqx.field(static=True)

    def __call__(self, x: Float[Array, "L H"], key: PRNGKeyArray | None = None) -> Float[Array, "L H"]:
        """The result for one sequence. `key` draws the masks. Raises `RuntimeError` if it is needed and missing."""
        if self.dropout.inference or self._cut() == 0:
            return _feed_forward(self, x)
        if key is None:
            raise RuntimeError("dropout needs a key in training: give one, or use equinox.nn.inference_mode")
        return _feed_forward(self, x, jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(x))))

    def _cut(self) -> int:
        return round(self.dropout.p * 65536)

    def of_stretch(
        self, x: Float[Array, "time batch H"], *keys: Shaped[Array, "time batch ..."]
    ) -> Float[Array, "time batch H"]:
        """The result for a stretch of steps. With dropout there is a key for every step and sequence."""
        if not keys:
            return self.glu(jax.nn.gelu(x))
        words = jax.vmap(jax.vmap(lambda key: _random_words(key, x.shape[2])))(*keys)
        cut, scale = np.uint32(self._cut()), 65536 / (65536 - self._cut())
        x = jnp.where(words >> 16 >= cut, scale * jax.nn.gelu(x), 0)
        return jnp.where((words & np.uint32(0xFFFF)) >= cut, scale * self.glu(x), 0)


def _random_words(key: PRNGKeyArray, size: int) -> UInt32[Array, " size"]:
    """Random words as `jax.random.bits` draws them, at half the cost: it computes two words at a time and drops one.

    With `jax.random.bits` a training step at Heartbeat (LinHRU, RHEL, two CPU cores) took 1.18 times as long: the
    median of 60 alternating steps.
    """
    return threefry_2x32(jax.random.key_data(key).ravel()[:2], jnp.arange(size + size % 2, dtype=jnp.uint32))[:size]


@batched_at_once
def _feed_forward(feed_forward, x, *keys):
    if not feed_forward.remat:
        return feed_forward.of_stretch(x, *keys)
    arrays, static = eqx.partition(feed_forward, eqx.is_array)

    @jax.checkpoint
    def of_stretch(arrays, steps):
        return eqx.combine(arrays, static).of_stretch(*steps)

    def in_stretches(length):
        # The loop is needed beside the checkpoint: without it XLA merges the two computations of an array and keeps it.
        return scan_stretches(lambda _, steps: (None, of_stretch(arrays, steps)), None, (x, *keys), length)[1]

    values = x.shape[1] * x.shape[2]
    return by_platform(in_stretches, stretch_length(values), accelerated_length(values))


class HRUBlock(eqx.Module):
    """BatchNorm (no affine) -> unit -> GELU -> dropout -> GLU -> dropout -> + skip."""

    norm: BatchNorm
    unit: AbstractHRULayer
    feed_forward: FeedForward

    def __init__(
        self,
        unit: AbstractHRULayer,
        *,
        hidden_dim: int,
        batchnorm: Literal["ema", "batch"] = "batch",
        dropout_rate: float = 0.05,
        remat: bool = True,
        key: PRNGKeyArray,
    ):
        self.norm = BatchNorm(hidden_dim, mode=batchnorm)
        self.unit = unit
        self.feed_forward = FeedForward(GLU(hidden_dim, hidden_dim, key=key), eqx.nn.Dropout(dropout_rate), remat)

    def __call__(
        self, x: Float[Array, "L H"], state: eqx.nn.State, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "L H"], eqx.nn.State]:
        """Output of the block and the new BatchNorm state. `key` draws the dropout masks."""
        standardisation, state = self.norm(x, state)
        return x + self.feed_forward(self.unit(x, standardisation), key), state


class HRU(eqx.Module):
    """Linear encoder -> blocks -> the positions that are read -> linear decoder.

    A regression reads every output_step-th position. A classification reads the mean over time, or, with `pooling`
    "last", each of the `last_steps` last positions. The mean sees the first step directly.

    Every block has a unit of its own, `unit(hidden_dim, ssm_dim, **unit_options, key=..)`.
    """

    encoder: eqx.nn.Linear
    blocks: list[HRUBlock]
    decoder: eqx.nn.Linear
    classification: bool = eqx.field(static=True)
    output_step: int = eqx.field(static=True)
    pooling: Literal["mean", "last"] = eqx.field(static=True)
    last_steps: int = eqx.field(static=True)

    def __init__(
        self,
        unit: Callable[..., AbstractHRULayer],
        hidden_dim: int,
        ssm_dim: int,
        *,
        data_dim: int,
        label_dim: int,
        num_blocks: int,
        classification: bool,
        output_step: int = 1,
        pooling: Literal["mean", "last"] = "mean",
        last_steps: int = 1,
        batchnorm: Literal["ema", "batch"] = "batch",
        dropout_rate: float = 0.05,
        remat: bool = True,
        key: PRNGKeyArray,
        **unit_options: Any,
    ):
        encoder_key, decoder_key, *block_keys = jax.random.split(key, num_blocks + 2)
        self.encoder = eqx.nn.Linear(data_dim, hidden_dim, key=encoder_key)
        self.blocks = [
            HRUBlock(
                unit(hidden_dim, ssm_dim, **unit_options, key=unit_key),
                hidden_dim=hidden_dim,
                batchnorm=batchnorm,
                dropout_rate=dropout_rate,
                remat=remat,
                key=block_key,
            )
            for unit_key, block_key in map(jax.random.split, block_keys)
        ]
        self.decoder = eqx.nn.Linear(hidden_dim, label_dim, key=decoder_key)
        self.classification = classification
        self.output_step = output_step
        self.pooling = pooling
        self.last_steps = last_steps

    def __call__(
        self, x: Float[Array, "L data_dim"], state: eqx.nn.State, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "..."], eqx.nn.State]:
        """Logits for classification, else (L // output_step, label_dim) in (-1, 1); and the new state.

        The logits are (label_dim,), or (last_steps, label_dim) if last_steps is above 1.
        """
        x = _affine(self.encoder, x)
        block_keys = [None] * len(self.blocks) if key is None else jax.random.split(key, len(self.blocks))
        for block, block_key in zip(self.blocks, block_keys, strict=True):
            x, state = block(x, state, block_key)
        for name in ("output_step", "last_steps"):
            if len(x) < getattr(self, name):
                raise ValueError(f"the sequence has {len(x)} steps, fewer than {name} {getattr(self, name)}")
        if self.classification and self.last_steps > 1:
            return _affine(self.decoder, x[-self.last_steps :]), state
        if self.classification:
            return self.decoder(x[-1] if self.pooling == "last" else jnp.mean(x, axis=0)), state
        return jnp.tanh(_affine(self.decoder, x[self.output_step - 1 :: self.output_step])), state
