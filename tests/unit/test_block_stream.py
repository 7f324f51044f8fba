"""Some tensors of a file, gathered into blocks; a tower of a file of both reads what is its own."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch

from llm_compression.inference.block_stream import stream_blocks
from llm_compression.inference.weight_loader import WeightLoader
from tests.text_models import TINY_CLIP, clip_weights, write_text_model


@pytest.fixture(scope="module")
def loader(tmp_path_factory: pytest.TempPathFactory) -> WeightLoader:
    """A file of both towers."""
    return WeightLoader(write_text_model(tmp_path_factory.mktemp("clip"), TINY_CLIP))


@pytest.mark.requirement("17.1")
@pytest.mark.parametrize("tower", ["text", "vision"])
def test_a_tower_reads_its_own_tensors_only(loader: WeightLoader, tower: str) -> None:
    """17.1: of a file of both towers only the named tensors are yielded, each once, in file order, with its bits."""
    names = (TINY_CLIP.text if tower == "text" else TINY_CLIP.vision).expected_shapes()
    found, weights = list(loader.stream(names)), clip_weights(TINY_CLIP)
    assert [name for name, _ in found] == list(names)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in found)


@pytest.mark.requirement("17.1")
@pytest.mark.parametrize(("tower", "shared"), [("text", 1), ("vision", 1)])
def test_row_groups_of_the_other_tower_are_not_read(
    loader: WeightLoader, monkeypatch: pytest.MonkeyPatch, tower: str, shared: int
) -> None:
    """17.1: the towers share the one row group between them, and read nothing else of each other."""
    read: list[int] = []
    real = WeightLoader._read_data

    def spy(self: WeightLoader, groups: Iterable[int]) -> object:
        read.extend(groups)
        return real(self, groups)

    monkeypatch.setattr(WeightLoader, "_read_data", spy)
    names = (TINY_CLIP.text if tower == "text" else TINY_CLIP.vision).expected_shapes()
    list(loader.stream(names))
    others = {loader.tensors[name].row_group for name in loader.names if name not in names}
    assert set(read) == {loader.tensors[name].row_group for name in names}
    assert len(set(read) & others) == shared
    assert "text_model.embeddings.token_embedding.weight" not in {
        name for name in loader.names if tower == "vision" and loader.tensors[name].row_group in read
    }


@pytest.mark.requirement("4.7")
def test_blocks_come_whole_and_ends_at_once(loader: WeightLoader) -> None:
    """4.7: a block is yielded with all of its tensors, what is outside the blocks one tensor at a time."""
    config = TINY_CLIP.text
    steps = list(stream_blocks(loader, config.expected_shapes(), config.layer_prefix))
    assert [index for index, _ in steps if index is not None] == list(range(config.num_layers))
    for index, tensors in steps:
        assert len(tensors) == (1 if index is None else 2 * len(config.layer_names))
        if index is not None:
            assert set(tensors) == {
                f"{part}.{kind}" for part in config.layer_names.values() for kind in ("weight", "bias")
            }


@pytest.mark.requirement("4.1")
def test_no_names_no_tensors(loader: WeightLoader) -> None:
    """4.1: an empty choice is empty; no choice is every tensor."""
    assert list(loader.stream([])) == []
    assert [name for name, _ in loader.stream()] == loader.names


@pytest.mark.requirement("4.1")
def test_an_unknown_name_is_an_error(loader: WeightLoader) -> None:
    """4.1: a tensor that the file does not have is a KeyError, not a shorter stream."""
    with pytest.raises(KeyError, match="no_such_tensor"):
        list(loader.stream(["no_such_tensor"]))
