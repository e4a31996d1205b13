"""The networks: the papers' sizes, and fit for every transform that meta-learning needs."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from fastmaml.models import conv4, mlp, resnet12


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_parameter_counts_of_the_papers():
    assert size(conv4(5)) == 112_261
    assert size(conv4(5, pool="max")) == 112_261  # one position of 64 features remains, too
    assert size(conv4(5, channels=3, filters=32, pool="max", image_size=84)) == 32_901
    assert size(mlp(1, 1)) == 40 + 40 + 40 * 40 + 40 + 40 + 1
    assert size(mlp(7, 3, hidden=())) == 7 * 3 + 3
    with torch.device("meta"):
        assert size(resnet12(5)) == 12_427_525


@pytest.mark.parametrize(
    ("pool", "image_size", "features"),
    [
        ("stride", 8, 16),
        ("stride", 28, 16),
        ("stride", 32, 16),
        ("stride", 84, 16),
        ("max", 28, 16),
        ("max", 32, 16 * 4),
        ("max", 84, 16 * 25),
    ],
)
def test_conv4_at_every_image_size(pool, image_size, features):
    model = conv4(7, channels=2, filters=16, pool=pool, image_size=image_size)
    x = torch.rand(4, 2, image_size, image_size)
    assert model.features(x).shape == (4, features)
    assert model(x).shape == (4, 7)
    torch.testing.assert_close(model.classifier(model.features(x)), model(x))


def test_conv4_starts_glorot_uniform_with_zero_biases():
    model = conv4(5)
    weight = model.features[1][0].weight
    bound = (6 / (9 * 64 + 9 * 64)) ** 0.5
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert all(p.eq(0).all() for name, p in model.named_parameters() if name.endswith("bias"))


def test_resnet12_halves_the_image_four_times():
    model = resnet12(3, channels=1, filters=(4, 5, 6, 7))
    x = torch.rand(2, 1, 21, 21)
    assert model.features[:4](x).shape == (2, 7, 1, 1)
    assert model.features(x).shape == (2, 7)
    assert model(x).shape == (2, 3)


MODELS = {
    "conv4-stride": (lambda: conv4(3, filters=4, image_size=8), (1, 8, 8)),
    "conv4-max": (lambda: conv4(3, filters=4, pool="max", image_size=16), (1, 16, 16)),
    "resnet12": (lambda: resnet12(3, channels=1, filters=(3, 4)), (1, 8, 8)),
    "mlp": (lambda: mlp(5, 3), (5,)),
}


@pytest.mark.parametrize("name", MODELS)
def test_second_derivatives_batched_over_tasks_equal_a_loop(name):
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model = make().double()
    theta = {k: p.detach() for k, p in model.named_parameters()}
    x = torch.rand(2, 6, *shape, dtype=torch.double)
    y = torch.randint(3, (2, 6))

    def loss(parameters, x, y):
        return nn.functional.cross_entropy(functional_call(model, parameters, (x,)), y)

    def after_a_step(parameters, x, y):
        gradients = grad(loss)(parameters, x, y)
        return loss({k: p - 0.1 * gradients[k] for k, p in parameters.items()}, x, y)

    batched = vmap(grad(after_a_step), (None, 0, 0))(theta, x, y)
    for task in range(2):
        single = grad(after_a_step)(theta, x[task], y[task])
        for k in theta:
            torch.testing.assert_close(batched[k][task], single[k])
    assert all(g.isfinite().all() for g in batched.values())
    assert batched["classifier.weight"].abs().max() > 0


@pytest.mark.parametrize("name", MODELS)
def test_batches_are_normalised_by_themselves_in_evaluation_too(name):
    make, shape = MODELS[name]
    model, x = make(), torch.rand(6, *shape)
    assert not list(model.buffers())
    torch.testing.assert_close(model.train()(x), model.eval()(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: conv4(5, pool="max", image_size=8), "image_size=8 is too small"),
        (lambda: conv4(5, pool="mean"), "pool='mean' is unknown; choose one of stride, max"),
        (lambda: conv4(0), "ways=0"),
        (lambda: conv4(5, filters=-1), "filters=-1"),
        (lambda: mlp(1, 1, hidden=(40, 0)), r"hidden\[1\]=0"),
        (lambda: mlp(1.5, 1), "inputs=1.5"),
        (lambda: resnet12(5, filters=()), "blocks=0"),
        (lambda: resnet12(5, filters=(64, True)), r"filters\[1\]=True"),
    ],
)
def test_bad_sizes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
