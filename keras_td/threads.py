"""Functions and attributes replaced for a while, for some threads alone."""

import collections
import contextlib
import threading


class Patches:
    """Replaces things with the first thread to enter, until the last leaves."""

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
    """A function of a module or of an object, under another's control.

    Whoever holds the function itself has it as it was.
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
