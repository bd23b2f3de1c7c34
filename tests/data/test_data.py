"""Sources, splits and scaling: what comes in is what was asked for, or an error says why."""

import gzip
import hashlib
import json
import struct
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import MNIST, FashionMNIST

from pyrovae.data import Split, Standardize, load, load_again, named
from pyrovae.errors import CheckpointError, DataError, OptionError

GZ = [name for name, _ in MNIST.resources]
IDX = [Path(name).stem for name in GZ]


def idx_bytes(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def mnist(monkeypatch, tmp_path):
    """Four small IDX files in torchvision's order, their checksums known to torchvision, a cache, and no network."""
    rng = np.random.default_rng(0)
    arrays = [
        rng.integers(0, 256, (7, 5, 4), dtype=np.uint8),
        rng.integers(0, 10, 7, dtype=np.uint8),
        rng.integers(0, 256, (3, 5, 4), dtype=np.uint8),
        rng.integers(0, 10, 3, dtype=np.uint8),
    ]
    files = {name: gzip.compress(idx_bytes(a), mtime=0) for name, a in zip(GZ, arrays)}
    resources = [(name, hashlib.md5(data).hexdigest()) for name, data in files.items()]
    monkeypatch.setattr(MNIST, "resources", resources)
    monkeypatch.setitem(named.SETS, "mnist", named.SETS["mnist"]._replace(md5=tuple(md5 for _, md5 in resources)))
    monkeypatch.setattr(MNIST, "mirrors", [(tmp_path / "nowhere").as_uri() + "/"])
    monkeypatch.setattr(named, "user_cache_path", lambda app: tmp_path / "cache" / app)
    return arrays, files


def write(folder, files, unpacked=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / (Path(name).stem if unpacked else name)).write_bytes(gzip.decompress(data) if unpacked else data)


def assert_is(dataset, arrays):
    for got, want in zip((dataset.x, dataset.x_test), arrays[::2]):
        assert got.dtype == torch.float32
        np.testing.assert_allclose(got.numpy() * 255, want.reshape(len(want), -1), atol=1e-4)
    for got, want in zip((dataset.y, dataset.y_test), arrays[1::2]):
        np.testing.assert_array_equal(got.numpy(), want)
    assert (dataset.kind, dataset.image_shape) == ("unit", (5, 4))


@pytest.mark.parametrize(("name", "theirs"), [("mnist", MNIST), ("fashion-mnist", FashionMNIST)])
def test_the_files_are_those_that_torchvision_knows(name, theirs):
    known = named.SETS[name]
    assert list(zip(named.ARCHIVES, known.md5)) == theirs.resources and known.folder == theirs.__name__
    assert [str(c) for c in known.classes] == [c.partition(" - ")[0] for c in theirs.classes]  # there "0 - zero"


# ---- names -----------------------------------------------------------------------------------------


def test_digits_are_counts_up_to_16():
    digits = load("digits")
    assert digits.x.shape == (1797, 64) and digits.x.dtype == torch.float32
    assert (digits.kind, digits.total_count, digits.image_shape) == ("count", 16, (8, 8))
    assert digits.x.max() == 16 and digits.y.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert load_again(json.loads(json.dumps(digits.source))).x.equal(digits.x)


@pytest.mark.parametrize("folder", ["MNIST/raw", "MNIST", "raw", "."])
@pytest.mark.parametrize("unpacked", [True, False])
def test_mnist_is_found_and_unpacked_elsewhere(mnist, tmp_path, folder, unpacked, capfd):
    arrays, files = mnist
    root = tmp_path / "root"
    write(root / folder, files, unpacked)
    before = sorted(root.rglob("*"))
    first = load("mnist", data_root=root)
    assert_is(first, arrays)
    assert sorted(root.rglob("*")) == before  # never beside the archives
    assert_is(load_again(first.source), arrays)  # from the cache
    cached = sorted(p.name for p in (tmp_path / "cache").rglob("*") if p.is_file())
    assert cached == ([] if unpacked else sorted(IDX))
    assert capfd.readouterr() == ("", "")


def test_the_cache_serves_without_a_root(mnist, tmp_path):
    arrays, files = mnist
    write(tmp_path / "root", files)
    load("mnist", data_root=tmp_path / "root")
    assert_is(load("mnist"), arrays)


def test_a_damaged_archive_is_named_kept_and_does_not_poison_the_cache(mnist, tmp_path):
    arrays, files = mnist
    root = tmp_path / "root"
    damaged = files | {GZ[2]: files[GZ[2]][:-9]}
    write(root, damaged)
    with pytest.raises(DataError, match=rf"{GZ[2]} is damaged.*Fetch"):
        load("mnist", data_root=root)
    assert (root / GZ[2]).read_bytes() == damaged[GZ[2]]  # a download over the user's file would be worse
    assert not (tmp_path / "cache").exists()
    write(root, files)
    assert_is(load("mnist", data_root=root), arrays)
    write(root, damaged)
    with pytest.raises(DataError, match="is damaged"):  # also where the cache could have hidden it
        load("mnist", data_root=root)


def test_an_archive_of_the_other_set_is_told(mnist, monkeypatch, tmp_path):
    _, files = mnist
    monkeypatch.setitem(named.SETS, "fashion-mnist", named.SETS["fashion-mnist"]._replace(md5=("0" * 32,) * 4))
    write(tmp_path / "root", files)
    with pytest.raises(DataError, match="belongs to MNIST"):
        load("fashion-mnist", data_root=tmp_path / "root")


def test_unpacked_files_of_the_other_set_are_told(mnist, tmp_path):
    _, files = mnist
    labels = np.array(named.SETS["fashion-mnist"].first_test_labels, dtype=np.uint8)
    pictures = np.zeros((len(labels), 5, 4), dtype=np.uint8)
    write(tmp_path / "root", files, unpacked=True)
    (tmp_path / "root" / IDX[2]).write_bytes(idx_bytes(pictures))
    (tmp_path / "root" / IDX[3]).write_bytes(idx_bytes(labels))
    with pytest.raises(DataError, match="holds fashion-mnist, not mnist"):
        load("mnist", data_root=tmp_path / "root")


@pytest.mark.parametrize("content", [b"", b"nonsense", idx_bytes(np.zeros((7, 5, 4), np.uint8))[:-3]])
def test_a_damaged_idx_file_is_an_error(mnist, tmp_path, content):
    _, files = mnist
    write(tmp_path / "root", files, unpacked=True)
    (tmp_path / "root" / IDX[0]).write_bytes(content)
    with pytest.raises(DataError, match="damaged IDX file"):
        load("mnist", data_root=tmp_path / "root")


def test_idx_files_that_do_not_belong_together(mnist, tmp_path):
    _, files = mnist
    write(tmp_path / "root", files | {GZ[1]: files[GZ[3]]}, unpacked=True)
    with pytest.raises(DataError, match="7 and 3 pictures have 3 and 3 labels"):
        load("mnist", data_root=tmp_path / "root")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({2: np.zeros((2, 4, 4), np.uint8)}, r"test pictures of shape \(2, 4, 4\): they must be of one size"),
        ({0: np.zeros((0, 5, 4), np.uint8), 1: np.zeros(0, np.uint8)}, r"training pictures of shape \(0, 5, 4\)"),
        ({3: np.array([3, 10], np.uint8)}, "holds the label 10, and the labels of mnist are 0 to 9"),
    ],
)
def test_idx_files_of_other_pictures_or_labels_are_refused(tmp_path, change, said):
    arrays = [
        np.ones((3, 5, 4), np.uint8),
        np.arange(3, dtype=np.uint8),
        np.ones((2, 5, 4), np.uint8),
        np.array([1, 2]),
    ]
    for number, (name, array) in enumerate(zip(IDX, arrays)):
        (tmp_path / name).write_bytes(idx_bytes(change.get(number, array).astype(np.uint8)))
    with pytest.raises(DataError, match=said):
        load("mnist", data_root=tmp_path)


