"""Moves valid time steps together, and their outputs back.

Every function takes `valid`, which steps are valid, of shape `(batch, time)`.
"""

import dataclasses
import itertools
from typing import Any

from keras import ops

from keras_td import folding
from keras_td import masking
from keras_td import trees

# Where shapes must not depend on data, a layer is called on some of the parts
# of 1/2, 1/4, 1/8 and 1/8 of the steps: at most an eighth more than needed.
PARTS = 4


@dataclasses.dataclass(frozen=True)
class Packing:
    """Which time steps move where for a call.

    Args:
        valid: Which steps are valid, `(batch, time)`.
        places: The folded step that each new place gets.
        new_places: The new place of each folded step, if it is valid.
        sizes: The batch and the time of the new places.
        filled: Which new places get valid steps, of shape `sizes`. `None` means
            all.
    """

    valid: Any
    places: Any
    new_places: Any
    sizes: tuple
    filled: Any

    def pack(self, arguments):
        packed = arguments.map(lambda x: _take(x, self.places, self.sizes))
        return dataclasses.replace(
            packed,
            time=self.sizes[1],
            valid=self.filled,
            without_padding=self.filled is None,
        )

    def unpack(self, results, packed, arguments):
        """Moves results back to their steps; other steps become zeros.

        Args:
            results: Tuple of the outputs and their masks.
            packed: The packed `Arguments`.
            arguments: The `Arguments` before packing.
        """
        outputs, masks = results
        masks = masking.restore_uncut(masks, packed.masks, arguments.masks)
        return tuple(
            trees.map_tensors(self._unpack, n) for n in (outputs, masks)
        )

    def _unpack(self, y):
        y = _take(y, self.new_places, folding.sizes(self.valid))
        return folding.zeros_except_at(self.valid, y)


def is_static(valid):
    """Whether shapes must not depend on the values of `valid`."""
    return _places_of(folding.fold(valid)) is None


def count(valid):
    """How many steps are valid, or how many there are if shapes are static."""
    rows = folding.fold(valid)
    places = _places_of(rows)
    return folding.sizes(rows if places is None else places)[0]


def only_valid(valid, at_least_one=False):
    """Valid steps become the samples of a batch, with a time of 1.

    Where shapes must not depend on data, they stay `in_place`.

    Args:
        valid: Which steps are valid.
        at_least_one: Whether the first step is in the batch if none is valid.
    """
    rows = called = folding.fold(valid)
    numbers = ops.arange(folding.sizes(rows)[0])
    if at_least_one:
        called = ops.where(ops.any(rows), rows, ops.equal(numbers, 0))
    places = _places_of(called)
    if places is None:
        return in_place(valid)
    sizes = folding.sizes(places)[0], 1
    return Packing(valid, places, _ranks(rows), sizes, None)


def in_place(valid):
    """Valid steps stay, and one of them replaces each of the other steps."""
    rows = folding.fold(valid)
    numbers = ops.arange(folding.sizes(rows)[0])
    places = ops.where(rows, numbers, ops.argmax(rows))
    return Packing(valid, places, numbers, folding.sizes(valid), valid)


def valid_in_a_row(valid, steps):
    """Valid steps become the time steps of one sample, in the order of time.

    Args:
        valid: Which steps are valid, with concrete values.
        steps: How many steps of all samples a call sees.

    Returns:
        Tuple of the packing, and how many of its steps each call sees.
    """
    batch, time = folding.sizes(valid)
    rows = _by_time(valid)
    places = _to_batch_major(_places_of(rows), batch, time)
    ranks = folding.fold(_by_batch(_ranks(rows), batch, time))
    [count] = places.shape
    # (batch, time, ...) -> (1, valid, ...)
    packing = Packing(valid, places, ranks, (1, count), None)
    first = (time - 1) % steps + 1
    edges = [*range(first * batch, count, steps * batch), count]
    return packing, [b - a for a, b in itertools.pairwise([0, *edges])]


def valid_first(valid):
    """Valid steps come first, in the order of time; sizes stay the same."""
    batch, time = folding.sizes(valid)
    rows = _by_time(valid)
    ranks = _ranks(rows)
    places = _to_batch_major(_in_order(rows), batch, time)
    new_places = _to_batch_major(ranks, batch, time)
    filled = ops.arange(batch * time) < _sum(rows)
    places, new_places, filled = (
        _by_batch(x, batch, time) for x in (places, new_places, filled)
    )
    return Packing(
        valid,
        folding.fold(places),
        folding.fold(new_places),
        (batch, time),
        filled,
    )


def in_parts(valid):
    """Valid steps fill as few of the parts as can hold them.

    Returns:
        Tuple of the packing, with a batch of 1, and the sizes of the parts.
    """
    rows = folding.fold(valid)
    [size] = rows.shape
    parts = _halves(size)
    ranks, filled, left = [], [], _sum(rows)
    for number, part in enumerate(parts):
        later = sum(parts[number + 1 :])
        taken = ops.logical_or(left >= part, left > later)
        ranks.append(ops.arange(part) + _sum(rows) - left)
        filled.append(ops.logical_and(taken, ops.arange(part) < left))
        left = ops.where(taken, ops.maximum(left - part, 0), left)
    ranks, filled = ops.concatenate(ranks), ops.concatenate(filled)
    places = ops.take(_in_order(rows), ops.where(filled, ranks, 0))
    new_places = ops.take(_in_order(filled), _ranks(rows))
    packing = Packing(valid, places, new_places, (1, size), filled[None])
    return packing, parts


def _halves(size):
    """Sizes of parts, each half of what the earlier ones leave."""
    parts, left = [], size
    for _ in range(PARTS - 1):
        parts.append(left // 2)
        left -= left // 2
    return [part for part in (*parts, left) if part]


def _by_time(x):
    # (batch, time) -> (time * batch,)
    return folding.fold(ops.swapaxes(x, 0, 1))


def _by_batch(x, batch, time):
    # (time * batch,) -> (batch, time)
    return ops.swapaxes(ops.reshape(x, (time, batch)), 0, 1)


def _to_batch_major(places, batch, time):
    """Converts places in `(time * batch,)` to those in `(batch * time,)`."""
    return places % batch * time + places // batch


def _places_of(rows):
    """The places of rows that are valid, or `None` if shapes are static."""
    try:
        return ops.reshape(ops.nonzero(rows)[0], (-1,))
    except Exception:
        return None


def _in_order(rows):
    """The places of rows: first the valid ones, and then the others."""
    size = folding.sizes(rows)[0]
    numbers = ops.arange(size)
    return ops.argsort(ops.where(rows, numbers, numbers + size))


def _ranks(rows):
    """The rank of each valid row among the valid rows."""
    return ops.maximum(ops.cumsum(ops.cast(rows, "int32")) - 1, 0)


def _sum(rows):
    return ops.sum(ops.cast(rows, "int32"))


def _take(x, places, sizes):
    """The steps of `x` at folded places, as a batch and a time of `sizes`."""
    rows = ops.take(folding.fold(x), places, axis=0)
    return ops.reshape(rows, (*sizes, *folding.sizes(rows)[1:]))
