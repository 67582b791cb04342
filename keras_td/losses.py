"""Averages over the steps the losses that a layer adds in several calls."""

import collections

from keras import ops

from keras_td import internals
from keras_td import trees


def take(scope, layer):
    """Takes the losses that the layer has added out of the scope.

    Returns:
        Dict of the losses. A key holds the inner layer that adds the loss, and
        its position among the losses of that layer.
    """
    losses, scope.losses = scope.losses, []
    places: collections.Counter = collections.Counter()
    taken = {}
    inner_layers = internals.layers_of(layer) if losses else []
    owners = {
        key: number
        for number, inner in enumerate(inner_layers)
        for key in internals.forget_losses(inner, losses)
    }
    for loss in losses:
        owner = owners.get(id(loss), -1)
        taken[owner, places[owner], trees.dtype(loss)] = loss
        places[owner] += 1
    return taken


def add(totals, losses):
    """Sums losses, and their weights; calls need not add the same losses."""
    both = dict(totals)
    for key, (loss, weight) in losses.items():
        total, sum_of_weights = both.get(key, (0, 0))
        both[key] = total + loss, sum_of_weights + weight
    return both


def weighted(losses, steps):
    """What each loss adds to its mean over the calls: a sum and a weight.

    They have at least 32 bits: 16 are too few for many steps.

    Args:
        losses: Dict of losses.
        steps: How many steps the call has seen, or `None` if all of them.

    Raises:
        ValueError: if a loss of some of the steps is not a scalar.
    """
    sums = {}
    for key, loss in losses.items():
        if steps is not None and len(loss.shape):
            raise ValueError(
                "If a layer is called on a few steps at a time "
                "(`steps_per_call`, `share_randomness`), the losses that it "
                "adds must be scalars, as they are averaged over the steps. "
                "Reduce them with `keras.ops.mean`. Received: a loss of shape "
                f"{tuple(loss.shape)}."
            )
        wide = "float64" if trees.dtype(loss) == "float64" else "float32"
        weight = ops.cast(1 if steps is None else steps, wide)
        sums[key] = ops.cast(loss, wide) * weight, weight
    return sums


def zeros_like(totals):
    return {
        key: tuple(map(ops.zeros_like, both)) for key, both in totals.items()
    }


def means(totals):
    """The mean of each loss over the steps of the calls that add it."""
    return [
        ops.cast(total / ops.maximum(weight, 1), dtype)
        for (_, _, dtype), (total, weight) in totals.items()
    ]