@pytest.mark.parametrize("with_root", [True, False])
def test_without_files_and_network_the_message_is_the_cure(mnist, tmp_path, with_root, capfd):
    root = tmp_path / "root"
    root.mkdir()
    with pytest.raises(DataError) as caught:
        load("mnist", data_root=root if with_root else None)
    message = str(caught.value)
    for part in (*GZ, str(root if with_root else tmp_path / "cache"), "--data-root DIR", "pyrovae fit digits"):
        assert part in message
    assert list(tmp_path.iterdir()) == [root] and not list(root.iterdir())  # nothing left behind
    assert capfd.readouterr() == ("", "")


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.mark.parametrize("with_root", [True, False])
def test_download_goes_where_it_belongs_and_is_quiet(mnist, monkeypatch, tmp_path, with_root, capfd):
    arrays, files = mnist
    root, mirror = tmp_path / "root", tmp_path / "mirror"
    root.mkdir()
    write(mirror, files)
    monkeypatch.setenv("no_proxy", "*")
    data_root = root if with_root else None
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(mirror))) as server:
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            assert_is(load("mnist", data_root=data_root), arrays)
        finally:
            server.shutdown()
            thread.join()
    assert_is(load("mnist", data_root=data_root), arrays)  # without the server
    home = root / "MNIST" / "raw" if with_root else tmp_path / "cache"
    assert sorted(p.name for p in home.rglob("*") if p.is_file()) == sorted(IDX)
    assert capfd.readouterr() == ("", "")


