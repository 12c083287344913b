"""Priors that somebody damaged or forged, each kind by the thousand if need be."""

import json
import struct
from collections.abc import Callable, Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load, save
from tiny.priors import prior

from hf_kfc.priors.content import fingerprint_of
from hf_kfc.priors.files import CARD_NAME, _checksum

Files = dict[str, bytes]
Damage = Callable[[Random], Files]

CONFIG = "config.json"
WORDS: list[Any] = [None, True, -1, 2**70, 1.5, 1e999, "", "..", "\ud800", "x" * 5000, [], {}]


@cache
def saved(seed: int = 0, max_shard_size: int | str = "5GB") -> Mapping[str, bytes]:
    """The files of a sample prior."""
    with TemporaryDirectory() as base:
        prior(seed).save_pretrained(base, max_shard_size=max_shard_size)
        return {
            path.name: path.read_bytes()
            for path in Path(base).iterdir()
            if path.name != CARD_NAME  # nothing of it is read
        }


def seal(files: Files, config: Any) -> Files:
    """Make sums that fit: what a forger does who knows the format."""
    for name, entry in config["files"].items():
        if name in files and isinstance(entry, dict):
            content = files[name]
            entry |= {"bytes": len(content), "sha256": sha256(content).hexdigest()}
    config["checksum"] = _checksum(config)
    return files | {CONFIG: json.dumps(config).encode()}


def sealed_or_not(random: Random, files: Files) -> Files:
    """Let the sums fit in half of the cases."""
    return seal(files, json.loads(files[CONFIG])) if random.random() < 0.5 else files


def shards(files: Mapping[str, bytes]) -> list[str]:
    return sorted(name for name in files if name.endswith(".safetensors"))


def any_base(random: Random) -> Files:
    return dict(saved(0, random.choice(["5GB", 400])))


# --- Accidents -----------------------------------------------------------------------------------


def flipped_bits(random: Random) -> Files:
    files = any_base(random)
    name = random.choice(sorted(files.keys() - {"prior.safetensors.index.json"}))
    content = bytearray(files[name])
    for _ in range(random.randint(1, 4)):
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    return files | {name: bytes(content)}


def cut_or_longer(random: Random) -> Files:
    files = any_base(random)
    name = random.choice([CONFIG, *shards(files)])
    content = files[name]
    end = random.randrange(len(content))
    content = content[:end] if random.random() < 0.7 else content + random.randbytes(end + 1)
    files |= {name: content}
    return files if name == CONFIG else sealed_or_not(random, files)


def missing_or_swapped(random: Random) -> Files:
    files = dict(saved(0, 400))
    one, two = random.sample(shards(files), 2)
    how = random.randrange(4)
    if how == 0:
        del files[one]
    elif how == 1:
        files[one], files[two] = files[two], files[one]
        return sealed_or_not(random, files)
    elif how == 2:
        files[one] = saved(1, 400)[one]
        return sealed_or_not(random, files)
    else:
        files[CONFIG] = saved(1, 400)[CONFIG]
    return files


# --- Forgeries, with sums that fit ---------------------------------------------------------------


def other_json(random: Random) -> Files:
    """Another word somewhere in the description; what only its checksum covers is not sealed."""
    files, sealed = any_base(random), random.random() < 0.5
    config = json.loads(files[CONFIG])
    words = {"provenance", "ignored", "num_curvature_examples"} if sealed else set()
    *parents, last = random.choice([p for p in _paths(config) if p and p[0] not in words])
    owner = config
    for key in parents:
        owner = owner[key]
    if random.random() < 0.2:
        del owner[last]
    else:
        owner[last] = random.choice(WORDS)
    if sealed:
        config["checksum"] = _checksum(config)
    return files | {CONFIG: json.dumps(config).encode()}


def text_that_is_no_json(random: Random) -> Files:
    files = any_base(random)
    text = files[CONFIG].decode()
    deep = "[" * random.choice([900, 990, 5000, 200_000])
    key = random.choice(["format", "files", "blocks", "checksum", "ignored"])
    forged = random.choice(
        [
            text.replace('"num_examples": 70', '"num_examples": NaN'),
            text.replace('"num_examples": 70', '"num_examples": Infinity'),
            text.replace('"num_examples": 70', f'"num_examples": {"9" * 5000}'),
            text.replace('"ignored": [', f'"ignored": {deep}', 1),
            text.replace("{", f'{{"{key}": null, ', 1),
            text.replace('"sha256"', '"bytes": 1, "sha256"', 1),
            deep,
            text.encode("utf-16").decode("latin-1"),
        ]
    )
    assert forged != text
    return files | {CONFIG: forged.encode()}


