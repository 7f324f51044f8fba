"""What there is to embed: folders, lists, tables and tar shards, counted, and read in any split."""

from __future__ import annotations

import io
import os
import tarfile
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_compression.columns import NamedBytes
from llm_compression.embed.rows import carried_schema, read_rows
from llm_compression.embed.sources import PATHS_PER_FRAGMENT, Fragment, find_sources
from llm_compression.errors import SourceError

ROWS = 150


def table(kind: str) -> pa.Table:
    """A column of images of a kind beside two others, one of a reserved name."""
    encoded = [f"bytes of {row}".encode() for row in range(ROWS)]
    paths = [f"{row}.jpg" for row in range(ROWS)]
    column = {
        "binary": pa.array(encoded, pa.binary()),
        "large_binary": pa.array(encoded, pa.large_binary()),
        "paths": pa.array(paths),
        "struct": pa.array([{"bytes": data, "path": path} for data, path in zip(encoded, paths, strict=True)]),
    }[kind]
    return pa.table(
        {"image": column, "label": pa.array(range(ROWS), pa.int16()), "id": [f"own {i}" for i in range(ROWS)]}
    )


def write_parquet(path: Path, content: pa.Table) -> None:
    pq.write_table(content, path, row_group_size=37)


def write_arrow(path: Path, content: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, content.schema) as writer:
        writer.write_table(content, max_chunksize=41)