def test_a_missing_root_is_an_error_and_is_not_made(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        load("mnist", data_root=tmp_path / "tpyo")
    assert not (tmp_path / "tpyo").exists()


def test_several_at_once(mnist, tmp_path):
    arrays, files = mnist
    write(tmp_path / "root", files)
    barrier = threading.Barrier(8)

    def run(_):
        barrier.wait()
        return load("mnist", data_root=tmp_path / "root")

    with ThreadPoolExecutor(8) as pool:
        for dataset in pool.map(run, range(8)):
            assert_is(dataset, arrays)
    assert sorted(p.name for p in (tmp_path / "cache").rglob("*-ubyte*")) == sorted(IDX)


def test_unknown_names_are_options(tmp_path):
    with pytest.raises(
        OptionError, match=r"did you mean mnist.*digits, sprites, mnist, fashion-mnist.*\.npz, \.npy, \.csv"
    ):
        load("minst")
    with pytest.raises(OptionError, match="has its own labels"):
        load("digits", label="y")


def test_a_missing_file_lists_near_names(tmp_path):
    (tmp_path / "flowers.csv").write_text("1,2\n")
    with pytest.raises(DataError, match=r"no file .*flower\.csv \(did you mean flowers\.csv\?\)"):
        load(str(tmp_path / "flower.csv"))
    with pytest.raises(DataError, match=r"no file .*x\.npz\. Check"):
        load(str(tmp_path / "none" / "x.npz"))


# ---- arrays ----------------------------------------------------------------------------------------


def npz(tmp_path, **arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    return load(str(tmp_path / "a.npz"))


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (np.array([[True], [False]]), "binary"),
        (np.array([[0.0], [1.0], [np.nan]]), "binary"),
        (np.array([[0], [3]], dtype=np.int16), "count"),
        (np.array([[0.0], [4e6]]), "count"),
        (np.array([[-1], [3]]), "real"),
        (np.array([[0.0], [0.5]]), "real"),
        (np.array([[0.5], [1.5]]), "real"),
        (np.array([[-0.5], [0.5]]), "real"),
        (np.array([[0], [200]], dtype=np.uint8), "count"),
        (np.array([[0], [200]], dtype=np.uint16), "count"),
    ],
)
def test_kind(tmp_path, values, kind):
    dataset = npz(tmp_path, x=values)
    assert dataset.kind == kind and dataset.x.dtype == torch.float32
    assert "divided_by" not in dataset.source
    np.testing.assert_array_equal(dataset.x.numpy(), values.astype(np.float32))


