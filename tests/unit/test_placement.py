"""Some tensors of a file, each to its slot; a tower of a file of both reads what is its own."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Sequence

import pytest
import torch

from llm_compression.errors import WeightFormatError
from llm_compression.inference import weight_loader
from llm_compression.inference.placement import Slot, place
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


def recording(names: Iterable[Sequence[str]], log: list[tuple[str, ...]]) -> list[Slot]:
    """A slot for each, which notes its names once it has tensors of their shapes."""

    def taker(wanted: tuple[str, ...]) -> Callable[..., None]:
        def take(*tensors: torch.Tensor) -> None:
            weights = clip_weights(TINY_CLIP)
            assert all(torch.equal(tensor, weights[name]) for name, tensor in zip(wanted, tensors, strict=True))
            log.append(wanted)

        return take

    return [Slot(tuple(each), taker(tuple(each))) for each in names]


@pytest.mark.requirement("4.7")
def test_each_slot_takes_its_own_once(loader: WeightLoader) -> None:
    """4.7: each slot is given its tensors in the order of its names, once, from whichever row groups they are in."""
    names = list(TINY_CLIP.text.expected_shapes())
    wanted = [(names[-1], names[0]), *((name,) for name in names[1:-1])]
    log: list[tuple[str, ...]] = []
    place(loader, recording(wanted, log))
    assert sorted(log) == sorted(wanted)


@pytest.mark.requirement("4.4")
def test_an_error_while_reading_or_taking_comes_out(loader: WeightLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    """4.4: what goes wrong in a thread of the load is raised, not lost, and no thread stays behind."""

    def fails(_tensor: torch.Tensor) -> None:
        raise WeightFormatError("no room")

    before = threading.active_count()
    with pytest.raises(WeightFormatError, match="no room"):
        place(loader, [Slot((loader.names[3],), fails)])
    monkeypatch.setattr(weight_loader, "_is_finite", lambda _tensor: False)
    with pytest.raises(WeightFormatError, match="NaN or infinite weights"):
        place(loader, recording([(name,) for name in loader.names], []))
    assert threading.active_count() == before


@pytest.mark.requirement("4.4")
def test_of_two_errors_the_first_in_the_file_comes_out(loader: WeightLoader) -> None:
    """4.4: the message is the same at every load, whichever thread was faster."""

    def failing(name: str) -> Callable[..., None]:
        def take(_tensor: torch.Tensor) -> None:
            raise WeightFormatError(name)

        return take

    first, last = loader.names[0], loader.names[-1]
    for _ in range(5):
        with pytest.raises(WeightFormatError, match=f"^{re.escape(first)}$"):
            place(loader, [Slot((name,), failing(name)) for name in (last, first)])


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
