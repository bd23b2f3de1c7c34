"""NumPyro: `svi.update` under jax.jit, the gather inside; or a group's steps in one jitted scan."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax, random
from numpyro.infer import SVI, Trace_ELBO

from contenders.cases import LEARNING_RATE, PIXELS, Case, Stepper


def load(spec: dict[str, Any]) -> jax.Array:
    rows = jax.device_put(np.load(spec["data"]).astype(np.float32))
    jax.jit(lambda x: x + 1)(1.0).block_until_ready()  # what is imported when it is first needed
    return rows.block_until_ready()


def dense(name: str, n: int, m: int) -> tuple[jax.Array, jax.Array]:
    """Weights and bias, started as torch's Linear: uniform within 1 / sqrt(n)."""

    def start(shape: tuple[int, ...]) -> Any:
        return lambda key: random.uniform(key, shape, minval=-(n**-0.5), maxval=n**-0.5)

    return numpyro.param(f"{name}.w", start((n, m))), numpyro.param(f"{name}.b", start((m,)))


def mlp(name: str, x: jax.Array, hidden: int, out: int) -> jax.Array:
    w, b = dense(f"{name}.0", x.shape[-1], hidden)
    v, c = dense(f"{name}.1", hidden, out)
    return jax.nn.relu(x @ w + b) @ v + c


def build(spec: dict[str, Any], case: Case, rows: jax.Array, *, scanned: bool = False) -> Stepper:
    numpyro.enable_validation(False)

    def model(x: jax.Array) -> None:
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(case.latent), 1.0).to_event(1))
            logits = mlp("decoder", z, case.hidden, PIXELS)
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x: jax.Array) -> None:
        loc, raw = jnp.split(mlp("encoder", x, case.hidden, 2 * case.latent), 2, -1)
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("z", dist.Normal(loc, jax.nn.softplus(raw) + 1e-4).to_event(1))

    svi = SVI(model, guide, numpyro.optim.Adam(LEARNING_RATE), Trace_ELBO())
    shuffled = np.random.default_rng(spec["seed"]).permutation(len(rows))
    batches = shuffled[: len(rows) // case.batch * case.batch].reshape(-1, case.batch)
    state = svi.init(random.PRNGKey(spec["seed"]), rows[: case.batch])

    def take(state: Any, rows: jax.Array, index: jax.Array) -> tuple[Any, jax.Array]:
        return svi.update(state, jnp.take(rows, index, axis=0, unique_indices=True, mode="clip"))

    loss = jnp.zeros(())
    number = 0
    if scanned:
        # One call is one group of steps: what is timed together for the others.
        length = case.group
        chunks = jnp.asarray(batches[: len(batches) // length * length].reshape(-1, length, case.batch))
        chunks = [chunk.block_until_ready() for chunk in chunks]

        def run(state: Any, rows: jax.Array, chunk: jax.Array) -> tuple[Any, jax.Array]:
            state, losses = lax.scan(lambda s, index: take(s, rows, index), state, chunk)
            return state, losses[-1]

    else:
        length = 1
        chunks = [jnp.asarray(index).block_until_ready() for index in batches]
        run = take
    update = jax.jit(run, donate_argnums=0)

    def step() -> None:
        nonlocal state, loss, number
        state, loss = update(state, rows, chunks[number])
        number = (number + 1) % len(chunks)

    return Stepper(
        step,
        lambda: jax.block_until_ready((state, loss)),
        lambda: float(loss) / case.batch,
        steps_per_call=length,
        notes=lambda: {"backend": jax.default_backend()},
    )
