"""A wrapped layer, and what it is called with."""

import dataclasses
from collections.abc import Callable

import keras
from keras import layers
from keras import ops
from keras import tree

from keras_td import TimeDistributed
from reference import loop

BATCH, TIME = 2, 3
BACKEND = keras.backend.backend()

DTYPES = {
    "normal": "float32",
    "image": "float32",
    "ids": "int32",
    "text": "string",
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A layer and what a time step of its arguments looks like.

    Shapes are those of one step without its batch axis: `(5,)` stands for an
    argument of shape `(batch, time, 5)`.
    """

    name: str
    inputs: object
    config: dict = dataclasses.field(default_factory=dict)
    # Makes the layer. Without it, the layer is of the class of `keras.layers`
    # with which the name begins, made from `config`.
    make_own: Callable[[], keras.Layer] | None = None
    args: tuple = ()
    kwargs: dict = dataclasses.field(default_factory=dict)
    options: dict = dataclasses.field(default_factory=dict)
    values: str = "normal"
    # It draws random numbers in training.
    random: bool = False
    # When the samples of a batch are mixed: "in training", or "always".
    mixes_samples: str = ""
    differentiable: bool = True
    # The backends on which Keras has it; () for all.
    only: tuple[str, ...] = ()
    # Whether it needs a batch of known size.
    static_batch: bool = False
    slow: bool = False
    wrap: Callable[[keras.Layer], keras.Layer] = TimeDistributed
    oracle: Callable = loop
    lead: tuple[int, ...] = (BATCH, TIME)

    @property
    def plain(self):
        """The case of the bare layer, which gets the steps as samples."""
        return dataclasses.replace(
            self,
            wrap=lambda layer, **options: layer,
            oracle=lambda layer, *args, **kwargs: layer(*args, **kwargs),
            lead=(BATCH * TIME,),
        )

    @property
    def has_time(self):
        """Whether the layer is wrapped, not bare."""
        return len(self.lead) == 2

    @property
    def class_name(self):
        return self.name.split(",")[0]

    @property
    def step_shapes(self):
        shapes = []
        self.arguments(shapes.append)
        return shapes

    def make(self):
        """The bare layer; two of them have the same weights and seeds."""
        keras.utils.set_random_seed(0)
        if self.make_own:
            return self.make_own()
        return getattr(layers, self.class_name)(**self.config)

    def wrapped(self, **options):
        return self.wrap(self.make(), **options)

    def arguments(self, make):
        """Maps `make` over the shapes: `(args, kwargs)` of a call."""
        args = [
            tree.map_shape_structure(make, s) for s in (self.inputs, *self.args)
        ]
        kwargs = {
            name: tree.map_shape_structure(make, s)
            for name, s in self.kwargs.items()
        }
        return args, {**kwargs, **self.options}

    def arrays(self, rng, *lead):
        lead = lead or self.lead
        return self.arguments(lambda s: self._draw(rng, (*lead, *s)))

    def symbols(self, *lead):
        lead = lead or (None,) * len(self.lead)
        return self.arguments(
            lambda s: keras.KerasTensor((*lead, *s), DTYPES[self.values])
        )

    def folded(self, *arguments):
        """The arguments of a call of the bare layer on all steps."""
        lead = len(self.lead)
        flat = [x.reshape(-1, *x.shape[lead:]) for x in leaves(arguments)]
        return with_leaves(arguments, flat)

    def unfolded(self, outputs):
        return tree.map_structure(
            lambda y: ops.reshape(y, (*self.lead, *y.shape[1:])), outputs
        )

    def model_of(self, layer, arguments, *time):
        """A functional model of a call of `layer` and its flat outputs.

        Its time is that of the arguments, unless another one is given.
        """
        dtype = DTYPES[self.values]
        batch = self.lead[0] if self.static_batch else None
        inputs = [
            keras.Input((*time, *x.shape[1 + len(time) :]), batch, dtype)
            for x in leaves(arguments)
        ]
        args, kwargs = with_leaves(arguments, inputs)
        return keras.Model(
            one_or_all(inputs), one_or_all(layer(*args, **kwargs))
        )

    def _draw(self, rng, shape):
        match self.values:
            case "normal":
                return rng.normal(size=shape).astype("float32")
            case "image":
                return rng.uniform(0, 255, shape).astype("float32")
            case "ids":
                return rng.integers(1, 9, shape).astype("int32")
            case "text":
                return rng.choice(["a", "b", "c"], shape)


def one_or_all(nest):
    """The leaves of a nest, as models take them: a single one is not a list."""
    flat = tree.flatten(nest)
    return flat[0] if len(flat) == 1 else flat


def leaves(nest):
    return [x for x in tree.flatten(nest) if hasattr(x, "shape")]


def with_leaves(nest, tensors):
    """Replaces the arrays of a nest with tensors."""
    rest = iter(tensors)
    flat = [
        next(rest) if hasattr(x, "shape") else x for x in tree.flatten(nest)
    ]
    return tree.pack_sequence_as(nest, flat)
