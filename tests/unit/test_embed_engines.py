"""What is said where an engine, or what it needs, is not there; the engines themselves are tested in tests/engines."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from llm_compression import VisionEncoder, shapes_model
from llm_compression.cli import main
from llm_compression.embed.run import embed
from llm_compression.embed.shards import Settings, Shard, embed_batches, plan_shards
from llm_compression.embed.sources import find_sources
from llm_compression.embed.spark import map_in_arrow
from llm_compression.errors import ConfigError, EmbedError, MissingDependencyError

MODEL = str(shapes_model())


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A picture in a folder of its own."""
    (tmp_path / "photos").mkdir()
    path = tmp_path / "photos" / "a.png"
    Image.new("RGB", (40, 40)).save(path)
    return path


@pytest.mark.requirement("37.5")
def test_what_an_engine_lacks_is_named(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """37.5: IF Ray is not installed, or an engine, an address or a number of threads is asked for that there is not,
    THEN THE Package SHALL raise an error that names what is missing: the extra, or what there is."""
    out = tmp_path / "out"
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'llm-compression\[ray\]'"):
        embed([photo], out, MODEL, engine="ray")
    assert main(["embed", str(photo), "-o", str(out), "--model", MODEL, "--engine", "ray"]) == 1
    assert "llm-compression[ray]" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="'dask', expected one of local, ray"):
        embed([photo], out, MODEL, engine="dask")  # type: ignore[arg-type]  # what a caller without types may give
    with pytest.raises(ConfigError, match="address: 'auto', expected none"):
        embed([photo], out, MODEL, address="auto")
    assert not out.exists()


@pytest.mark.requirement("35.7")
def test_a_data_set_elsewhere_is_refused(photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """35.7: what is no directory of this machine is refused, and none of its name is made here."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EmbedError, match="s3://bucket/vectors: not a local directory"):
        embed([photo], "s3://bucket/vectors", MODEL)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


@pytest.mark.requirement("37.1")
def test_a_shard_goes_to_its_worker_with_its_own_paths(tmp_path: Path) -> None:
    """37.1: what an engine hands out names the same file and the same rows, and no path of another shard."""
    (tmp_path / "list.txt").write_text("\n".join(f"{row}.png" for row in range(10)))
    shards = plan_shards(find_sources([tmp_path / "list.txt"]).fragments, Settings("", {}, 32, "float32"), 4)
    sent = [Shard.from_json(shard.to_json()) for shard in shards]
    assert [shard.name for shard in sent] == [shard.name for shard in shards]
    assert [shard.fragment.paths for shard in sent] == [
        shard.fragment.paths[shard.start : shard.stop] for shard in shards
    ]
    assert [shard.fragment.start + shard.start for shard in sent] == [0, 4, 8]
    assert [shard.stop - shard.start for shard in sent] == [4, 4, 2]


@pytest.mark.requirement("37.6")
def test_the_function_for_spark_gives_the_rows_of_embed_batches(photo: Path) -> None:
    """37.6: ... THE Package SHALL give the rows of `embed_batches`, here without a Spark."""
    batch = pa.RecordBatch.from_pydict({"image": [str(photo), "gone.png"]})
    (found,) = map_in_arrow(MODEL, "image", dtype="float32")(iter([batch]))
    (wanted,) = embed_batches([batch], VisionEncoder(MODEL, dtype="float32"), "image", vector_type="list")
    assert found.equals(wanted)
    assert found.schema.field("embedding").type == pa.list_(pa.float32())
    assert found["error"].to_pylist() == [None, "missing"]
