"""What a foreign file is to the rest of convert/: a lazy mapping from name to torch tensor."""

from collections.abc import Mapping


class LazyStateDict(Mapping):
    """Name → tensor, read when it is asked for, of what a subclass lists in ``names``, a mapping;
    ``shape(name)`` without reading."""

    names: dict = {}

    def path_of(self, name):
        """The file that a tensor is in."""
        raise NotImplementedError

    def __contains__(self, name):
        return name in self.names  # Mapping's own would read the tensor

    def __iter__(self):
        return iter(self.names)

    def __len__(self):
        return len(self.names)


def shape_of(state, name):
    """Shape of a tensor without reading it."""
    return tuple(state[name].shape) if isinstance(state, dict) else state.shape(name)