def wrong_tensors(random: Random) -> Files:
    """A tensor that cannot be, with sums and a fingerprint that fit it."""
    files = dict(saved())
    config = json.loads(files[CONFIG])
    (shard,) = shards(files)
    tensors = load(files[shard])
    name = random.choice(sorted(name for name, value in tensors.items() if value.numel()))
    value = tensors[name]
    changes: list[Callable[[], torch.Tensor]] = [
        lambda: value.unsqueeze(0),
        lambda: torch.cat([value.reshape(-1), torch.zeros(1)]),
        lambda: value.to(random.choice([torch.float64, torch.float16, torch.int64, torch.bool])),
        lambda: torch.full_like(value, random.choice([float("nan"), float("inf")])),
    ]
    if not name.endswith("/U_A"):  # there it stands for the identity
        changes.append(lambda: torch.empty(0))
    if name.startswith("curvature/") and not name.endswith("_U"):  # U Uᵀ is never negative
        changes.append(lambda: -value - 2)
    tensors[name] = random.choice(changes)().contiguous()
    if random.random() < 0.2:
        tensors["stranger"] = tensors.pop(name)
    config["fingerprint"] = fingerprint_of(config, dict(sorted(tensors.items())))
    config["files"][shard]["tensors"] = sorted(tensors)
    return seal(files | {shard: save(tensors)}, config)


def wrong_headers(random: Random) -> Files:
    """A safetensors file whose header lies."""
    files = any_base(random)
    name = random.choice(shards(files))
    content = files[name]
    (length,) = struct.unpack("<Q", content[:8])
    text, data = content[8 : 8 + length], content[8 + length :]
    if random.random() < 0.4:
        huge = random.choice([0, 1, length + 1, len(content), 100_000_001, 2**40, 2**63, 2**64 - 1])
        return seal(
            files | {name: struct.pack("<Q", huge) + text + data}, json.loads(files[CONFIG])
        )
    header = json.loads(text)
    entry = header[random.choice([key for key in header if key != "__metadata__"])]
    big = random.choice([-1, 2**31, 2**62, 2**64, 10**30, "1", None, 1.5])
    how = random.randrange(5)
    if how == 0:
        entry["shape"] = [big, *entry["shape"]]
    elif how == 1:
        entry["data_offsets"] = [big, entry["data_offsets"][1]]
    elif how == 2:
        entry["data_offsets"] = entry["data_offsets"][::-1]
        if entry["data_offsets"][0] == entry["data_offsets"][1]:
            entry["data_offsets"] = [0, big]
    elif how == 3:
        entry["dtype"] = random.choice(["F64", "BOOL", "U8", "PICKLE", 7, "F8_E4M3"])
    else:
        header["../../evil"] = entry
    forged = json.dumps(header).encode()
    if random.random() < 0.2:
        forged = b"[" * random.choice([1000, 100_000])
    return seal(
        files | {name: struct.pack("<Q", len(forged)) + forged + data}, json.loads(files[CONFIG])
    )


def wrong_names(random: Random) -> Files:
    """A file under another name than a prior's, which the description gives."""
    files = any_base(random)
    config = json.loads(files[CONFIG])
    name = random.choice(shards(files))
    other = random.choice(
        [
            "../prior.safetensors",
            "../../../etc/passwd",
            "/etc/passwd",
            "..",
            "",
            ".",
            "sub/prior.safetensors",
            "prior.safetensors/",
            "prior.safetensors\n",
            "prior.safetensors\0",
            "prior-00001-of-1.safetensors",
            "PRIOR.safetensors",
            "prior.bin",
            "pytorch_model.bin",
            "C:\\prior.safetensors",
            "\ud800",
            "prior-\u0660\u0660\u0660\u0660\u0661-of-00002.safetensors",
        ]
    )
    if random.random() < 0.5:
        config["files"][other] = config["files"].pop(name)
    else:
        config["files"][other] = config["files"][name]
    return seal(files, config)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where every value of a JSON document is."""
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    return [path, *(found for key, item in items for found in _paths(item, (*path, key)))]


KINDS: dict[str, tuple[Damage, int]] = {
    damage.__name__: (damage, cases)
    for damage, cases in [
        (flipped_bits, 250),
        (cut_or_longer, 150),
        (missing_or_swapped, 100),
        (other_json, 150),
        (text_that_is_no_json, 60),
        (wrong_tensors, 150),
        (wrong_headers, 150),
        (wrong_names, 90),
    ]
}
"""Ways to damage or forge a prior, and in how many variants."""