GREY = np.random.default_rng(0).permutation(np.arange(256).repeat(2)).reshape(32, 16)
REALS = np.random.default_rng(1).random((32, 16))
UNIT = {
    "pixels divided by 255": GREY / 255,
    "in float32": (GREY / 255).astype(np.float32),
    "with gaps": np.where(GREY == 7, np.nan, GREY / 255),
    "16 bits": GREY.astype(np.uint16) * 257.0 / 65535 + np.eye(32, 16) * 0,
    "digits divided by 16": (GREY // 15.1).clip(0, 16).round() / 16,
    "4 bits": (GREY // 16) / 15,
    "images of reals": REALS.reshape(32, 4, 4),
    "colour images of reals": REALS[:, :12].reshape(32, 3, 2, 2),
}
MEASURED = {
    "reals": REALS,
    "two digits": REALS.round(2),
    "four digits": REALS.round(4),
    "fifths": (REALS * 5).round() / 5,
    "thirds": (REALS * 3).round() / 3,
    "quarters": (REALS * 4).round() / 4,
    "eighths": (REALS * 8).round() / 8,
    "halves and whole": np.array([[0.0, 0.5], [1.0, 0.5]]),
    "far from 0 and 1": 0.4 + REALS / 100,
    "one row that is no grey": np.vstack([GREY / 255, np.full((1, 16), 0.331)]),
}


@pytest.mark.parametrize("kind", ["unit", "real"])
def test_pixels_are_told_from_measurements_between_0_and_1(tmp_path, kind):
    for name, values in (UNIT if kind == "unit" else MEASURED).items():
        assert npz(tmp_path, x=values).kind == kind, name


def test_columns_between_0_and_1_of_a_table_are_measurements(tmp_path):
    text = "".join(",".join(map(str, row)) + "\n" for row in REALS.round(2))
    assert csv(tmp_path, text).kind == "real" and csv(tmp_path, text.replace("0.", "0.0")).kind == "real"


WHOLE = {
    "near 2^40": np.int64(2**40) + np.arange(12).reshape(6, 2),
    "just beyond 2^24": np.array([[2**24 + 1], [3]]),
    "negative": np.array([[-(2**24) - 1], [3]]),
    "beyond 2^53": np.array([[2**53 + 1], [2**53]]),
    "beyond 2^63": np.array([[2**63 + 1], [5]], dtype=np.uint64),
    "the largest": np.array([[2**63 - 1], [5]]),
    "in 32 bits": np.array([[2**31 - 1], [5]], dtype=np.int32),
    "unsigned, in 32 bits": np.array([[2**32 - 1], [5]], dtype=np.uint32),
    "counts as float64": np.array([[2.0**24 + 1], [5]]),
}


@pytest.mark.parametrize("values", WHOLE.values(), ids=WHOLE.keys())
def test_whole_numbers_are_never_rounded(tmp_path, values):
    with pytest.raises(
        DataError, match="column 0 varies by .*float32 holds whole numbers up to 2.24 only.*Subtract an offset"
    ):
        npz(tmp_path, x=values)
    np.save(tmp_path / "b.npy", values)
    with pytest.raises(DataError, match="column 0 varies by"):
        load(str(tmp_path / "b.npy"))


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint32, np.uint64])
def test_whole_numbers_that_float32_holds_are_kept(tmp_path, dtype):
    values = np.array([[2**24, 3], [2**30, 5], [2 ** (31 if dtype(0).dtype.kind == "u" else 30), 5]], dtype=dtype)
    assert npz(tmp_path, x=values).x.tolist() == values.tolist()


def test_pixels_are_divided_by_255_and_that_is_recorded(tmp_path):
    pixels = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4) * 10
    dataset = npz(tmp_path, images=pixels, x_test=pixels[:1])
    assert (dataset.kind, dataset.image_shape, dataset.source["divided_by"]) == ("unit", (3, 4), 255)
    np.testing.assert_allclose(dataset.x.numpy() * 255, pixels.reshape(2, 12), rtol=1e-6)
    assert dataset.x_test.equal(dataset.x[:1])
    flat = npz(tmp_path, x=np.array([[0, 255]], dtype=np.uint8))
    assert flat.kind == "unit" and flat.x.tolist() == [[0, 1]] and flat.image_shape is None


