"""The variables that a layer uses, and their values in a scope.

Keras tracks most of them. It does not track the states of recurrent layers,
metrics, the variables of layers that a `Lambda` calls, and the global seed of
those that have no seed; a call discovers these, and is then made again.
"""

import weakref

import keras
from keras import ops

from keras_td import internals
from keras_td import randomness
from keras_td import trees
from keras_td.scopes import without_autocast

# For each layer, the untracked variables that it was found to use.
_untracked: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
# Layers that made variables in a call. If they make others in the next, these
# are not state; if not, they are known by then.
_make_variables: weakref.WeakSet = weakref.WeakSet()
# Layers that assign to their trainable weights.
_assign_weights: weakref.WeakSet = weakref.WeakSet()


class CallAgainError(Exception):
    """A call has revealed something that had to be known before it."""


def used_by(layer):
    """All variables that a layer uses, as far as is known."""
    found = [reference() for reference in _untracked.get(layer, ())]
    # In older Keras, a `TFSMLayer` has TensorFlow variables too.
    found += [v for v in layer.variables if isinstance(v, keras.Variable)]
    return list({id(v): v for v in found if v is not None}.values())


def values_of(variables, layer):
    """The values of variables, in their own dtype."""
    return without_autocast(
        _values_of, variables, _are_weights(variables, layer)
    )


def _values_of(variables, are_weights):
    # PyTorch changes a variable in place, though its old value has gradients.
    return [
        v.value if is_weight else ops.copy(v.value)
        for v, is_weight in zip(variables, are_weights, strict=True)
    ]


def _are_weights(variables, layer):
    """Which variables are trained, and not known to be assigned to by calls."""
    if layer in _assign_weights:
        return [False] * len(variables)
    weights = {
        id(v)
        for inner in internals.layers_of(layer)
        for v in internals.own_weights(inner)
    }
    return [v.trainable or id(v) in weights for v in variables]


def assign(variables, layer, old, new):
    """Assigns the values that calls have changed.

    Raises:
        CallAgainError: if gradients of the calls would be those of the values
            assigned here.
    """
    # A value that no call changes stays the same tensor.
    changed = [a is not b for a, b in zip(old, new, strict=True)]
    if not any(changed):
        return
    are_weights = _are_weights(variables, layer)
    if any(a and b for a, b in zip(changed, are_weights, strict=True)):
        _assign_weights.add(layer)
        raise CallAgainError
    updates = zip(variables, old, new, changed, strict=True)
    without_autocast(_assign, [found for *found, is_new in updates if is_new])


def _assign(updates):
    for variable, old, new in updates:
        if randomness.is_seed(variable):
            # Another thread may have drawn from it since, and must not draw the
            # same numbers again.
            new = variable.value + (new - old)
        variable.assign(new)


def _gradients_of(x, value):
    """Gives `value` the gradients of `x`."""
    if not trees.has_dtype(x, "float"):
        return value
    zero = x - ops.stop_gradient(x)
    return value + ops.where(ops.isfinite(x), zero, 0)


class Scope(keras.StatelessScope):
    """A scope with the values of a layer's variables.

    It records which other variables are used.
    """

    def __init__(self, layer, variables, values):
        super().__init__(collect_losses=True)
        self.layer = layer
        self.untracked = {}
        # In a mixed-precision call, the constructor would cast them.
        for variable, value in zip(variables, values, strict=True):
            self.state_mapping[id(variable)] = value

    def add_update(self, update):
        variable, value = update
        self._note(variable)
        if not self._is_in_one_of_keras():
            # Assigned outside a scope, it would only have the gradients of the
            # variable.
            value = ops.stop_gradient(value)
            if variable.trainable:
                value = _gradients_of(self.get_current_value(variable), value)
        super().add_update((variable, value))

    def get_current_value(self, variable):
        value = super().get_current_value(variable)
        if value is not None:
            return value
        self._note(variable)
        outer = self.original_scope
        return outer.get_current_value(variable) if outer else None

    def stop_gradients(self, variables, before):
        """Stops gradients from passing through state to an earlier call.

        TensorFlow and PyTorch variables do not pass them on either.
        """
        for variable, old in zip(variables, before, strict=True):
            new = self.get_current_value(variable)
            if new is not old and not variable.trainable:
                super().add_update((variable, ops.stop_gradient(new)))

    def check(self):
        """Remembers which variables were used whose values are not known.

        Raises:
            CallAgainError: if there are any.
        """
        found = self.untracked.values()
        if not found:
            return
        references = map(weakref.ref, found)
        _untracked.setdefault(self.layer, []).extend(references)
        if any(map(internals.is_made_in_scope, found)):
            _make_variables.add(self.layer)
        raise CallAgainError

    def _note(self, variable):
        if id(variable) in self.state_mapping:
            return
        is_new = internals.is_made_in_scope(variable)
        if not (is_new and self.layer in _make_variables):
            self.untracked[id(variable)] = variable

    def _is_in_one_of_keras(self):
        """Whether this scope is inside one that is not of this class."""
        outer = self.original_scope
        while isinstance(outer, Scope):
            outer = outer.original_scope
        return outer is not None
