"""`examples/own_images.py` draws the same pictures each time, and goes through to its test."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from drawn_images import Image, numpy
from places import ROOT


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("own_images", ROOT / "examples" / "own_images.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_drawings_hang_on_the_seed_alone(example: ModuleType, tmp_path: Path) -> None:
    read = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        example.draw(tmp_path / name, classes=2, pictures=3, seed=seed)
        files = sorted((tmp_path / name).glob("*/*.png"))
        assert len(files) == 6
        read.append([numpy.array(Image.open(file)) for file in files])
    assert read[0][0].shape == (32, 32, 3)
    assert all((x == y).all() for x, y in zip(read[0], read[1], strict=True))
    assert not any((x == y).all() for x, y in zip(read[0], read[2], strict=True))
    assert not (read[0][0] == read[0][1]).all()


@pytest.mark.slow
def test_the_example_runs(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    few = ["--iterations", "2", "--test-episodes", "4"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["own_images.py", *few])
        patch.chdir(tmp_path)
        example.main()
    torch.set_num_threads(threads)
    assert "unseen figures: " in capsys.readouterr().out