def test_one_kind_for_training_and_test_rows(tmp_path):
    assert npz(tmp_path, x=np.eye(2), x_test=np.full((1, 2), 2.5)).kind == "real"


@pytest.mark.parametrize(
    ("shape", "image_shape"),
    [((3, 5, 4), (3, 5, 4)), ((5, 4, 3), (3, 5, 4)), ((1, 5, 4), (5, 4)), ((5, 4, 1), (5, 4)), ((5, 6, 7), None)],
)
def test_pictures_are_flattened_channels_first(tmp_path, shape, image_shape):
    x = np.random.default_rng(0).normal(size=(2, *shape))
    dataset = npz(tmp_path, x=x)
    assert dataset.image_shape == image_shape
    channels_first = np.moveaxis(x, -1, 1) if shape == (5, 4, 3) else x
    np.testing.assert_allclose(dataset.x.numpy(), channels_first.reshape(2, -1), rtol=1e-6)


def test_arrays_by_name_or_alone(tmp_path):
    x = np.random.default_rng(0).normal(size=(4, 2))
    both = npz(tmp_path, x_train=x, x_test=x[:2], y_train=[5, 7, 5, -1], y_test=[7, 9], other=np.array([None]))
    assert both.y.tolist() == [0, 1, 0, -1] and both.y_test.tolist() == [1, 2] and both.classes == (5, 7, 9)
    alone = npz(tmp_path, whatever=x)
    assert alone.x.shape == (4, 2) and alone.y is None and alone.classes is None
    np.savez(tmp_path / "b.npz", x=x, kind=np.array(["b", "a", "b", "a"]))
    assert load(str(tmp_path / "b.npz"), label="kind").y.tolist() == [1, 0, 1, 0]
    np.save(tmp_path / "c.npy", x)
    np.testing.assert_allclose(load(str(tmp_path / "c.npy")).x.numpy(), x, rtol=1e-6)
    with pytest.raises(OptionError, match=r"no array of labels 'knid' \(did you mean kind"):
        load(str(tmp_path / "b.npz"), label="knid")


X = np.ones((3, 2))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": X, "b": X}, r"needs an array named x or .*found \['a', 'b'\]"),
        ({"x": np.array([[None, 1]])}, "not a file of plain numeric arrays.*numpy.savez"),
        ({"x": X + 1j}, "dtype complex128"),
        ({"x": np.array([["a"]])}, "dtype <U1"),
        ({"x": np.ones((0, 2))}, r"none of them 0, got \(0, 2\)"),
        ({"x": np.ones(3)}, r"got \(3,\).*reshape\(-1, 1\)"),
        ({"x": np.array(1.0)}, r"got \(\)"),
        ({"x": X, "x_test": np.ones((3, 4))}, r"a row has shape \(2,\), a test row \(4,\)"),
        ({"x": X, "y": np.ones(2)}, r"labels of shape \(2,\) need the shape \(3,\)"),
        ({"x": X, "y": np.eye(3)}, "not one-hot"),
        ({"x": X, "y": [0, 1, 0], "y_test": [1]}, "need rows to label"),
        ({"x": X, "y": [0.5, 1.0, 2.0]}, "labels are classes"),
        ({"x": X, "y": [-1, 1, 1]}, "the only class is 1.*Code two classes as 0 and 1"),
        ({"x": X * np.inf}, "6 values are infinite"),
        ({"x": X * 1e300}, "6 values are infinite"),
        ({"x": X * np.nan}, "no value is observed"),
    ],
)
def test_arrays_that_will_not_do(tmp_path, arrays, message):
    with pytest.raises(DataError, match=message):
        npz(tmp_path, **arrays)


