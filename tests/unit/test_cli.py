"""The `llm-compression` command, run in this process as a user would run it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from llm_compression import VisionEncoder, __version__
from llm_compression.cli import main
from llm_compression.harness.clip.checkpoints import make_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"), "tiny")


@pytest.fixture(scope="module")
def model(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    assert main(["convert", str(checkpoint), str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    paths = [str(folder / f"photo{i}.png") for i in range(3)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.mark.requirement("10.1")
def test_convert_reports(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """10.1: WHEN `convert SOURCE OUT` ends, THE CLI SHALL print the path written, the tensors, the parameters, the
    bytes in and out and the recorded sha256."""
    assert main(["convert", str(checkpoint), str(tmp_path), "--dtype", "bfloat16"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    loader = VisionEncoder(tmp_path).weight_loader
    assert loader.metadata is not None
    assert lines["wrote"] == str(tmp_path / "weights.parquet")
    assert lines["tensors"] == f"{len(loader.names)}, sha256 {loader.metadata.tensors_sha256}"
    assert lines["parameters"] == f"{sum(info.num_params for info in loader.tensors.values()):,}"
    size_in = (checkpoint / "model.safetensors").stat().st_size
    assert lines["bytes"] == f"{size_in:,} in, {loader.path.stat().st_size:,} out"
    assert {info.dtype_name for info in loader.tensors.values()} == {"bfloat16"}


@pytest.mark.requirement("10.2")
def test_convert_shows_a_bar_on_a_terminal(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """10.2: WHILE `convert` runs on a terminal, THE CLI SHALL show a progress bar."""
    assert main(["convert", str(checkpoint), str(tmp_path / "a")]) == 0
    assert "converting" not in capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["convert", str(checkpoint), str(tmp_path / "b")]) == 0
    err = capsys.readouterr().err
    assert "converting" in err
    assert "100%" in err


@pytest.mark.requirement("9.7")
def test_convert_takes_what_the_checkpoint_leaves_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """9.7: an activation that a checkpoint does not say is refused, and taken from the option that names it."""
    source = make_checkpoint(tmp_path / "source", "tiny", layout="open_clip")
    (source / "open_clip_config.json").unlink()
    assert main(["convert", str(source), str(tmp_path / "out")]) == 1
    assert "hidden_act" in capsys.readouterr().err
    options = ["--hidden-act", "quick_gelu", "--num-heads", "4"]
    assert main(["convert", str(source), str(tmp_path / "out"), *options]) == 0
    assert VisionEncoder(tmp_path / "out").config.hidden_act == "quick_gelu"


@pytest.mark.requirement("10.3")
def test_inspect_prints_metadata_and_tensors(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """10.3: WHEN `inspect MODEL` is run, THE CLI SHALL print the metadata, the tensors and their sizes."""
    assert main(["inspect", str(model)]) == 0
    out = capsys.readouterr().out
    loader = VisionEncoder(model).weight_loader
    assert loader.metadata is not None
    for key, value in {**loader.metadata.config, **loader.metadata.preprocessing, **loader.metadata.source}.items():
        assert f"{key}: {value}" in out
    for info in loader.tensors.values():
        line = next(line for line in out.splitlines() if line.startswith(info.name + " "))
        assert line.split()[-2:] == [f"{info.num_params:,}", f"{info.num_bytes:,}"]
    assert "verified" not in out


@pytest.mark.requirement("10.4")
def test_inspect_verify(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """10.4: WHERE `--verify` is given to `inspect`, THE CLI SHALL recompute the sha256 over the tensors and compare it
    with the recorded one."""
    assert main(["inspect", str(model), "--verify"]) == 0
    metadata = VisionEncoder(model).weight_loader.metadata
    assert metadata is not None
    assert f"verified    sha256 {metadata.tensors_sha256}" in capsys.readouterr().out
    damaged = bytearray((model / "weights.parquet").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "weights.parquet").write_bytes(damaged)
    assert main(["inspect", str(tmp_path), "--verify"]) == 1


@pytest.mark.requirement("10.5")
@pytest.mark.parametrize("suffix", ["npy", "parquet"])
def test_encode_writes_embeddings(
    model: Path, photos: list[str], tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """10.5: WHEN `encode MODEL IMAGE...` is run, THE CLI SHALL write the embeddings as `.npy` or `.parquet` and say
    where."""
    output = tmp_path / "new" / f"e.{suffix}"
    assert main(["encode", str(model), *photos, "-o", str(output), "--dtype", "float32", "--batch-size", "2"]) == 0
    assert f"wrote {output}: 3 x 16" in capsys.readouterr().out
    expected = VisionEncoder(model, dtype="float32").encode(photos, batch_size=2)
    if suffix == "npy":
        found = np.load(output)
    else:
        table = pq.read_table(output)
        assert table.column("image").to_pylist() == photos
        found = np.array(table.column("embedding").to_pylist(), np.float32)
    assert np.array_equal(found, expected)
    assert [path.name for path in output.parent.iterdir()] == [output.name]


@pytest.mark.requirement("5.7")
def test_encode_keeps_lengths(model: Path, photos: list[str], tmp_path: Path) -> None:
    """5.7: WHERE `normalize` is true the rows have norm one; `--no-normalize` keeps their lengths."""
    for options, unit in (([], True), (["--no-normalize"], False)):
        assert main(["encode", str(model), *photos, "-o", str(tmp_path / "e.npy"), *options]) == 0
        lengths = np.linalg.norm(np.load(tmp_path / "e.npy"), axis=1)
        assert bool(np.allclose(lengths, 1, atol=1e-6)) is unit


@pytest.mark.requirement("10.6")
def test_encode_prints_similarity(
    model: Path, photos: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """10.6: WHEN `encode MODEL IMAGE...` is run, THE CLI SHALL print a table of the similarity of each image to each
    other."""
    assert main(["encode", str(model), *photos, "-o", str(tmp_path / "e.npy"), "--no-normalize"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[3:]]
    embeddings = np.load(tmp_path / "e.npy")
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    assert [row[1] for row in rows] == ["photo0.png", "photo1.png", "photo2.png"]
    assert np.allclose(np.array([row[2:] for row in rows], float), unit @ unit.T, atol=6e-4)


@pytest.mark.requirement("10.6")
def test_many_images_get_their_nearest(
    model: Path, photos: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """10.6: more images than a terminal has columns for are each printed with the nearest other one."""
    images = [photos[0]] + [photos[1], photos[2]] * 10
    assert main(["encode", str(model), *images, "-o", str(tmp_path / "e.npy"), "--dtype", "float32"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[3:]]
    assert len(rows) == len(images)
    for image, (name, cosine, nearest) in zip(images[1:], rows[1:], strict=True):
        assert (name, cosine, nearest) == (Path(image).name, "1.000", Path(image).name)


@pytest.mark.requirement("10.7")
@pytest.mark.parametrize("command", [[], ["convert"], ["inspect"], ["encode"]])
def test_help_has_an_example(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """10.7: WHEN a command is given `--help`, THE CLI SHALL print its usage with an example."""
    with pytest.raises(SystemExit) as exit_:
        main([*command, "--help"])
    assert exit_.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    assert out.startswith("usage: llm-compression")
    assert f"example: llm-compression {' '.join(command) or 'encode'}" in out


@pytest.mark.requirement("10.8")
@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["unknown"],
        ["encode", "model"],
        ["encode", "model", "a.png", "-o", "a.txt"],
        ["encode", "model", "a.png", "--batch-size", "0"],
        ["encode", "model", "a.png", "--dtype", "int8"],
        ["convert", "source"],
        ["convert", "source", "out", "--dtype", "int8"],
        ["inspect"],
    ],
)
def test_wrong_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """10.8: IF arguments are wrong, THEN THE CLI SHALL exit with status 2."""
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert "usage: llm-compression" in capsys.readouterr().err


@pytest.mark.requirement("10.9")
def test_refused_input(model: Path, photos: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """10.9: IF an input is refused, THEN THE CLI SHALL print the message of its error without a traceback and exit with
    status 1."""
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not an image")
    output = tmp_path / "e.npy"
    for arguments, words in (
        (["encode", str(model), photos[0], str(broken), "-o", str(output)], ["image 1", str(broken)]),
        (["encode", str(tmp_path / "none"), photos[0], "-o", str(output)], [str(tmp_path / "none")]),
        (["inspect", str(broken)], [str(broken)]),
        (["convert", str(tmp_path / "none"), str(tmp_path / "out")], [str(tmp_path / "none")]),
    ):
        assert main(arguments) == 1
        captured = capsys.readouterr()
        assert captured.err.startswith("llm-compression: ")
        assert all(word in captured.err for word in words)
        assert "Traceback" not in captured.err
    assert not output.exists()


@pytest.mark.requirement("12.4")
def test_python_m_is_the_command() -> None:
    """12.4: the package provides an `llm-compression` command; `python -m llm_compression` is the same."""
    # in a process of its own: pytest rewrites the package of a plugin, so that runpy cannot find its code
    command = [sys.executable, "-m", "llm_compression", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"llm-compression {__version__}"


@pytest.mark.requirement("9.7")
def test_an_override_is_said_and_recorded(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """9.7: what takes the place of the checkpoint's own word is printed and stands in the file's metadata."""
    assert main(["convert", str(checkpoint), str(tmp_path), "--num-heads", "2"]) == 0
    assert "overridden  num_heads: 2" in capsys.readouterr().out
    metadata = VisionEncoder(tmp_path).weight_loader.metadata
    assert metadata is not None
    assert metadata.source["overrides"] == {"num_heads": 2}


@pytest.mark.requirement("10.5")
def test_names_that_are_no_text_are_kept(model: Path, photos: list[str], tmp_path: Path) -> None:
    """10.5: a file name that is not UTF-8 is written with its bytes shown as escapes."""
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    shutil.copy(photos[0], odd)
    assert main(["encode", str(model), odd, "-o", str(tmp_path / "e.parquet")]) == 0
    assert pq.read_table(tmp_path / "e.parquet").column("image").to_pylist() == [f"{tmp_path}/caf\\xe9.png"]


@pytest.mark.requirement("10.9")
def test_a_directory_is_no_output(
    model: Path, photos: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """10.9: an output that cannot be written is refused before anything is computed."""
    (tmp_path / "e.npy").mkdir()
    assert main(["encode", str(model), photos[0], "-o", str(tmp_path / "e.npy")]) == 1
    assert f"{tmp_path / 'e.npy'}: a directory" in capsys.readouterr().err


@pytest.mark.requirement("28.14")
@pytest.mark.parametrize(
    ("on_error", "suffix"), [("raise", "npy"), ("skip", "parquet"), ("null", "parquet"), ("null", "npy")]
)
def test_images_that_cannot_be_read(
    model: Path, photos: list[str], tmp_path: Path, on_error: str, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """28.14: every bad image is printed, and is left out of the file, or a null, or a row of NaN."""
    broken, output = tmp_path / "broken.jpg", tmp_path / f"e.{suffix}"
    broken.write_bytes(b"not an image")
    given = [photos[0], str(broken), photos[1], "gone.png", photos[2]]
    status = main(["encode", str(model), *given, "-o", str(output), "--dtype", "float32", "--on-error", on_error])
    out, err = capsys.readouterr()
    assert f"image 1 ({broken})" in err
    assert "image 3 (gone.png)" in err
    if on_error == "raise":
        assert (status, output.exists()) == (1, False)
        return
    assert status == 0
    assert "2 of 5 images could not be read" in out
    expected = VisionEncoder(model, dtype="float32").encode(photos)
    if suffix == "npy":
        rows = np.load(output)
        assert np.isnan(rows[[1, 3]]).all()
        np.testing.assert_allclose(rows[[0, 2, 4]], expected, 1e-5, 1e-6)
        return
    table = pq.read_table(output)
    names, rows = table["image"].to_pylist(), table["embedding"].to_pylist()
    assert names == (photos if on_error == "skip" else given)
    if on_error == "null":
        assert (rows[1], rows[3]) == (None, None)
        rows = rows[::2]
    np.testing.assert_allclose(np.array(rows), expected, 1e-5, 1e-6)
    # the table of similarities has the images that were read
    assert [line.split()[1] for line in out.splitlines() if ".png" in line and line.startswith("  ")] == [
        Path(photo).name for photo in photos
    ]


@pytest.mark.requirement("28.15")
def test_an_npy_does_not_lose_which_rows_remain(
    model: Path, photos: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """28.15: `--on-error skip` for an `.npy` is refused with what to give in its place; no image at all is no crash."""
    assert main(["encode", str(model), *photos, "-o", str(tmp_path / "e.npy"), "--on-error", "skip"]) == 1
    assert "a name ending in .parquet, or --on-error null" in capsys.readouterr().err
    output = tmp_path / "e.parquet"
    assert main(["encode", str(model), "gone.png", "-o", str(output), "--on-error", "skip"]) == 0
    assert pq.read_table(output).num_rows == 0
