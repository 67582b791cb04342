"""Nests of tensors: lists, tuples and dicts of them, flattened and packed.

Anything in a nest that is not a tensor, such as `None`, stays as it is.
"""

import keras
from keras import tree


def is_tensor(x):
    return hasattr(x, "shape")


def is_dense(x):
    """Whether a tensor is neither sparse nor ragged."""
    name = type(x).__name__
    return not ("Sparse" in name or "Ragged" in name)


def flatten(nest):
    # Most nests are one tensor, and `keras.tree` is slow on some backends.
    if nest is None or is_tensor(nest):
        return [nest]
    if _is_flat(nest):
        return list(nest)
    numbers, leaves = _numbered(nest)
    return [leaves[number] for number in tree.flatten(numbers)]


def flatten_with_path(nest):
    if _is_flat(nest):
        return [((i,), x) for i, x in enumerate(nest)]
    numbers, leaves = _numbered(nest)
    pairs = tree.flatten_with_path(numbers)
    return [(path, leaves[number]) for path, number in pairs]


def pack(nest, leaves):
    """Replaces the leaves of `nest` with others, in the order of `flatten`.

    Dicts keep the order of their keys.
    """
    if nest is None or is_tensor(nest):
        return leaves[0]
    if _is_flat(nest):
        return type(nest)(leaves)
    numbers, _ = _numbered(nest)
    of_number = dict(zip(tree.flatten(numbers), leaves, strict=True))
    return tree.map_structure(of_number.get, numbers)


def _is_flat(nest):
    # Most other nests are flat.
    return type(nest) in (list, tuple) and all(
        x is None or is_tensor(x) for x in nest
    )


def _numbered(nest):
    """Replaces the leaves of a nest with numbers.

    Mapping functions visit leaves in another order on each backend, so only
    these numbers may depend on it. Flattening a nest of tensors itself would
    keep them alive on PyTorch, with everything that they were computed from,
    until garbage collection.

    Returns:
        Tuple of the nest of numbers and the list of leaves.
    """
    leaves: list = []

    def number(leaf):
        leaves.append(leaf)
        return len(leaves) - 1

    return tree.map_structure(number, nest), leaves


def tensors(nest):
    return list(filter(is_tensor, flatten(nest)))


def pack_tensors(nest, tensors):
    """Replaces the tensors of `nest` with others."""
    others = iter(tensors)
    leaves = [next(others) if is_tensor(x) else x for x in flatten(nest)]
    return pack(nest, leaves)


def map_tensors(fn, nest, *nests):
    """Maps `fn` over the tensors of `nest`; its other leaves stay."""
    if is_tensor(nest):
        return fn(nest, *nests)
    if nest is None:
        return None
    return tree.map_structure(
        lambda x, *xs: fn(x, *xs) if is_tensor(x) else x, nest, *nests
    )


def shapes(nest):
    """The shapes of the tensors of a nest."""
    return map_tensors(lambda x: tuple(x.shape), nest)


def dtype(x):
    return keras.backend.standardize_dtype(x.dtype)


def has_dtype(x, *kinds):
    """Whether the name of a tensor's dtype contains one of `kinds`."""
    known = getattr(x, "dtype", None) is not None
    return known and any(kind in dtype(x) for kind in kinds)


def symbol(x):
    """A symbolic tensor like `x`."""
    if keras.backend.is_keras_tensor(x):
        return x
    # NumPy has several string dtypes.
    strings = getattr(x.dtype, "kind", "") in ("U", "S", "O")
    return keras.KerasTensor(x.shape, "string" if strings else dtype(x))


def symbols(nest):
    """Symbolic tensors like those of a nest."""
    return map_tensors(symbol, nest)


def split(items, flags):
    """Splits a list in two: items with a flag, and items without."""
    pairs = list(zip(items, flags, strict=True))
    return [x for x, f in pairs if f], [x for x, f in pairs if not f]


def merge(chosen, others, flags):
    """Undoes `split`."""
    chosen, others = iter(chosen), iter(others)
    return [next(chosen if f else others) for f in flags]
