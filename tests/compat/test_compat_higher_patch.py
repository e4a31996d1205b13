"""higher's interface: what a functional model is, of any module."""

from __future__ import annotations

import copy

import pytest
import torch
from problems import Tied, relative, tensor
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import fastmaml.compat.higher as higher


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)).double()


def moved(fmodel: higher.FunctionalModule) -> list[Tensor]:
    """Give it other parameters; returns them."""
    new = [p + tensor(*p.shape, seed=i) for i, p in enumerate(fmodel.parameters())]
    fmodel.update_params(new)
    return new


def functional(model: nn.Module, new: list[Tensor], *inputs: Tensor) -> Tensor:
    """The oracle: the model with these parameters, through torch."""
    names = [name for name, _ in model.named_parameters()]
    return functional_call(model, dict(zip(names, new, strict=True)), inputs)


def test_copies_are_detached_unless_asked_otherwise() -> None:
    model, x = net(), tensor(5, 3)
    model[0].bias.requires_grad_(False)
    copies = list(higher.monkeypatch(model).parameters())
    assert all(p.is_leaf for p in copies)
    assert [p.requires_grad for p in copies] == [True, False, True, True]
    fmodel = higher.monkeypatch(model, copy_initial_weights=False)
    assert [p.requires_grad for p in fmodel.parameters()] == [True, False, True, True]
    assert all(p is not q for p, q in zip(fmodel.parameters(), model.parameters(), strict=True))
    fmodel(x).sum().backward()
    fast = [p.grad for p in model.parameters() if p.requires_grad]
    model.zero_grad()
    model(x).sum().backward()
    for a, b in zip(fast, (p.grad for p in model.parameters() if p.requires_grad), strict=True):
        assert torch.equal(a, b)


def test_attributes_are_the_fast_weights() -> None:
    class Net(nn.Module):
        scale = 2.0  # on the class

        def __init__(self) -> None:
            super().__init__()
            self.fc, self.name = nn.Linear(3, 2), "net"

        @property
        def bias(self) -> Tensor:
            return self.fc.bias

        def features(self, x: Tensor) -> Tensor:
            return self.fc(x) * self.scale

        def forward(self, x: Tensor, *, shift: float = 0.0) -> Tensor:
            return self.features(x).tanh() + shift

    model, x = Net().double(), tensor(5, 3)
    fmodel = higher.monkeypatch(model)
    weight, bias = moved(fmodel)
    assert fmodel.fc.weight is weight
    assert fmodel.bias is bias
    assert dict(fmodel.named_parameters())["fc.weight"] is weight
    torch.testing.assert_close(fmodel.fc(x), x @ weight.T + bias)
    torch.testing.assert_close(fmodel.features(x), 2 * (x @ weight.T + bias))
    torch.testing.assert_close(fmodel(x, shift=1.0), (2 * (x @ weight.T + bias)).tanh() + 1)
    torch.testing.assert_close(fmodel.forward(x), (2 * (x @ weight.T + bias)).tanh())
    assert (fmodel.name, isinstance(fmodel, Net), isinstance(fmodel, nn.Module)) == (
        "net",
        True,
        True,
    )
    assert type(fmodel) is higher.FunctionalModule
    fmodel.name = "other"
    assert (fmodel.name, model.name) == ("other", "net")
    del fmodel.name
    assert not hasattr(fmodel, "name")
    assert "Linear" in repr(fmodel)
    assert torch.equal(fmodel.state_dict()["fc.weight"], weight)
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = fmodel.nothing_like_it


def test_methods_that_return_their_module_return_the_functional_model() -> None:
    class Net(nn.Sequential):
        def prepared(self, by: float = 1.0) -> nn.Module:
            self.by = by
            return self

    model, x = Net(*net()), tensor(5, 3)
    fmodel = higher.monkeypatch(model, copy_initial_weights=False)
    for same in (
        fmodel.train(),
        fmodel.eval(),
        fmodel.requires_grad_(),
        fmodel.apply(lambda _: None),
        fmodel.prepared(by=2.0),
    ):
        assert same is fmodel
    assert fmodel.by == 2.0
    assert not fmodel.training
    assert fmodel.train(False)(x, params=moved(fmodel)).shape == (5, 2)
    assert fmodel[0].train() is fmodel[0]
    assert isinstance(fmodel.state_dict(), dict)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_another_dtype() -> None:
    model, x = net().float(), tensor(5, 3)
    fmodel = higher.monkeypatch(model, copy_initial_weights=False).double()
    assert type(fmodel) is higher.FunctionalModule
    fmodel(x).sum().backward()
    found = [p.grad for p in model.parameters()]
    model.zero_grad()
    model(x.float()).sum().backward()
    for a, p in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad)


def test_containers_and_the_layers_in_them() -> None:
    fmodel = higher.monkeypatch(net())
    assert len(fmodel) == 3
    assert [type(m) for m in fmodel] == [nn.Linear, nn.Tanh, nn.Linear]
    assert fmodel[2] is list(fmodel.children())[2]
    assert bool(higher.monkeypatch(nn.Linear(1, 1)))
    named = higher.monkeypatch(nn.ModuleDict({"a": nn.Linear(1, 1)}))
    assert "a" in named
    assert list(named) == ["a"]


