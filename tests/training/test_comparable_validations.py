"""The best validation is compared with such as measure the same; held-out data stays the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from drawn_images import picture, write_classes
from sinusoid_runs import final_state, trainer
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

import fastmaml as fm
from fastmaml import episodes
from fastmaml.training import checkpoint
from fastmaml.training.best import Best
from fastmaml.training.evaluation import evaluate
from fastmaml.training.metrics import RootMeanSquare
from fastmaml.training.source_states import data_of, digest, has_changed
from fastmaml.training.trainer import MetaTrainer, _described, _Repeated

SHORT = {"schedule": "constant", "executor": "eager", "evaluate_every": 1, "iterations": 3}


def lucky(folder: Path, **changes: Any) -> MetaTrainer:
    """A run with a value of its best validation that no other will reach."""
    run = trainer(folder, **{**SHORT, **changes})
    run.fit()
    run.best.value = 1e-9
    run._put_back()
    run.save()
    return run


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"validation_episodes": 9}, "validation_episodes is 9 now and was 6"),
        ({"eval_steps": 1}, "eval_steps is 1 now and was 2"),
        ({}, "what is validated on changed"),
    ],
)
@pytest.mark.parametrize("old", [False, True])
def test_what_is_no_longer_comparable_is_measured_anew(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    said: str,
    old: bool,
) -> None:
    first = lucky(tmp_path)
    if old:
        _as_before(tmp_path)
    again = trainer(tmp_path, **{**SHORT, "iterations": 6, **changes})
    again.screen = True
    if not changes:
        again.validation = _Repeated(episodes.sinusoid(4, 4, 4, seed=7))
    again.resume(tmp_path / "last.safetensors")
    again.fit()
    shown = capsys.readouterr().out
    where = f"{said}: the best validation so far, after iteration {first.best.iteration}, is"
    if old and not changes:  # nothing is known of it
        assert "anew" not in shown
        return
    assert where in shown
    best, validation = checkpoint.load(tmp_path / "best.safetensors"), again.validation
    assert validation is not None
    again.maml.load_state_dict(best.weights)
    config, steps = again.config, changes.get("eval_steps", 2)
    found = evaluate(again.maml, validation, config.validation_episodes, steps)
    assert again.best.value == found.means[-1] != 1e-9
    assert again.best.changes(again._measured_by()) == []


def _as_before(folder: Path) -> None:
    """Make files those of before checkpoints knew what validations are of."""
    for path in folder.glob("*.safetensors"):
        saved = checkpoint.load(path)
        del saved.state["best"]["measured_by"], saved.state["held_out"]
        checkpoint.save(path, saved)


def test_the_parameters_do_not_hang_on_it(tmp_path: Path) -> None:
    found = []
    for name, changes in (("a", {}), ("b", {"validation_episodes": 9}), ("c", {"eval_steps": 1})):
        lucky(tmp_path / name, ema=0.9)
        again = trainer(tmp_path / name, **{**SHORT, "iterations": 6, "ema": 0.9, **changes})
        again.resume(tmp_path / name / "last.safetensors")
        again.fit()
        assert (again.best.value == 1e-9) == (name == "a")
        found.append(final_state(again))
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


def test_without_further_validations_nothing_is_compared(tmp_path: Path) -> None:
    lucky(tmp_path)
    again = trainer(tmp_path, **SHORT | {"validation_episodes": 9})
    again.resume(tmp_path / "last.safetensors")
    again.fit()  # there is nothing left to train
    assert again.best.value == 1e-9
    assert again.best.changes(again._measured_by())


def test_a_plateau_is_of_comparable_validations(tmp_path: Path) -> None:
    own: dict[str, Any] = {"scheduler": lambda o: ReduceLROnPlateau(o, "min")}
    lucky(tmp_path, **own)
    again = trainer(tmp_path, **{**SHORT, "validation_episodes": 9, **own})
    with pytest.raises(ValueError, match="was 6, and ReduceLROnPlateau would compare"):
        again.resume(tmp_path / "last.safetensors")


def test_a_value_that_is_no_number_is_forgotten() -> None:
    best = Best(None)
    assert best.seen(1, 3.0, True, {"a": 1, "b": "x"})
    assert best.changes({"a": 2, "b": "y"}) == ["a is 2 now and was 1", "b changed"]
    assert best.changes({"b": None}) == []
    best.measured(float("nan"), {"a": 2})
    assert (best.value, best.measured_by) == (None, {"a": 2})


def test_metrics_have_settings() -> None:
    every = fm.training.metrics.Choice((RootMeanSquare(unit=2.0),))
    assert _described(every, "rmse") == ": RootMeanSquare(unit=2.0)"
    assert _described(every, None) is None


def images_run(photos: Path, out: Path, **seeds: int) -> MetaTrainer:
    parts = {
        split: fm.episodes.images(
            photos, split=split, ways=2, shots=1, queries=1, tasks=2, seed=seeds.get(split, 0)
        )
        for split in ("train", "validation", "test")
    }
    torch.manual_seed(0)
    model = fm.models.conv4(2, 3, 4, pool="stride", image_size=8)
    loss = torch.nn.functional.cross_entropy
    return MetaTrainer(
        fm.MAML(model, lr=0.1, loss=loss, executor="eager"),
        parts["train"],
        validation=parts["validation"],
        test=parts["test"],
        config=fm.LoopConfig(
            iterations=1, out=str(out), plots=False, validation_episodes=2, test_episodes=2
        ),
        screen=False,
    )


@pytest.mark.parametrize("split", ["validation", "test"])
def test_changed_images_are_refused(tmp_path: Path, split: str) -> None:
    photos, out = write_classes(tmp_path / "photos"), tmp_path / "run"
    run = images_run(photos, out)
    run.fit()
    images_run(photos, out, **{split: 3}).resume(out / "last.safetensors")  # other episodes
    held_out = getattr(run, split).source.class_names[0]
    picture(250).save(photos / held_out / "0.png")
    refused = images_run(photos, out)
    before = refused.train.state_dict()["generator"]  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=f"the data of the {split} episodes has changed since"):
        refused.resume(out / "last.safetensors")
    after = refused.train.state_dict()["generator"]  # type: ignore[attr-defined]
    assert torch.equal(after, before)
    _as_before(out)
    images_run(photos, out).resume(out / "last.safetensors")  # as it says nothing of them


def test_what_states_tell() -> None:
    def bytes_of(n: int, size: int = 16) -> Tensor:
        return torch.full((size,), n, dtype=torch.uint8)

    state = {"data": bytes_of(1), "sources": {"a": {"fingerprint": bytes_of(2, 32), "n": 3}}}
    assert data_of(state).keys() == {"data", "sources.a.fingerprint"}
    assert data_of({"data": torch.ones(16), "sources": [bytes_of(1)]}) == {} == data_of(None)
    assert not has_changed(data_of(state), {"data": bytes_of(1)})
    assert has_changed(data_of(state), {"data": bytes_of(4)})
    assert digest(None) is None
    kinds = [
        *({"a": 1}, {"b": 1}, {"a": 2}, {"a": (1,)}, {"a": torch.tensor(1)}),
        *({"a": torch.tensor([1])}, {"a": torch.tensor(1.0)}, {"a": None}, {"a": object()}),
    ]
    assert len({digest(one) for one in kinds}) == len(kinds)
    assert digest({"a": object()}) == digest({"a": object()})