def test_files_that_are_not_arrays(tmp_path):
    for name, content in (("a.npz", b""), ("b.npz", b"text"), ("c.npy", b"\x80\x04K\x01.")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="not a file of plain numeric arrays"):
            load(str(tmp_path / name))
    np.savez_compressed(tmp_path / "d.npz", x=np.random.default_rng(0).normal(size=(50, 5)))
    with zipfile.ZipFile(tmp_path / "d.npz") as archive:
        start = archive.infolist()[0].header_offset + 60
    damaged = bytearray((tmp_path / "d.npz").read_bytes())
    damaged[start : start + 400] = bytes(400)
    (tmp_path / "d.npz").write_bytes(damaged)
    with pytest.raises(DataError, match="not a file of plain numeric arrays"):
        load(str(tmp_path / "d.npz"))


def test_load_again_notices_changed_data(tmp_path):
    source = json.loads(json.dumps(npz(tmp_path, x=X).source))
    assert source["checksum"] == hashlib.sha256((tmp_path / "a.npz").read_bytes()).hexdigest()
    assert load_again(source).x.equal(torch.ones(3, 2))
    npz(tmp_path, x=X + 1)
    with pytest.raises(DataError, match="a has changed"):
        load_again(source)


# ---- tables ----------------------------------------------------------------------------------------


def csv(tmp_path, text, name="t.csv", **options):
    (tmp_path / name).write_text(text)
    return load(str(tmp_path / name), **options)


@pytest.mark.parametrize(
    ("text", "columns", "rows"),
    [
        ("a,b\n1,2\n3,4\n", ("a", "b"), [[1, 2], [3, 4]]),
        ("1,2\n3,4\n", None, [[1, 2], [3, 4]]),
        ("?,2\n3,4\n", None, [[np.nan, 2], [3, 4]]),
        ("?,NA\n3,4\n", None, [[np.nan, np.nan], [3, 4]]),
        ("a,b\n?,2\n,NA\n3, ?\n", ("a", "b"), [[np.nan, 2], [np.nan, np.nan], [3, np.nan]]),
        ("0,1,2\n5,6,7\n", ("0", "1", "2"), [[5, 6, 7]]),
        (",a\n0,5\n1,6\n", ("a",), [[5], [6]]),
        (",a\n0,5\n3,6\n", ("column 0", "a"), [[0, 5], [3, 6]]),
        ("a;b\n1;2\n", ("a", "b"), [[1, 2]]),
        ("first one\tb\n1\t2\n", ("first one", "b"), [[1, 2]]),
        ("1.5  2\n3 \t4\n", None, [[1.5, 2], [3, 4]]),
        ("\ufeffa,b\n1,2\n", ("a", "b"), [[1, 2]]),
        ("1,2", None, [[1, 2]]),
    ],
)
def test_csv(tmp_path, text, columns, rows):
    dataset = csv(tmp_path, text)
    assert dataset.columns == columns and dataset.x.dtype == torch.float32
    np.testing.assert_array_equal(dataset.x.numpy(), rows)


TABLE = "width,kind,height\n1.5,b,2\n2.5,a,3\n0.5,,4\n"


@pytest.mark.parametrize("label", ["kind", "1"])
def test_csv_label(tmp_path, label):
    dataset = csv(tmp_path, TABLE, label=label)
    assert dataset.y.tolist() == [1, 0, -1] and dataset.classes == ("a", "b") and dataset.y.dtype == torch.int64
    assert dataset.columns == ("width", "height") and dataset.x.tolist() == [[1.5, 2], [2.5, 3], [0.5, 4]]
    again = load_again(json.loads(json.dumps(dataset.source)))
    assert again.y.equal(dataset.y) and again.x.equal(dataset.x)


def test_csv_last_column_as_label_of_a_table_without_header(tmp_path):
    dataset = csv(tmp_path, "0.5,4\n0.25,2\n0.5,4\n", name="t.data", label="last")
    assert dataset.y.tolist() == [1, 0, 1] and dataset.classes == (2, 4) and dataset.x.shape == (3, 1)


def test_a_column_of_text_makes_a_table_of_several_kinds(tmp_path):
    dataset = csv(tmp_path, TABLE)
    assert dataset.kind == "table" and [column.kind for column in dataset.schema.columns] == ["real", "binary", "count"]
    assert dataset.columns == ("width", "height", "kind")  # numbers first
    assert dataset.x[:, :2].tolist() == [[1.5, 2.0], [2.5, 3.0], [0.5, 4.0]]
    assert dataset.x[:, 2].nan_to_num(-1).tolist() == [1.0, 0.0, -1.0]  # a missing cell stays one


