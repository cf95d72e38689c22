"""Ways to damage a file, from a seeded generator: the same seed gives the same file."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

Mutator = Callable[[Random, bytes], bytes]

INTEGERS = (
    0,
    1,
    -1,
    127,
    255,
    65535,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**53,
    2**63 - 1,
    2**64 - 1,
    -(2**63),
    10**30,
)
NAMES = (
    "",
    ".",
    "..",
    "../../outside",
    "/etc/passwd",
    "C:\\windows",
    "a\x00b",
    "line\nbreak",
    "[bold red]markup[/]",
    "[/]",
    "\u202eright to left",
    "\ud800",
    "e\u0301" * 3,
    "%s%n{0}",
    "(a+)+$",
    "__class__",
    "x" * 5000,
)
VALUES: tuple[Any, ...] = (None, True, False, [], {}, 0.5, -1.5, 1e308, float("nan"), float("inf"), *INTEGERS, *NAMES)


def damaged(rng: Random, content: bytes) -> bytes:
    """A few bytes, spans or numbers of a file changed, whatever is in it."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        at = rng.randrange(len(data) + 1)
        span = rng.choice((1, 2, 4, 8, 16, 64, rng.randrange(len(data) + 1)))
        match rng.randrange(8):
            case 0 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(data):
                data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 2:
                del data[at:]
            case 3:
                del data[at : at + span]
            case 4:
                data[at:at] = data[at : at + min(span, 4096)]
            case 5:
                data[at:at] = rng.randbytes(min(span, 64))
            case 6:
                number = rng.choice(INTEGERS) % 2**64
                width = rng.choice((4, 8))
                data[at : at + width] = struct.pack("<Q", number)[:width]
            case _:
                other = rng.randrange(len(data) + 1)
                data[at : at + span] = data[other : other + span]
    return bytes(data)


