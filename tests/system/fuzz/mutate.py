"""Mutations: of bytes, and of what the bytes mean, so that most inputs get past a parser's first check."""

from __future__ import annotations

import copy
import json
import pickletools
import struct
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from support import hostile

Mutator = Callable[[bytes, Random], bytes]

NUMBERS = [0, 1, -1, 2, 3, 7, 31, 32, 33, 255, 256, 65535, *(1 << n for n in (16, 31, 32, 53, 62, 63, 64, 100))]
NUMBERS += [-n for n in NUMBERS] + [n - 1 for n in NUMBERS] + [10**400]
TEXTS = ["", ".", "..", "../x", "/x", "a\\b", "\0", "\x1b[31m", "\ud800", "F32", "F4", "BF16", "x" * 5000, "null", "é"]
VALUES = [*NUMBERS, *TEXTS, None, True, False, 1.0, -0.5, 1e300, float("inf"), float("nan"), [], {}, [[]], {"": {}}]
TOKENS = [b"&a ", b"*a", b"<<: ", b"!!int ", b"!!binary ", b"!!timestamp ", b"!!set ", b"? ", b"- ", b"{", b"[", b"|\n"]
TOKENS += [
    b"0x" + b"f" * 40,
    b"1:1:1",
    b"2001-01-01",
    b"%YAML 1.1\n",
    b"---\n",
    b"~",
    b".nan",
    b".inf",
    b"'",
    b'"\\x00"',
]


def damage(data: bytes, random: Random) -> bytes:
    """Bytes flipped, cut, doubled, or overwritten by telling ones."""
    out = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        at = random.randrange(len(out) + 1)
        length = random.choice((1, 1, 2, 4, 8, 30, 300))
        match random.randrange(6):
            case 0 if at < len(out):
                out[at] ^= 1 << random.randrange(8)
            case 1:
                del out[at : at + length]
            case 2:
                out[at:at] = out[random.randrange(len(out) + 1) :][:length]
            case 3:
                out[at : at + length] = random.randbytes(min(length, 8))
            case 4:
                width = random.choice((1, 2, 4, 8))
                out[at : at + width] = (random.choice(NUMBERS) % (1 << 8 * width)).to_bytes(width, "little")
            case 5:
                del out[at:]
    return bytes(out)


def values(value: Any, random: Random) -> Any:
    """A JSON value of which one part is another, gone, there twice, or under another name."""
    value = copy.deepcopy(value)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        places = list(_places([value]))[1:] or [([value], 0)]
        holder, key = random.choice(places)
        match random.randrange(5):
            case 0 if isinstance(holder, dict):
                holder[random.choice([*TEXTS, *map(str, holder)])] = holder.pop(key)
            case 1 if len(holder) > 1:
                del holder[key]
            case 2:
                other, place = random.choice(places)
                holder[key] = copy.deepcopy(other[place])
            case 3 if isinstance(holder[key], int):
                holder[key] += random.choice((-1, 1, 8, 1 << 32))
            case _:
                holder[key] = copy.deepcopy(random.choice(VALUES))
    return value


def _places(value: Any) -> Any:
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def of_json(data: bytes, random: Random) -> bytes:
    try:
        text = json.dumps(values(json.loads(data), random), ensure_ascii=random.random() < 0.5)
    except (ValueError, RecursionError):
        return damage(data, random)
    if random.random() < 0.1:
        text = text.replace(random.choice(":,{}[]"), random.choice(["", ",", '"', "[", "{", " " * 9]), 1)
    return text.encode("utf-8", "surrogatepass")


def of_safetensors(data: bytes, random: Random) -> bytes:
    length = int.from_bytes(data[:8], "little")
    if random.random() < 0.3 or not 0 < length <= len(data):
        return damage(data, random)
    return hostile.encode(of_json(data[8 : 8 + length], random), data[8 + length :])


