"""Saved fits as files: taken apart, made up, and in the form of version 0.1."""

import hashlib
import json
import struct

from safetensors.torch import load as read_safetensors
from safetensors.torch import save as write_safetensors

FILE = "fit.safetensors"


def take_apart(path):
    """Header and tensors of a sealed file."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    return json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["header"]), read_safetensors(content)


def reseal(content):
    """The content of a sealed file with the right checksum of what it is now."""
    size = int.from_bytes(content[:8], "little")
    start = content.find(b'"sha256":"', 8, 8 + size)
    if start < 0:
        return content
    start += len(b'"sha256":"')
    blank = content[:start] + b"0" * 64 + content[start + 64 :]
    return content[:start] + hashlib.sha256(blank).hexdigest().encode() + content[start + 64 :]


def make_up(path, header, tensors):
    """Write a sealed file with a right checksum, as whoever makes up a file would."""
    text = header if isinstance(header, str) else json.dumps(header)
    path.write_bytes(reseal(write_safetensors(tensors, {"header": text, "sha256": "0" * 64})))


def raw(header, data=b"", length=None):
    """A safetensors file of any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def as_old(folder, model=None):
    """Turn the folder of a single fit into what version 0.1 wrote, of the command line with `model`."""
    header, tensors = take_apart(folder / FILE)
    header |= {"format": 2, **header.pop("fits")[0]}
    extra = header.pop("extra")
    for name in ("network", "features", "targets", "replicas"):
        del header[name]
    del tensors["network.outputs"]
    content = write_safetensors({name.removeprefix("0."): value for name, value in tensors.items()})
    (folder / FILE).write_bytes(content)
    header["sha256"] = hashlib.sha256(content).hexdigest()
    text = json.dumps(header, indent=1, sort_keys=True)
    document = {"checksum": hashlib.sha256(text.encode()).hexdigest(), "header": header}
    (folder / "fit.json").write_text(json.dumps(document, indent=1, sort_keys=True))
    if extra:
        own = hashlib.sha256((folder / "fit.json").read_bytes()).hexdigest()
        write_old_model(folder, {**extra, "fit": own})


def write_old_model(folder, model):
    """Write `model.json` with its checksum."""
    text = json.dumps(model, indent=1, ensure_ascii=False)
    document = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "model": model}
    (folder / "model.json").write_text(json.dumps(document, indent=1, ensure_ascii=False))
