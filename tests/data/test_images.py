"""Images with labels: decoded, changed at random, fitted."""

import gzip
import hashlib
import io
import itertools
import tarfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

import pyro_sps as sps
from pyro_sps.data import images as module
from pyro_sps.data.observed import NO_EXTRAS
from pyro_sps.data.opening import source_of
from pyro_sps.data.remote import Remote

ROWS, SIZE = 24, 6


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).integers(0, 256, (ROWS, SIZE, SIZE, 3), dtype=np.uint8)


def encoded(picture, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind)
    return file.getvalue()


def write(path, content, labels, classes=b"low,high"):
    schema = pyarrow.schema({"image": pyarrow.binary(), "label": pyarrow.int8()}, {b"classes": classes})
    pyarrow.parquet.write_table(pyarrow.table([content, labels], schema=schema), path)
    return path


@pytest.fixture(scope="module")
def file(pictures, tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "images.parquet"
    return write(path, [encoded(picture) for picture in pictures], (np.arange(ROWS) % 2).astype(np.int8))


def as_is(piece, where):
    return piece.x, piece.y


def test_files_are_decoded(file, pictures):
    data = sps.datasets.images(file)
    assert (len(data), data.classes) == (ROWS, ("low", "high"))
    for row in range(ROWS):
        image, label = data[row]
        np.testing.assert_allclose(image, pictures[row].transpose(2, 0, 1) / 255.0, rtol=1e-6)
        assert label == row % 2


def test_grey_images_have_one_channel(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (3, 5, 4), dtype=np.uint8)
    data = sps.datasets.images(write(tmp_path / "g.parquet", [encoded(one) for one in grey], [0, 1, 2], b""))
    assert data.classes == ("0", "1", "2")
    np.testing.assert_allclose(data[1][0][0], grey[1] / 255.0, rtol=1e-6)


def test_augmentations_are_crops_and_flips_of_minibatches(file, pictures):
    data = sps.datasets.images(file, ("crop", "flip"), padding=1)
    wide = np.pad(pictures.transpose(0, 3, 1, 2), ((0, 0), (0, 0), (1, 1), (1, 1))) / 255.0
    possible = {
        (row, top, left, flip): wide[row, :, top : top + SIZE, left : left + SIZE][:, :, :: -1 if flip else 1]
        for row, top, left, flip in itertools.product(range(ROWS), range(3), range(3), (False, True))
    }
    keys, seen = list(possible), set()
    every = np.stack(list(possible.values()))
    source = source_of(data, None, NO_EXTRAS, None)
    for x, _ in itertools.islice(source.batches(0, 8, as_is), 60):
        for image in x.numpy():
            found = np.flatnonzero(np.abs(every - image).max((1, 2, 3)) < 1e-6)
            assert len(found) == 1
            seen.add(keys[found[0]][1:])
    assert len(seen) == 18  # all shifts, with and without a flip: of 480 draws each is missed with probability 1e-12
    in_order = torch.cat([x for x, _ in source.in_order(as_is)])
    np.testing.assert_allclose(in_order, pictures.transpose(0, 3, 1, 2) / 255.0, rtol=1e-6)


def test_workers_decode_the_same_and_steps_see_the_same_again(file):
    data = sps.datasets.images(file, ("crop", "flip"))
    here = source_of(data, None, NO_EXTRAS, None)
    there = source_of(DataLoader(data, batch_size=8, num_workers=2), None, NO_EXTRAS, None)
    state = torch.get_rng_state()
    batches = list(itertools.islice(here.batches(1, 8, as_is), 5))
    for one, other in zip(batches, there.batches(1, 8, as_is), strict=False):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
    assert torch.equal(next(here.batches(1, 8, as_is, 4))[0], batches[4][0])
    assert torch.equal(torch.get_rng_state(), state)


def test_images_are_fitted_and_predicted(file):
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(2 * (SIZE - 2) ** 2, 2))
    bnn = sps.BNN(net, sps.Unmasked(), sps.Zero(), likelihood=sps.Categorical(), example=torch.zeros(2, 3, SIZE, SIZE))
    train = sps.datasets.images(file, "flip")
    fit = sps.fit(bnn, train, num_steps=5, batch_size=8, progress=False)
    prediction = fit.predict(train, 20)
    assert prediction.mean.shape == (ROWS, 2)
    assert 0 <= prediction.accuracy() <= 1


def test_what_is_wrong_is_named(file, tmp_path):
    with pytest.raises(sps.tables.DataError, match="no file none, and no data set of that name"):
        sps.datasets.images("none")
    with pytest.raises(ValueError, match="augment must be among crop, flip"):
        sps.datasets.images(file, "rotate")
    broken = sps.datasets.images(write(tmp_path / "b.parquet", [b"no image"], [0]))
    with pytest.raises(sps.tables.DataError, match=r"b\.parquet, row 0 is no image"):
        broken[0]
    pyarrow.parquet.write_table(pyarrow.table({"image": [1]}), tmp_path / "c.parquet")
    with pytest.raises(sps.tables.DataError, match="no column 'label'"):
        sps.datasets.images(tmp_path / "c.parquet")


def test_files_of_the_sources_are_read(tmp_path, monkeypatch):
    """As MNIST and CIFAR-10 are distributed; the files are made up."""
    monkeypatch.setenv("PYRO_SPS_DATA", str(tmp_path))

    def put(name, content):
        (tmp_path / name).write_bytes(content)
        return Remote(name, hashlib.sha256(content).hexdigest(), f"https://example.org/{name}", "made up")

    digits = np.random.default_rng(0).integers(0, 256, (4, 28, 28), dtype=np.uint8)
    sizes = np.array(digits.shape, dtype=">u4").tobytes()
    files = (
        put("digits.gz", gzip.compress(b"\0\0\x08\x03" + sizes + digits.tobytes())),
        put("labels.gz", gzip.compress(b"\0\0\x08\x01" + np.array([4], dtype=">u4").tobytes() + bytes([3, 1, 4, 1]))),
    )
    monkeypatch.setitem(module.REMOTE, "mnist-test", files)
    data = sps.datasets.images("mnist-test")
    np.testing.assert_allclose(data[2][0][0], digits[2] / 255.0, rtol=1e-6)
    assert [data[row][1] for row in range(4)] == [3, 1, 4, 1]
    rows = np.random.default_rng(1).integers(0, 10, (5, 3073), dtype=np.uint8)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        member = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
        member.size = rows.nbytes
        tar.addfile(member, io.BytesIO(rows.tobytes()))
    monkeypatch.setitem(module.REMOTE, "cifar10-test", (put("cifar.tar.gz", archive.getvalue()),))
    data = sps.datasets.images("cifar10-test")
    np.testing.assert_allclose(data[3][0].flatten(), rows[3, 1:] / 255.0, rtol=1e-6)
    assert data[3][1] == rows[3, 0]
    monkeypatch.setitem(module.REMOTE, "cifar10-train", module.REMOTE["cifar10-test"])
    with pytest.raises(sps.tables.DataError, match="holds no data_batch_1"):
        sps.datasets.images("cifar10-train")