def of_json(rng: Random, content: bytes) -> bytes:
    """A JSON file with values of wrong types, sizes and names in it; now and then not JSON any more."""
    value = json.loads(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        value = _changed(rng, value)
    text = json.dumps(value).encode("utf-8", "surrogatepass")
    match rng.randrange(12):
        case 0:
            return damaged(rng, text)
        case 1:
            # The same key twice, with another value.
            return text.replace(b"{", b'{"' + rng.choice(list(_keys(value)) or [""]).encode() + b'": null, ', 1)
        case 2:
            depth = rng.choice((100, 1000, 100_000))
            return text.replace(b"null", b"[" * depth + b"]" * depth) if b"null" in text else b"[" * depth
        case 3:
            return text.replace(b"1", b"9" * rng.choice((20, 400, 5000)), 1)
        case _:
            return text


def _keys(value: Any) -> list[str]:
    return [key for key in value if key.isascii() and key.isidentifier()] if isinstance(value, dict) else []


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a JSON value."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        holder = waiting.pop()
        pairs = holder.items() if isinstance(holder, dict) else enumerate(holder) if isinstance(holder, list) else ()
        for key, inner in pairs:
            found.append((holder, key))
            waiting.append(inner)
    return found


def _changed(rng: Random, value: Any) -> Any:
    places = _places(value)
    if not places or rng.random() < 0.01:
        return rng.choice(VALUES)
    holder, key = rng.choice(places)
    match rng.randrange(8):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[rng.choice(NAMES)] = holder.pop(key)
        case 2:
            other, at = rng.choice(places)
            if at in other if isinstance(other, dict) else at < len(other):
                holder[key] = json.loads(json.dumps(other[at]))
        case 3 if isinstance(holder, list):
            holder += [holder[key]] * rng.choice((1, 3, 100))
        case 4:
            holder[key] = [holder[key]]
        case 5 if isinstance(holder[key], int):
            holder[key] = rng.choice((holder[key] + 1, holder[key] - 1, -holder[key], holder[key] * 1000, *INTEGERS))
        case _:
            holder[key] = rng.choice(VALUES)
    return value


def of_safetensors(rng: Random, content: bytes) -> bytes:
    """A safetensors file whose header says something else; its length is right, but now and then."""
    if rng.random() < 0.3:
        return damaged(rng, content)
    (length,) = struct.unpack("<Q", content[:8])
    header = of_json(rng, content[8 : 8 + length])
    claimed = rng.choice(INTEGERS) % 2**64 if rng.random() < 0.05 else len(header)
    return struct.pack("<Q", claimed) + header + content[8 + length :]


def of_zip(rng: Random, content: bytes) -> bytes:
    """An archive with a member damaged, renamed, compressed, blown up, doubled or gone."""
    if rng.random() < 0.3:
        return damaged(rng, content)
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old:
        members = [(name, old.read(name)) for name in old.namelist()]
    at = rng.randrange(len(members))
    name, data = members[at]
    method = zipfile.ZIP_DEFLATED if rng.random() < 0.1 else zipfile.ZIP_STORED
    match rng.randrange(10):
        case 0:
            del members[at]
        case 1:
            members[at] = (rng.choice(NAMES).replace("\x00", "").replace("\ud800", "") or "x", data)
        case 2:
            members.append((name, damaged(rng, data)))
        case 3:
            # A copy of it is a megabyte, so it weighs something only when nobody looks at what it claims.
            members[at], method = (name, data * (1 + (1 << 20) // max(len(data), 1))), zipfile.ZIP_DEFLATED
        case _:
            isjson = name.endswith(".json") and data.strip()
            members[at] = (name, of_json(rng, data) if isjson else damaged(rng, data))
    with zipfile.ZipFile(made, "w", method) as new:
        for name, data in members:
            new.writestr(zipfile.ZipInfo(name), data, method)
    return made.getvalue()


def of_text(rng: Random, content: bytes) -> bytes:
    """Lines that are damaged, swapped with names of every kind, doubled or of another encoding."""
    if rng.random() < 0.5:
        return damaged(rng, content)
    lines = content.split(b"\n")
    at = rng.randrange(len(lines))
    match rng.randrange(5):
        case 0:
            lines[at] = rng.choice(NAMES).encode("utf-8", "surrogatepass")
        case 1:
            lines[at] = of_json(rng, lines[at]) if lines[at].startswith(b"{") else lines[at].upper() * 3
        case 2:
            lines[at] = lines[at] * rng.choice((2, 100))
        case 3:
            lines[at] = lines[at].replace(b"e", rng.choice((b'"', b"\t", b"\r", b",", b"\x85", b"\\u0000")))
        case _:
            return b"\n".join(lines).decode("utf-8", "replace").encode(rng.choice(("utf-16", "utf-7", "utf-8-sig")))
    return b"\n".join(lines)


def of_onnx(rng: Random, content: bytes) -> bytes:
    """A graph with sizes, types, names, places and operators changed where protobuf keeps them."""
    import onnx

    if rng.random() < 0.3:
        return damaged(rng, content)
    proto = onnx.ModelProto.FromString(content)
    for _ in range(rng.choice((1, 1, 2, 3))):
        message, field = rng.choice(_fields(proto))
        try:
            _set(rng, message, field)
        except (TypeError, ValueError):
            # A number or a text that the field cannot hold.
            continue
    return proto.SerializeToString()


def _fields(proto: Any) -> list[tuple[Any, Any]]:
    """Every (message, field) that is set in a protobuf message."""
    from google.protobuf.message import Message

    found: list[tuple[Any, Any]] = []
    waiting = [proto]
    while waiting:
        message = waiting.pop()
        for field, value in message.ListFields():
            found.append((message, field))
            if field.message_type is not None:
                waiting += [value] if isinstance(value, Message) else list(value)
    return found


def _set(rng: Random, message: Any, field: Any) -> None:
    number, name = rng.choice(INTEGERS[:-1]), rng.choice(NAMES)
    if rng.random() < 0.1:
        message.ClearField(field.name)
    elif hasattr(values := getattr(message, field.name), "append"):
        if field.message_type is not None:
            values.append(values[rng.randrange(len(values))]) if rng.random() < 0.5 else values.pop()
        elif field.cpp_type == field.CPPTYPE_STRING:
            values[rng.randrange(len(values))] = name
        else:
            values[rng.randrange(len(values))] = number
    elif field.message_type is None:
        text = name.encode("utf-8", "replace") if field.type == field.TYPE_BYTES else rng.choice((name, str(number)))
        setattr(message, field.name, text if field.cpp_type == field.CPPTYPE_STRING else number)