@pytest.mark.parametrize(
    ("text", "label", "error", "message"),
    [
        (TABLE, "knd", OptionError, r"no column 'knd' \(did you mean kind\?\).*width, kind, height"),
        (TABLE, "3", OptionError, "no column '3'"),
        ("a,b\n", None, DataError, "a header and no rows"),
        ("", None, DataError, "not a table"),
        ("1,2\n3,4,5\n", None, DataError, "not a table.*equal length"),
        ("1\n2\n", "0", DataError, "no column besides the label"),
        ("1,2\n3,inf\n", None, DataError, "1 value is infinite"),
    ],
)
def test_tables_that_will_not_do(tmp_path, text, label, error, message):
    with pytest.raises(error, match=message):
        csv(tmp_path, text, label=label)


def test_columns_of_one_name_get_numbers_as_pandas_gives_them(tmp_path):
    rows = np.random.default_rng(0).normal(size=(9, 6)).astype(np.float32)
    text = "score,score,score.1,b,score,b\n" + "\n".join(",".join(map(str, row)) for row in rows)
    with pytest.warns(UserWarning, match=r"have one name.*: score \(score.2\), score \(score.3\), b \(b.1\)"):
        dataset = csv(tmp_path, text)
    assert dataset.columns == ("score", "score.2", "score.1", "b", "score.3", "b.1")
    np.testing.assert_array_equal(dataset.x, rows)


def test_csv_that_is_not_text(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"\xff\xfe\x00\xd8\n")
    with pytest.raises(DataError, match="not a table"):
        load(str(tmp_path / "t.csv"))


# ---- scaling ---------------------------------------------------------------------------------------


def test_standardize_is_the_change_of_variables():
    x = torch.randn(50, 3, dtype=torch.float64) * torch.tensor([0.1, 5.0, 2.0]) + torch.tensor([1.0, -3.0, 1e6])
    scaling = Standardize.fit(x)
    z = scaling.apply(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(3).double(), atol=1e-8, rtol=0)
    torch.testing.assert_close(z.std(0, correction=0), torch.ones(3).double())
    torch.testing.assert_close(scaling.invert(z), x)
    # two normals, one density: log N(x; mean, scale) = log N(z; 0, 1) - log |dx/dz|
    direct = torch.distributions.Normal(scaling.mean, scaling.scale).log_prob(x).sum(-1)
    through_z = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1) - scaling.log_abs_det
    torch.testing.assert_close(direct, through_z)


def test_standardize_skips_missing_and_leaves_constants():
    nan = torch.nan
    x = torch.tensor([[1.0, 0.1, nan, 2.0], [3.0, 0.1, nan, nan], [nan, 0.1, nan, 2.0]])
    scaling = Standardize.fit(x)
    torch.testing.assert_close(scaling.mean.float(), torch.tensor([2.0, 0.1, 0.0, 2.0]))
    assert scaling.scale.tolist() == [1.0, 1.0, 1.0, 1.0]
    assert Standardize.fit(x[:, :1] * 3).scale.tolist() == [3.0]
    z = scaling.apply(x)
    assert z.dtype == x.dtype and z.isnan().equal(x.isnan())
    # a constant whose mean is rounded: its variance is not exactly 0
    assert Standardize.fit(torch.full((10, 1), 0.1, dtype=torch.float64)).scale.item() == 1.0


@pytest.mark.parametrize("power", [-900, -300, 30, 400, 1000])
def test_columns_are_scaled_whatever_their_unit(power: int) -> None:
    """Squares of 1e200 and 1e-200 are infinite and 0, and the deviations are not."""
    x = torch.randn(50, 3, dtype=torch.float64)
    unit = 2.0**power
    one, other = Standardize.fit(x), Standardize.fit(x * unit)
    assert torch.equal(other.mean, one.mean * unit) and torch.equal(other.scale, one.scale * unit)
    assert torch.equal(other.apply(x * unit), one.apply(x))