def test_params_at_a_call_become_the_fast_ones() -> None:
    model, x = net(), tensor(5, 3)
    fmodel = higher.monkeypatch(model)
    new = [tensor(*p.shape, seed=i) for i, p in enumerate(model.parameters())]
    torch.testing.assert_close(fmodel(x, params=iter(new)), functional(model, new, x))
    assert all(a is b for a, b in zip(fmodel.fast_params, new, strict=True))
    fmodel(x, params=new)  # the very same are no new time
    assert all(a is b for a, b in zip(fmodel.parameters(time=1), new, strict=True))
    with pytest.raises(IndexError, match="times 0 to 1"):
        fmodel.parameters(time=2)
    fmodel.fast_params = new[::-1][::-1]
    fmodel.fast_params = [p * 2 for p in new]
    torch.testing.assert_close(fmodel[0].weight, 2 * new[0])
    with pytest.raises(ValueError, match=r"3 parameters were given .* that has 4"):
        fmodel(x, params=new[:3])
    with pytest.raises(TypeError, match="parameter 1 is a float"):
        fmodel.update_params([new[0], 0.5, *new[2:]])


def test_earlier_times() -> None:
    model = net()
    fmodel = higher.monkeypatch(model)
    times = [list(fmodel.parameters()), moved(fmodel), moved(fmodel)]
    for time, expected in enumerate(times):
        assert all(a is b for a, b in zip(fmodel.parameters(time=time), expected, strict=True))
    assert all(a is b for a, b in zip(fmodel.parameters(time=-2), times[1], strict=True))
    assert all(a is b for a, b in zip(fmodel.init_fast_params, times[0], strict=True))
    assert all(a is b for a, b in zip(fmodel.init_parameters, times[0], strict=True))
    fmodel.track_higher_grads = False  # from here on only the latest
    assert all(a is b for a, b in zip(fmodel.parameters(time=0), times[2], strict=True))
    latest = moved(fmodel)
    assert all(a is b for a, b in zip(fmodel.parameters(time=-1), latest, strict=True))
    with pytest.raises(ValueError, match="track_higher_grads=True"):
        fmodel.parameters(time=1)
    with pytest.raises(RuntimeError, match="track_higher_grads=True"):
        _ = fmodel.init_fast_params
    with pytest.raises(ValueError, match="True or False"):
        fmodel.track_higher_grads = 1  # type: ignore[assignment]
    with pytest.warns(UserWarning, match="recurse=False"):
        assert len(list(fmodel.parameters(recurse=False))) == 4


def test_assigning_a_parameter_is_an_update() -> None:
    fmodel = higher.monkeypatch(nn.Linear(3, 2).double())
    weight = tensor(2, 3, seed=5).requires_grad_()
    fmodel.weight = weight
    assert fmodel.fast_params[0] is weight
    assert len(list(fmodel.parameters(time=1))) == 2
    nested = higher.monkeypatch(net())
    nested[0].weight = nn.Parameter(tensor(6, 3, seed=6))
    assert nested.fast_params[0] is nested[0].weight
    with pytest.raises(TypeError, match="cannot assign"):  # torch's rule for its own modules
        nested[0].weight = tensor(6, 3)


def test_buffers_are_copied_and_never_written_back() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).double()
    before = {n: b.clone() for n, b in model.named_buffers()}
    fmodel = higher.monkeypatch(model)
    fmodel(tensor(8, 3))
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())
    assert not torch.equal(fmodel[1].running_mean, model[1].running_mean)
    higher.patch.buffer_sync(model, fmodel)
    assert torch.equal(fmodel[1].running_mean, model[1].running_mean)
    assert fmodel[1].running_mean is not model[1].running_mean
    fmodel.eval()
    assert (fmodel.training, fmodel[2].training, model.training, model[2].training) == (
        False, False, True, True,
    )  # fmt: skip
    assert torch.equal(fmodel(tensor(8, 3)), fmodel(tensor(8, 3)))
    fmodel.train()
    assert fmodel[1].training
    with pytest.raises(ValueError, match="the functional model was made of"):
        higher.patch.buffer_sync(nn.Linear(1, 1), fmodel)


