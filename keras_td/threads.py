"""Replaces functions and attributes temporarily, for some threads only."""

import collections
import contextlib
import threading


class Patches:
    """Replaces things when the first thread enters, until the last leaves."""

    def __init__(self):
        self.lock = threading.Lock()
        self.threads: collections.Counter = collections.Counter()

    @contextlib.contextmanager
    def __call__(self, *things):
        with self.lock:
            for thing in things:
                if not self.threads[thing]:
                    thing.patch()
                self.threads[thing] += 1
        try:
            yield
        finally:
            with self.lock:
                for thing in things:
                    if self.threads[thing] == 1:
                        thing.restore()
                        del self.threads[thing]
                    else:
                        self.threads[thing] -= 1


patched = Patches()


class Function:
    """A replacement for a function of a module or of an object.

    Code that holds the function itself keeps the original.
    """

    def __init__(self, owner, name):
        self.owner = owner
        self.name = name

    def patch(self):
        self.own = self.name in vars(self.owner)
        self.function = getattr(self.owner, self.name)
        setattr(self.owner, self.name, self)

    def restore(self):
        if self.own:
            setattr(self.owner, self.name, self.function)
        else:
            delattr(self.owner, self.name)
