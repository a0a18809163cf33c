"""How a weight is divided over the cards of a model group (Megatron-LM, Shoeybi et al. 2019): pure functions
of arrays."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Split:
    """A weight of ``size`` along ``axis``, cut into one piece per card.

    ``parts``: a fused product of so many equal parts (q, k and v) is cut part by part, so that a card gets
    its heads of each.  A length that the cards do not divide (a vocabulary) is filled up with zeros at the
    end."""

    axis: int
    size: int
    parts: int = 1

    def length(self, cards):
        """Along the axis, of one card's piece."""
        return self.parts * -(-self.size // self.parts // cards)

    def shape(self, whole, cards):
        """The shape of a piece of a weight of shape ``whole``."""
        return tuple(self.length(cards) if axis == self.axis else length for axis, length in enumerate(whole))

    def cut(self, whole, cards, rank):
        """Card ``rank``'s piece of an array; a view where nothing is filled up and parts is 1."""
        each = self.length(cards) // self.parts
        pieces = []
        for part in np.split(np.moveaxis(whole, self.axis, 0), self.parts):
            piece = part[rank * each : (rank + 1) * each]
            short = each - len(piece)
            pieces.append(
                np.concatenate([piece, np.zeros((short, *piece.shape[1:]), piece.dtype)]) if short else piece
            )
        return np.moveaxis(np.concatenate(pieces) if self.parts > 1 else pieces[0], 0, self.axis)

    def join(self, pieces):
        """The whole array of all cards' pieces, in rank order."""
        if len(pieces) == 1:
            return pieces[0]
        parts = [np.split(np.moveaxis(piece, self.axis, 0), self.parts) for piece in pieces]
        wholes = [
            np.concatenate([one[i] for one in parts])[: self.size // self.parts] for i in range(self.parts)
        ]
        return np.moveaxis(np.concatenate(wholes), 0, self.axis)


def whole_shape(parameter):
    """The shape of a parameter in a checkpoint, whatever part of it this card holds."""
    split = getattr(parameter, "division", None)
    shape = tuple(parameter.shape)
    return (
        shape
        if split is None
        else tuple(split.size if axis == split.axis else length for axis, length in enumerate(shape))
    )


def is_split(parameter, cards):
    """Whether ``cards`` cards hold different pieces of a parameter."""
    return cards > 1 and getattr(parameter, "division", None) is not None