def of_ckpt(data: bytes, random: Random) -> bytes:
    """Other records, or bytes."""
    if random.random() < 0.5:
        return damage(data, random)
    out = []
    for _ in range(random.randrange(1, 5)):
        dims = [random.choice((0, 1, 2, 2, 2, *NUMBERS[:-1])) for _ in range(random.choice((0, 1, 1, 1, 2, 33)))]
        kind = random.choice((b"UInt8", b"UInt8", b"Float32", b"str", b"Int4", b"BFloat16", b"x"))
        content = bytes(random.choice((0, 1, 2, 2, 4, 8)))
        more = random.choice((b"", b"", b"", hostile.blob(1, b"\x02"), hostile.blob(9, b"x"), b"\x08\xff"))
        out.append(hostile.record(random.choice((b"t", b"u", b"")), dims, kind, content, more))
    whole = b"".join(out) + random.choice((b"", b"", b"crc_num" + bytes(10)))
    return damage(whole, random) if random.random() < 0.3 else whole


def of_zip(data: bytes, random: Random) -> bytes:
    """Numbers in headers, or bytes."""
    marks = [at for at in range(len(data)) if data.startswith(b"PK", at)]
    if random.random() < 0.3 or not marks:
        return damage(data, random)
    out = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 3))):
        at, form = random.choice(marks) + random.randrange(4, 60), random.choice(["<H", "<I", "<Q"])
        width = struct.calcsize(form)
        if at + width <= len(out):
            near = int.from_bytes(out[at : at + width], "little") + random.choice((-1, 1, 8))
            struct.pack_into(form, out, at, random.choice((near, *NUMBERS)) % (1 << 8 * width))
    return bytes(out)


def of_pickle(data: bytes, random: Random) -> bytes:
    """Opcodes moved, doubled, dropped."""
    try:
        starts = [at for _, _, at in pickletools.genops(data) if at is not None]
    except Exception:  # whatever an opcode's argument makes of damage
        return damage(data, random)
    ops = [data[begin:end] for begin, end in zip(starts, [*starts[1:], len(data)], strict=True)]
    for _ in range(random.choice((1, 1, 2, 4))):
        at, other = random.randrange(len(ops)), random.randrange(len(ops))
        match random.randrange(5):
            case 0:
                del ops[at : at + random.choice((1, 1, 3))]
            case 1:
                ops[at:at] = ops[other : other + random.choice((1, 2, 9))]
            case 2:
                ops[at], ops[other] = ops[other], ops[at]
            case 3:
                ops[at] = damage(ops[at], random)
            case 4:
                number = random.choice(NUMBERS[:-1])
                ops[at] = b"\x8a" + bytes((16,)) + number.to_bytes(16, "little", signed=True)
        if not ops:
            break
    return b"".join(ops)


def of_yaml(data: bytes, random: Random) -> bytes:
    """Lines and words of YAML, or bytes."""
    if random.random() < 0.2:
        return damage(data, random)
    lines = data.split(b"\n")
    for _ in range(random.choice((1, 1, 2, 3))):
        at = random.randrange(len(lines))
        place = random.randrange(len(lines[at]) + 1)
        match random.randrange(4):
            case 0:
                lines.insert(at, random.choice(lines))
            case 1:
                head, colon, _ = lines[at].partition(b":")
                value = json.dumps(random.choice(VALUES)).encode()
                lines[at] = head + colon + b" " + random.choice((value, *TOKENS))
            case _:
                lines[at] = lines[at][:place] + random.choice(TOKENS) + lines[at][place:]
    return b"\n".join(lines)


def mutated(seeds: Sequence[bytes], mutator: Mutator, random: Random) -> bytes:
    """A seed, changed a few times, now and then with another one's end."""
    data = random.choice(seeds)
    for _ in range(random.choice((1, 1, 2, 3))):
        data = mutator(data, random)
    if random.random() < 0.05:
        other = random.choice(seeds)
        data = data[: random.randrange(len(data) + 1)] + other[random.randrange(len(other) + 1) :]
    return data[: 1 << 16]
