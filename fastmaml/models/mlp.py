"""`mlp`: the fully connected network of the sinusoid tasks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from fastmaml.episodes.checks import check_positive


def mlp(inputs: int, outputs: int, hidden: Sequence[int] = (40, 40)) -> nn.Sequential:
    """A multi-layer perceptron with ReLU, by default that of the sinusoid (Finn et al. 2017).

    It maps ``[examples, inputs]`` to ``[examples, outputs]``. ``features`` is all but the last
    layer, ``classifier`` the last. Parameters start as `nn.Linear` sets them: biases that differ
    spread the kinks of the ReLUs over the input, which the paper's zero biases do not.

    Args:
        inputs: numbers an example.
        outputs: numbers predicted.
        hidden: widths of the hidden layers.

    Raises:
        ValueError: a width that is not positive.
    """
    widths = {f"hidden[{i}]": n for i, n in enumerate(hidden)}
    check_positive(inputs=inputs, outputs=outputs, **widths)
    layers: list[nn.Module] = []
    width = inputs
    for n in hidden:
        layers += [nn.Linear(width, n), nn.ReLU()]
        width = n
    parts = OrderedDict(features=nn.Sequential(*layers), classifier=nn.Linear(width, outputs))
    return nn.Sequential(parts)