def write_stream(path: Path, content: pa.Table) -> None:
    """As Hugging Face's datasets keep a split."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, content.schema) as writer:
        writer.write_table(content, max_chunksize=41)


def write_feather(path: Path, content: pa.Table) -> None:
    feather.write_feather(content, str(path), compression="lz4", chunksize=29)


TABLES: dict[str, tuple[str, Callable[[Path, pa.Table], None]]] = {
    "parquet": ("t.parquet", write_parquet),
    "arrow": ("t.arrow", write_arrow),
    "stream": ("s.arrow", write_stream),
    "feather": ("t.feather", write_feather),
}


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def samples(count: int) -> list[tuple[str, bytes]]:
    """Members as img2dataset writes them."""
    return [
        (f"{row:05}.{suffix}", f"{suffix} of {row}".encode())
        for row in range(count)
        for suffix in ("jpg", "json", "txt")
    ]


def rows_of(fragment: Fragment, edges: list[int]) -> tuple[pa.Table, list[object]]:
    """All rows of a fragment, read in parts."""
    bounds = [0, *sorted(edges), fragment.rows]
    batches = [batch for start, stop in pairwise(bounds) for batch in read_rows(fragment, start, stop)]
    images = [
        bytes(data) if isinstance(data := image.data if isinstance(image, NamedBytes) else image, memoryview) else data
        for batch in batches
        for image in batch.images
    ]
    return pa.Table.from_batches([batch.carried for batch in batches], carried_schema(fragment)), images


SPLITS = st.lists(st.integers(0, ROWS), max_size=6)


@pytest.mark.requirement("35.3")
@pytest.mark.parametrize("kind", ["binary", "large_binary", "paths", "struct"])
@pytest.mark.parametrize("container", TABLES)
def test_any_split_of_a_table_gives_its_rows(container: str, kind: str, tmp_path: Path) -> None:
    """35.3: ... THE Package SHALL give the rows of each in any split of them with the same `id` and columns."""
    name, write = TABLES[container]
    content = table(kind)
    write(tmp_path / name, content)
    (fragment,) = find_sources([tmp_path / name]).fragments
    assert fragment.rows == ROWS
    wanted = ["path" if kind == "paths" else "bytes", "label"]

    @given(SPLITS)
    def check(edges: list[int]) -> None:
        carried, images = rows_of(fragment, edges)
        assert carried["id"].to_pylist() == [f"{tmp_path / name}#{row}" for row in range(ROWS)]
        assert carried["label"].to_pylist() == content["label"].to_pylist()
        assert carried["source_id"].to_pylist() == content["id"].to_pylist()
        expected = [f"{row}.jpg" if wanted[0] == "path" else f"bytes of {row}".encode() for row in range(ROWS)]
        assert images == expected
        assert ("image" in carried.column_names) == (kind == "paths")

    check()


@pytest.mark.requirement("35.3")
def test_any_split_of_a_tar_shard_gives_its_samples(tmp_path: Path) -> None:
    """35.3, of a tar shard: a row for each key, with its texts."""
    path = tmp_path / "00000.tar"
    # one without a picture, one without texts, and one whose name has more dots
    write_tar(path, [*samples(ROWS - 3), ("x.txt", b"no image"), ("y.png", b"alone"), ("z.seg.jpg", b"two dots")])
    (fragment,) = find_sources([path]).fragments
    assert fragment.rows == ROWS

    @given(SPLITS)
    def check(edges: list[int]) -> None:
        carried, images = rows_of(fragment, edges)
        keys = [*(f"{row:05}" for row in range(ROWS - 3)), "x", "y", "z"]
        assert carried["key"].to_pylist() == keys
        assert carried["id"].to_pylist() == [f"{path}#{key}" for key in keys]
        assert carried["txt"].to_pylist()[-4:] == [f"txt of {ROWS - 4}", "no image", None, None]
        assert images[-4:] == [f"jpg of {ROWS - 4}".encode(), None, b"alone", b"two dots"]
        assert len(images) == ROWS

    check()


@pytest.mark.requirement("35.3", "35.5")
def test_a_folder_gives_its_images_sorted(tmp_path: Path) -> None:
    """35.3, 35.5: all images below a folder, at any depth, by name; a folder that is called one is a row; what is no
    image is counted by suffix; a link to a folder is not followed."""
    for name in ("b/2.PNG", "a.jpg", "b/c/3.webp", "README.txt", "notes", ".hidden.jpg", "b/thumbs.db"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "folder.jpg" / "inner.jpg").write_bytes(b"x")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.jpg").write_bytes(b"x")
    (tmp_path / "b" / "loop").symlink_to(tmp_path, target_is_directory=True)
    found = find_sources([tmp_path])
    assert [path for fragment in found.fragments for path in fragment.paths] == [
        str(tmp_path / name) for name in ("a.jpg", "folder.jpg", "b/2.PNG", "b/c/3.webp")
    ]
    assert found.passed_over == {".txt": 1, "no suffix": 1, "hidden": 1, ".db": 1}


@pytest.mark.requirement("35.3")
def test_lists_patterns_and_images(tmp_path: Path) -> None:
    """35.3: each line of a list is a row, also one that names nothing or the same twice; `-` is standard input."""
    for name in ("1.jpg", "2.jpg", "10.jpg"):
        (tmp_path / name).write_bytes(b"x")
    listed = tmp_path / "list.txt"
    listed.write_bytes("\ufeff1.jpg\r\n\ngone.jpg\n1.jpg\nnäme with blanks .jpg\n".encode())
    found = find_sources([listed, str(tmp_path / "*.jpg"), "-", tmp_path / "2.jpg"], stdin=io.StringIO("x.jpg\ny.jpg"))
    lines, pattern, stdin, image = found.fragments
    assert lines.paths == ("1.jpg", "gone.jpg", "1.jpg", "näme with blanks .jpg")
    carried, images = rows_of(lines, [1, 2])
    assert carried["id"].to_pylist() == [f"{listed}#{row}" for row in range(4)]
    assert images == list(lines.paths)
    assert pattern.paths == tuple(str(tmp_path / name) for name in ("1.jpg", "10.jpg", "2.jpg"))
    assert stdin.paths == ("x.jpg", "y.jpg")
    assert image.paths == (str(tmp_path / "2.jpg"),)
    assert found.rows == 10


@pytest.mark.requirement("35.3")
def test_a_long_list_has_many_fragments(tmp_path: Path) -> None:
    """35.3: the `id` of a row counts on over the fragments of its list."""
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(f"{row}.jpg" for row in range(PATHS_PER_FRAGMENT + 5)))
    first, second = find_sources([listed]).fragments
    assert (first.rows, second.rows) == (PATHS_PER_FRAGMENT, 5)
    assert rows_of(second, [2])[0]["id"].to_pylist() == [f"{listed}#{PATHS_PER_FRAGMENT + row}" for row in range(5)]


@pytest.mark.requirement("35.3")
@pytest.mark.parametrize("given", ["list.txt", "folder", "folder/*.jpg"])
def test_a_plan_holds_paths_as_texts_alone(given: str, tmp_path: Path) -> None:
    """35.3, of so many paths that they must not be held as objects of several hundred bytes."""
    rows = 2000
    (tmp_path / "folder").mkdir()
    names = [tmp_path / "folder" / f"{row:06}.jpg" for row in range(rows)]
    for name in names:
        name.touch()
    (tmp_path / "list.txt").write_text("\n".join(map(str, names)))
    find_sources([tmp_path / given])  # what is made once is no part of it
    tracemalloc.start()
    found = find_sources([tmp_path / given])
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert found.rows == rows
    assert held / rows < len(str(names[0])) + 150


@pytest.mark.requirement("35.3")
def test_a_folder_named_in_any_way_gives_plain_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """35.3: `.`, a trailing slash and a doubled one name the same files."""
    (tmp_path / "inner").mkdir()
    for name in ("a.jpg", "inner/b.jpg"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    for folder, wanted in {".": "", "./": "", "inner/../.": "inner/../", f"{tmp_path}//": f"{tmp_path}/"}.items():
        (fragment,) = find_sources([folder]).fragments
        assert fragment.paths == (f"{wanted}a.jpg", f"{wanted}inner/b.jpg")


@pytest.mark.requirement("35.3")
def test_names_that_are_no_text(tmp_path: Path) -> None:
    """35.3: a file name of bytes that are no UTF-8 is read by its bytes and shown with escapes."""
    name = os.fsdecode(b"caf\xe9.jpg")
    (tmp_path / name).write_bytes(b"x")
    (fragment,) = find_sources([tmp_path]).fragments
    carried, images = rows_of(fragment, [])
    assert images == [str(tmp_path / name)]
    assert carried["id"].to_pylist() == [f"{tmp_path}/caf\\xe9.jpg"]


def _cut(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


@pytest.mark.requirement("35.4")
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.999])
@pytest.mark.parametrize("container", [*TABLES, "tar"])
def test_a_damaged_source_is_refused(container: str, share: float, tmp_path: Path) -> None:
    """35.4: IF an input ... is damaged ..., THEN THE Package SHALL raise SourceError with its name."""
    if container == "tar":
        path = tmp_path / "t.tar"
        # without the end: a cut between two samples is one too
        write_tar(path, [(f"{row}.jpg", b"x" * 5000) for row in range(40)])
        path.write_bytes(path.read_bytes()[: 40 * (512 + 5120)])
    else:
        name, write = TABLES[container]
        path = tmp_path / name
        write(path, table("binary"))
    _cut(path, share)
    with pytest.raises(SourceError, match=path.name):
        find_sources([path])


@pytest.mark.requirement("35.4")
def test_inputs_that_are_none(tmp_path: Path) -> None:
    """35.4: what does not exist, another scheme, a compressed archive, a folder of two kinds, a missing column."""
    with pytest.raises(SourceError, match="no such file"):
        find_sources([tmp_path / "gone"])
    with pytest.raises(SourceError, match="no file matches"):
        find_sources([str(tmp_path / "*.jpg")])
    with pytest.raises(SourceError, match="not a local file"):
        find_sources(["s3://bucket/photos"])
    (tmp_path / "a.tar.gz").write_bytes(b"x")
    with pytest.raises(SourceError, match="unpack it"):
        find_sources([tmp_path / "a.tar.gz"])
    write_parquet(tmp_path / "t.parquet", table("binary"))
    with pytest.raises(SourceError, match="no column 'photo'"):
        find_sources([tmp_path / "t.parquet"], image_column="photo")
    with pytest.raises(SourceError, match="'label' is int16"):
        find_sources([tmp_path / "t.parquet"], image_column="label")
    pq.write_table(pa.table({"n": [1]}), tmp_path / "n.parquet")
    with pytest.raises(SourceError, match="name it"):
        find_sources([tmp_path / "n.parquet"])
    (tmp_path / "a.jpg").write_bytes(b"x")
    with pytest.raises(SourceError, match="expected one kind"):
        find_sources([tmp_path])


@pytest.mark.requirement("35.4")
def test_a_flipped_bit_of_a_tar_header_loses_no_sample(tmp_path: Path) -> None:
    """35.4: tarfile takes a header whose sum is wrong for the end of the archive."""
    path = tmp_path / "t.tar"
    write_tar(path, [(f"{row}.jpg", b"x" * 100) for row in range(5)])
    data = bytearray(path.read_bytes())
    data[3 * 1024 + 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(SourceError, match="at byte 3072"):
        find_sources([path])


@pytest.mark.requirement("35.4")
@pytest.mark.parametrize(
    "members",
    [
        [("1.jpg", b"x"), ("2.jpg", b"x"), ("1.txt", b"x")],
        [("1.jpg", b"x"), ("1.jpg", b"y")],
    ],
    ids=["apart", "twice"],
)
def test_a_tar_shard_whose_samples_are_not_together(members: list[tuple[str, bytes]], tmp_path: Path) -> None:
    """35.4: members of one sample that lie apart would be two rows of one `id`."""
    write_tar(tmp_path / "t.tar", members)
    with pytest.raises(SourceError, match=r"t\.tar"):
        find_sources([tmp_path / "t.tar"])
