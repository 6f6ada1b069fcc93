"""Images with labels, decoded when they are needed, and changed at random while they are learned from."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .remote import Remote, find
from .rows import DataError

#: What can be done to images at random.
AUGMENTATIONS = ("crop", "flip")

_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist"


def _mnist(file: str, sha256: str) -> Remote:
    return Remote(file, sha256, f"{_MNIST}/{file}", "MNIST (LeCun et al., 1998)")


_CIFAR = Remote(
    "cifar-10-binary.tar.gz",
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "CIFAR-10 (Krizhevsky, 2009)",
)

#: The data sets that `images` knows by name, as their sources distribute them.
REMOTE: dict[str, tuple[Remote, ...]] = {
    "mnist-train": (
        _mnist("train-images-idx3-ubyte.gz", "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
        _mnist("train-labels-idx1-ubyte.gz", "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
    ),
    "mnist-test": (
        _mnist("t10k-images-idx3-ubyte.gz", "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
        _mnist("t10k-labels-idx1-ubyte.gz", "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
    ),
    "cifar10-train": (_CIFAR,),
    "cifar10-test": (_CIFAR,),
}

_CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Images(Dataset[tuple[Tensor, int]]):
    """Images with labels, a `torch.utils.data.Dataset` of pairs (image, label).

    Images have shape (channels, height, width) and numbers in [0, 1]. Augmentation is of minibatches: where all rows
    are read in order, to standardise or to predict, they are as they are.

    Args:
        content: Encoded images (bytes), or an array of shape (rows, channels, height, width) of bytes.
        labels: Numbers of classes, shape (rows,).
        classes: Names of the classes.
        augment: What is done at random to images that are learned from: `"crop"`, `"flip"`.
        padding: Black pixels at each edge that a crop may reach into.
        name: What to call it in errors.

    Example:
        >>> import numpy as np
        >>> from pyro_sps.data.images import Images
        >>> data = Images(np.zeros((5, 3, 8, 8), dtype=np.uint8), np.arange(5), ("a", "b", "c", "d", "e"), ["flip"])
        >>> data[0][0].shape, data[4][1]
        (torch.Size([3, 8, 8]), 4)
    """

    def __init__(
        self,
        content: Sequence[bytes] | np.ndarray,
        labels: np.ndarray,
        classes: Sequence[str],
        augment: Sequence[str] = (),
        padding: int = 4,
        name: str = "the images",
    ) -> None:
        self.content, self.labels = content, np.asarray(labels, dtype=np.int64)
        self.classes, self.augment, self.padding, self.name = tuple(classes), tuple(augment), padding, name

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        image = self._decoded(row)
        return _to_tensor(self._changed(image) if self.augment else image), int(self.labels[row])

    def batch(self, rows: Sequence[int], number: int) -> tuple[Tensor, Tensor]:
        """Several rows, augmented if they are those of a minibatch.

        Args:
            rows: Their numbers.
            number: Number of the minibatch; -1 where all rows are read in order.

        Returns:
            Images, shape (rows, channels, height, width), and labels.
        """
        images = [self._decoded(row) for row in rows]
        if self.augment and number >= 0:
            images = [self._changed(image) for image in images]
        if len(shapes := {image.shape for image in images}) > 1:
            raise DataError(f"{self.name} are of different sizes, {sorted(shapes)}, which one network cannot read")
        return _to_tensor(np.stack(images)), torch.from_numpy(self.labels[list(rows)])

    def _decoded(self, row: int) -> np.ndarray:
        if isinstance(self.content, np.ndarray):
            array: np.ndarray = self.content[row]
            return array
        from PIL import Image

        try:
            encoded: Any = self.content[row]
            picture = Image.open(io.BytesIO(encoded.as_py() if hasattr(encoded, "as_py") else encoded))
            array = np.asarray(picture.convert("L" if picture.mode in ("1", "L") else "RGB"))
        except Exception as error:  # of whatever a damaged image makes a decoder do
            raise DataError(f"{self.name}, row {row} is no image that can be decoded: {error}") from error
        return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)

    def _changed(self, image: np.ndarray) -> np.ndarray:
        """One image as it could also have been."""
        if "crop" in self.augment:
            _, height, width = image.shape
            edge = self.padding
            wide = np.pad(image, ((0, 0), (edge, edge), (edge, edge)))
            top, left = torch.randint(2 * edge + 1, (2,)).tolist()
            image = wide[:, top : top + height, left : left + width]
        if "flip" in self.augment and torch.rand(()) < 0.5:
            image = image[:, :, ::-1]
        return image


def images(source: str | Path, augment: Sequence[str] = (), padding: int = 4) -> Images:
    """Images with labels from a Parquet file, or a known data set by its name.

    Give them to `pyro_sps.fit` as they are, or in a `DataLoader` with `num_workers=`, whose processes decode and change
    the images of the next steps while one is at work. What is random in that depends on the step alone, so that a fit
    that goes on sees the same images.

    Args:
        source: A Parquet file with the columns `image` (encoded bytes, of PNG or JPEG for instance) and `label` (a
            number), whose metadata may have `classes`, names separated by commas. Or `mnist-train`, `mnist-test`,
            `cifar10-train`, `cifar10-test`: files as their sources distribute them, in the folder that the environment
            variable `PYRO_SPS_DATA` names, in the cache, or downloaded into it.
        augment: What is done at random to images that are learned from: `"crop"` (moved by up to `padding` pixels),
            `"flip"` (left and right exchanged, every second time).
        padding: Pixels.

    Raises:
        ValueError: If an augmentation is not known.
        DataError: If a file is missing, damaged, or has other columns.

    Example:
        >>> import pyro_sps as sps
        >>> from torch.utils.data import DataLoader
        >>> train = sps.datasets.images("cifar10-train", augment=("crop", "flip"))       # doctest: +SKIP
        >>> loader = DataLoader(train, batch_size=128, num_workers=2)                    # doctest: +SKIP
        >>> fit = sps.fit(bnn, loader)                                                   # doctest: +SKIP
    """
    chosen = (augment,) if isinstance(augment, str) else tuple(augment)
    if unknown := [one for one in chosen if one not in AUGMENTATIONS]:
        raise ValueError(f"augment must be among {', '.join(AUGMENTATIONS)}, got {unknown}")
    if isinstance(padding, bool) or not isinstance(padding, int) or padding < 0:
        raise ValueError(f"padding must be a number of pixels, got {padding!r}")
    if isinstance(source, str) and source in REMOTE and not Path(source).exists():
        content, labels, classes = _known(source)
        return Images(content, labels, classes, chosen, padding, f"the images of {source}")
    return _from_parquet(Path(source), chosen, padding)


def _from_parquet(path: Path, augment: tuple[str, ...], padding: int) -> Images:
    import pyarrow
    import pyarrow.parquet

    if not path.is_file():
        raise DataError(f"there is no file {path}, and no data set of that name; known are {', '.join(REMOTE)}")
    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as a Parquet file: {error}") from error
    if missing := [name for name in ("image", "label") if name not in table.column_names]:
        raise DataError(f"{path} has no column {missing[0]!r}; it has {', '.join(table.column_names)}")
    if not pyarrow.types.is_binary(table.schema.field("image").type) and not pyarrow.types.is_large_binary(
        table.schema.field("image").type
    ):
        raise DataError(f"{path}, column 'image' holds {table.schema.field('image').type}, not encoded bytes")
    labels = table["label"].to_numpy()
    if labels.dtype.kind not in "iu":
        raise DataError(f"{path}, column 'label' holds {table.schema.field('label').type}, not numbers of classes")
    told = (table.schema.metadata or {}).get(b"classes", b"").decode()
    classes = told.split(",") if told else [str(number) for number in range(int(labels.max()) + 1)]
    return Images(table["image"], labels, classes, augment, padding, f"the images of {path}")


def _known(name: str) -> tuple[np.ndarray, np.ndarray, Sequence[str]]:
    """Images, labels and classes of a data set as its source distributes it."""
    files = [find(remote) for remote in REMOTE[name]]
    if name.startswith("mnist"):
        pictures, labels = (_idx(path) for path in files)
        return pictures[:, None], labels, [str(digit) for digit in range(10)]
    wanted = [f"data_batch_{i}.bin" for i in range(1, 6)] if name.endswith("train") else ["test_batch.bin"]
    parts: dict[str, np.ndarray] = {}
    with tarfile.open(files[0]) as archive:
        for member in archive:
            own = Path(member.name).name
            if own in wanted and (opened := archive.extractfile(member)) is not None:
                parts[own] = np.frombuffer(opened.read(), dtype=np.uint8).reshape(-1, 3073)
    if missing := [one for one in wanted if one not in parts]:
        raise DataError(f"{files[0]} holds no {', '.join(missing)}")
    rows = np.concatenate([parts[one] for one in wanted])
    return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0], _CIFAR_CLASSES


def _idx(path: Path) -> np.ndarray:
    """An array of bytes in the IDX format: two zeros, the type, the number of dimensions, their sizes, the content."""
    content = gzip.decompress(path.read_bytes())
    if content[:3] != b"\0\0\x08":
        raise DataError(f"{path} is no IDX file of bytes")
    sizes = np.frombuffer(content, dtype=">u4", count=content[3], offset=4).tolist()
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * content[3]).reshape(sizes)


def _to_tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(image, dtype=np.float32)) / 255