def test_standardize_round_trip_is_exact():
    scaling = Standardize.fit(torch.randn(20, 5) / 3)
    again = Standardize.from_json(json.loads(json.dumps(scaling.to_json())))
    assert again.mean.equal(scaling.mean) and again.scale.equal(scaling.scale)
    for damaged in (
        {},
        {"mean": [0.0], "scale": [0.0]},
        {"mean": [0.0], "scale": [1.0, 1.0]},
        {"mean": "a", "scale": 1},
    ):
        with pytest.raises(CheckpointError):
            Standardize.from_json(damaged)


def test_standardize_refuses():
    scaling = Standardize.fit(torch.randn(20, 5))
    for method in (scaling.apply, scaling.invert):
        with pytest.raises(ValueError, match="learned from 5 columns"):
            method(torch.zeros(2, 4))
    with pytest.raises(DataError, match=r"columns \[1\] hold infinite"):
        Standardize.fit(torch.tensor([[0.0, torch.inf]]))
    for shape in ((0, 3), (3,)):
        with pytest.raises(DataError, match="wants rows"):
            Standardize.fit(torch.zeros(shape))


# ---- splits ----------------------------------------------------------------------------------------


def test_split_is_a_partition_that_its_seed_determines():
    split = Split(103, test_fraction=0.2, validation_fraction=0.1, seed=7)
    assert (len(split.train), len(split.validation), len(split.test)) == (72, 10, 21)
    assert sorted(torch.cat([split.train, split.validation, split.test]).tolist()) == list(range(103))
    again = Split.from_json(json.loads(json.dumps(split.to_json())), num_rows=103)
    assert again.train.equal(split.train) and again.validation.equal(split.validation) and again.test.equal(split.test)
    assert Split(103, 0.2, 0.1, seed=8).checksum != split.checksum
    whole = Split(5, test_fraction=0.0)
    assert len(whole.train) == 5 and len(whole.test) == len(whole.validation) == 0


def test_split_does_not_touch_the_global_generator():
    before = torch.get_rng_state()
    Split(10)
    assert torch.get_rng_state().equal(before)


def test_split_checksum_is_that_of_the_indices():
    split = Split(4, test_fraction=0.25)
    text = struct.pack("<q3q", 3, *split.train) + struct.pack("<q", 0) + struct.pack("<qq", 1, *split.test)
    assert split.checksum == hashlib.sha256(text).hexdigest()


@pytest.mark.parametrize("options", [(1.0, 0.0), (-0.1, 0.0), (0.5, 0.5), (0.0, float("nan")), (0.2, 0.0, -1)])
def test_split_options(options):
    with pytest.raises(OptionError):
        Split(100, *options)


@pytest.mark.parametrize(("num_rows", "options"), [(0, (0.0,)), (2, (0.2,)), (1, (0.5,)), (10, (0.2, 0.01))])
def test_split_leaves_no_part_empty(num_rows, options):
    with pytest.raises(DataError, match="leaves? no row for"):
        Split(num_rows, *options)


def test_split_from_other_data_or_another_torch():
    saved = Split(20, seed=3).to_json()
    with pytest.raises(CheckpointError, match="drawn from 20 rows, the data have 21"):
        Split.from_json(saved, num_rows=21)
    with pytest.raises(CheckpointError, match="other rows"):
        Split.from_json(saved | {"seed": 4})
    with pytest.raises(CheckpointError, match="missing"):
        Split.from_json({"num_rows": 20})
    with pytest.raises(CheckpointError, match="damaged"):
        Split.from_json(saved | {"test_fraction": 2.0})


def test_a_table_of_true_and_false_is_binary(tmp_path):
    path = tmp_path / "flags.csv"
    path.write_text("a,b\nTrue,False\nFalse,False\nTrue,True\n")
    dataset = load(str(path))
    assert dataset.kind == "binary" and dataset.columns == ("a", "b")
    assert dataset.x.tolist() == [[1, 0], [0, 0], [1, 1]]
