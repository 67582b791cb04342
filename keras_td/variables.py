"""The variables that a layer uses, and their values in a scope.

Keras knows most of them. It does not know the states of recurrent layers,
metrics, the variables of layers that a `Lambda` calls, and the seed that all
draw from who have none; a call finds those out, and is then made once more.
"""

import weakref

import keras
from keras import ops

from keras_td import internals
from keras_td import randomness
from keras_td import trees
from keras_td.scopes import without_autocast

# Of each layer, the variables that it was found to use.
_untracked: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
# Layers that made variables in a call. If they make others in the next, these
# are no state; if not, they are known by then.
_make_variables: weakref.WeakSet = weakref.WeakSet()
# Layers that assign to what they train.
_assign_weights: weakref.WeakSet = weakref.WeakSet()


class CallAgainError(Exception):
    """A call has told something of the layer that had to be known before it."""


def used_by(layer):
    """All variables that a layer uses, as far as is known."""
    found = [reference() for reference in _untracked.get(layer, ())]
    # Older Keras has variables of TensorFlow too, in a `TFSMLayer`.
    found += [v for v in layer.variables if isinstance(v, keras.Variable)]
    return list({id(v): v for v in found if v is not None}.values())


def values_of(variables, layer):
    """The values of variables, in their own dtype."""
    return without_autocast(
        _values_of, variables, _are_weights(variables, layer)
    )


def _values_of(variables, are_weights):
    # PyTorch changes a variable in place while its old value has gradients.
    return [
        v.value if is_weight else ops.copy(v.value)
        for v, is_weight in zip(variables, are_weights, strict=True)
    ]


def _are_weights(variables, layer):
    """Which variables are trained, and by no call known to be assigned to."""
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
        CallAgainError: if gradients of the calls would be those of what is
            assigned here.
    """
    # What no call changes is the same tensor all along.
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
            # Another thread may have drawn from it since, and not again.
            new = variable.value + (new - old)
        variable.assign(new)


def _gradients_of(x, value):
    """Gives `value` the gradients of `x`."""
    if not trees.has_dtype(x, "float"):
        return value
    zero = x - ops.stop_gradient(x)
    return value + ops.where(ops.isfinite(x), zero, 0)


class Scope(keras.StatelessScope):
    """A scope of the values of a layer's variables.

    It notes which other variables are used.
    """

    def __init__(self, layer, variables, values):
        super().__init__(collect_losses=True)
        self.layer = layer
        self.untracked = {}
        # Keras would cast them, in the call of a layer of mixed precision.
        for variable, value in zip(variables, values, strict=True):
            self.state_mapping[id(variable)] = value

    def add_update(self, update):
        variable, value = update
        self._note(variable)
        if not self._is_in_one_of_keras():
            # Assigned outside of a scope, it would have no gradients but those
            # of the variable.
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
        """Lets no gradients pass through the state to an earlier call.

        A variable of TensorFlow or PyTorch would not either.
        """
        for variable, old in zip(variables, before, strict=True):
            new = self.get_current_value(variable)
            if new is not old and not variable.trainable:
                super().add_update((variable, ops.stop_gradient(new)))

    def check(self):
        """Remembers which variables were used that no value is known of.

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
        """Whether variables have their values of a scope without this one."""
        outer = self.original_scope
        while isinstance(outer, Scope):
            outer = outer.original_scope
        return outer is not None