def test_tied_parameters_stay_tied() -> None:
    torch.manual_seed(0)
    model, tokens = Tied().double(), torch.tensor([[0, 1, 5], [3, 3, 2]])
    fmodel = higher.monkeypatch(model)
    assert len(list(fmodel.parameters())) == 3
    new = moved(fmodel)
    assert fmodel.out.weight is fmodel.embed.weight is new[0]
    torch.testing.assert_close(fmodel(tokens), functional(model, new, tokens))


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_recurrent_modules(kind: type[nn.RNNBase]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.out = kind(3, 4, num_layers=2, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.rnn.flatten_parameters()
            return self.out(self.rnn(x)[0][:, -1])

    torch.manual_seed(0)
    model, x = Net().double(), tensor(2, 5, 3)
    fmodel = higher.monkeypatch(model)
    before = fmodel(x).detach()
    new = moved(fmodel)
    assert relative(fmodel(x).detach(), before) > 0.1
    torch.testing.assert_close(fmodel(x), functional(model, new, x))
    assert all(a is b for a, b in zip(fmodel.rnn._flat_weights, new[:8], strict=True))
    torch.testing.assert_close(model(x), before)


def test_modules_and_parameters_held_in_plain_attributes() -> None:
    """Else the copy would run the original's, which never adapt."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.bias = nn.Parameter(torch.ones(3))
            self.order = [self.b, self.a]
            self.by_name = {"activation": self.squashed, "layers": (self.a, self.b)}
            self.biases = [self.bias]
            self.log: list[int] = []

        def squashed(self, x: Tensor) -> Tensor:
            return (x + self.bias).tanh()

        def forward(self, x: Tensor) -> Tensor:
            self.log.append(len(x))
            for layer in (*self.order, *self.by_name["layers"]):
                x = self.by_name["activation"](layer(x))
            return x * self.biases[0]

    torch.manual_seed(0)
    model, x = Net().double(), tensor(4, 3)
    fmodel = higher.monkeypatch(model)
    for _ in range(2):
        new = moved(fmodel)  # torch does not exchange what is in the list, which holds ones
        torch.testing.assert_close(fmodel(x), functional(model, new, x) * new[0])
    assert fmodel.log is model.log  # holds nothing of the model's, and may be there to be shared


def test_hooks_run_once_and_are_the_copys_own() -> None:
    model, calls = net(), []
    model[0].register_forward_hook(lambda module, inputs, output: calls.append(module))
    model.register_forward_hook(lambda module, inputs, output: 2 * output)
    fmodel, x = higher.monkeypatch(model), tensor(5, 3)
    torch.testing.assert_close(fmodel(x), model(x))
    assert len(calls) == 2
    assert calls[0] is fmodel[0]
    fmodel[2].register_forward_hook(lambda module, inputs, output: 0 * output)
    assert model(x).abs().sum() > 0
    assert fmodel(x).abs().sum() == 0


def test_weight_norm_and_parametrizations() -> None:
    from torch.nn.utils import parametrizations

    torch.manual_seed(0)
    model, x = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 2))).double(), tensor(5, 3)
    fmodel = higher.monkeypatch(model)
    new = moved(fmodel)
    torch.testing.assert_close(fmodel(x), functional(model, new, x))


def test_hooks_that_compute_a_weight() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.utils.spectral_norm(nn.Linear(3, 2))).double().eval(), tensor(5, 3)
    model(x)
    fmodel = higher.monkeypatch(model)
    new = moved(fmodel)
    torch.testing.assert_close(fmodel(x), functional(model, new, x))


def test_a_deep_copy_is_another_model() -> None:
    fmodel, x = higher.monkeypatch(net()), tensor(5, 3)
    before, twin = fmodel(x), copy.deepcopy(fmodel)
    moved(twin)
    assert torch.equal(fmodel(x), before)
    assert not torch.equal(twin(x), before)
    assert twin[0].weight is twin.fast_params[0]


def test_without_parameters_of_its_own() -> None:
    model, x, given = net(), tensor(5, 3), []
    fmodel = higher.patch.make_functional(model, lambda f, m: given.append((f, m)))
    assert given == [(fmodel, model)]
    assert fmodel.fast_params is None
    with pytest.raises(ValueError, match="pass params="):
        fmodel(x)
    with pytest.raises(RuntimeError, match="no parameters yet"):
        fmodel.parameters()
    params = higher.utils.get_func_params(model)
    diffopt = higher.get_diff_optim(torch.optim.SGD(model.parameters(), lr=0.1), model.parameters())
    for _ in range(2):
        params = diffopt.step(F.mse_loss(fmodel(x, params=params), x[:, :2]), params=params)
    torch.testing.assert_close(fmodel(x, params=params), functional(model, params, x))


def test_to_a_device_and_utils() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    fmodel = higher.monkeypatch(model, device=torch.device("meta"))
    assert {x.device.type for x in [*fmodel.parameters(), *fmodel.buffers()]} == {"meta"}
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    shared, own = (higher.utils.get_func_params(model, safe_copy=s)[0] for s in (False, True))
    assert shared.data_ptr() == model[0].weight.data_ptr() != own.data_ptr()
    assert higher.utils.get_func_params(model, device=torch.device("meta"))[0].is_meta
    assert higher.utils.flatten({"a": [1, (2, {3})], "b": 4}) == [1, 2, 3, 4]


def test_errors_say_what_to_do() -> None:
    fmodel = higher.monkeypatch(net())
    for module in (fmodel, nn.Sequential(fmodel)):
        with pytest.raises(ValueError, match="a functional model already"):
            higher.monkeypatch(module)
    with pytest.raises(TypeError, match=r"nn\.Module"):
        higher.monkeypatch(3)  # type: ignore[arg-type]
