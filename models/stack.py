"""The network around a unit: the block, the stack of blocks with its encoder and decoder.

Everything acts on one sequence (L, ..) under `jax.vmap(..., axis_name="batch")`, over which BatchNorm averages.
"""

from collections.abc import Callable
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from models.layer import AbstractHRULayer


def _split(key: PRNGKeyArray | None, num: int):
    """As `jax.random.split`; no key (in inference) splits into none."""
    return [None] * num if key is None else jax.random.split(key, num)


class GLU(eqx.Module):
    """Gated linear unit: w1(x) * sigmoid(w2(x))."""

    w1: eqx.nn.Linear
    w2: eqx.nn.Linear

    def __init__(self, input_dim: int, output_dim: int, *, key: PRNGKeyArray):
        w1_key, w2_key = jax.random.split(key)
        self.w1 = eqx.nn.Linear(input_dim, output_dim, key=w1_key)
        self.w2 = eqx.nn.Linear(input_dim, output_dim, key=w2_key)

    def __call__(self, x: Float[Array, "L in"]) -> Float[Array, "L out"]:
        """The same unit at every step."""
        return jax.vmap(self.w1)(x) * jax.nn.sigmoid(jax.vmap(self.w2)(x))


class HRUBlock(eqx.Module):
    """BatchNorm (no affine) -> unit -> GELU -> dropout -> GLU -> dropout -> + skip."""

    norm: eqx.nn.BatchNorm
    unit: AbstractHRULayer
    glu: GLU
    dropout: eqx.nn.Dropout

    def __init__(
        self,
        unit: AbstractHRULayer,
        *,
        hidden_dim: int,
        batchnorm: Literal["ema", "batch"] = "batch",
        dropout_rate: float = 0.05,
        key: PRNGKeyArray,
    ):
        self.norm = eqx.nn.BatchNorm(hidden_dim, axis_name="batch", channelwise_affine=False, mode=batchnorm)
        self.unit = unit
        self.glu = GLU(hidden_dim, hidden_dim, key=key)
        self.dropout = eqx.nn.Dropout(dropout_rate)

    def __call__(
        self, x: Float[Array, "L H"], state: eqx.nn.State, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "L H"], eqx.nn.State]:
        """Output of the block and the new BatchNorm state. `key` draws the dropout masks."""
        unit_key, glu_key = _split(key, 2)
        y, state = self.norm(x.T, state)
        y = self.unit(y.T)
        y = self.dropout(jax.nn.gelu(y), key=unit_key)
        y = self.dropout(self.glu(y), key=glu_key)
        return x + y, state


class HRU(eqx.Module):
    """Linear encoder -> blocks -> mean over time, or every output_step-th position -> linear decoder.

    `unit` makes the unit of one block from `key=`; this is where a unit of one's own is plugged in. `block` is the
    class of the blocks.
    """

    encoder: eqx.nn.Linear
    blocks: list[HRUBlock]
    decoder: eqx.nn.Linear
    classification: bool = eqx.field(static=True)
    output_step: int = eqx.field(static=True)

    def __init__(
        self,
        unit: Callable[..., AbstractHRULayer],
        hidden_dim: int,
        *,
        block: type[HRUBlock] = HRUBlock,
        data_dim: int,
        label_dim: int,
        num_blocks: int,
        classification: bool,
        output_step: int = 1,
        batchnorm: Literal["ema", "batch"] = "batch",
        dropout_rate: float = 0.05,
        key: PRNGKeyArray,
    ):
        encoder_key, decoder_key, *block_keys = jax.random.split(key, num_blocks + 2)
        self.encoder = eqx.nn.Linear(data_dim, hidden_dim, key=encoder_key)
        self.blocks = [
            block(
                unit(key=unit_key),
                hidden_dim=hidden_dim,
                batchnorm=batchnorm,
                dropout_rate=dropout_rate,
                key=block_key,
            )
            for unit_key, block_key in map(jax.random.split, block_keys)
        ]
        self.decoder = eqx.nn.Linear(hidden_dim, label_dim, key=decoder_key)
        self.classification = classification
        self.output_step = output_step

    def __call__(
        self, x: Float[Array, "L data_dim"], state: eqx.nn.State, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "..."], eqx.nn.State]:
        """Logits (label_dim,) for classification, else (L // output_step, label_dim) in (-1, 1); and the new state."""
        x = jax.vmap(self.encoder)(x)
        for block, block_key in zip(self.blocks, _split(key, len(self.blocks)), strict=True):
            x, state = block(x, state, block_key)
        if self.classification:
            return self.decoder(jnp.mean(x, axis=0)), state
        if len(x) < self.output_step:
            raise ValueError(f"the sequence has {len(x)} steps, fewer than output_step {self.output_step}")
        return jnp.tanh(jax.vmap(self.decoder)(x[self.output_step - 1 :: self.output_step])), state
