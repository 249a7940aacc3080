"""Reads pickles that hold nothing but numbers, text, lists, tuples and dicts; refuses every other one unread.

A pickle is a program. Three things could hurt, and each is ruled out before the C unpickler sees a byte:

* Code. Only opcodes that build plain data pass; none of them can name a global, call, or ask for a persistent id.
* Memory. A 9-byte pickle can ask for a memo of 2^32 slots. Here a memo index may not exceed the number of values
  stored so far, lengths are checked against the file, and what the containers may take is counted first. While
  the C unpickler runs, the address space of the process is bounded as well, where the system can do that.
* The C stack. Hashing nested tuples recurses; a bound on their nesting is counted beside the rest. Above it (no
  recorder comes near) an unpickler in Python takes over, which accepts only text as dict keys.

The scan is a possessive regular expression over the opcode stream: about 100 MB/s, against 2 MB/s of a loop over
`pickletools.genops`. Opcodes as in CPython's Lib/pickletools.py, protocols 2 to 5.

`salvage` reads what a damaged pickle still holds.
"""

from __future__ import annotations

import gc
import pickle
import re
import resource
import struct
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from tracetool.errors import TracetoolError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_CONTAINER_BYTES: Final = 96
"""What CPython takes for an empty dict or list and the reference to it, with room for its first growth."""
_VALUE_BYTES: Final = 12
"""Bytes of memory a byte of other opcodes may turn into (a small float: 9 bytes of pickle, 32 of memory)."""
_TUPLE_NESTING: Final = 10_000
"""Nesting that CPython can hash on a stack of 8 MiB, a tenth of what was measured to work."""
_HEADROOM_BYTES: Final = 256 << 20
"""Address space the process may still take beside the pickle while it is read."""

# One alternative an opcode that needs no check; a tuple of two fetched values that is not stored again cannot nest.
_PLAIN: Final = re.compile(
    rb"(?:(?:h.){1,40}+(?!\x86)"  # BINGET, by far the most frequent: many at a time, bounded against long detours
    rb"|[N\x88\x89(\]})eusa]++"  # None, booleans, MARK, empty containers, APPEND(S), SETITEM(S)
    rb"|(?:h.|j.{4}){2}\x86(?![q\x94r])"  # BINGET, LONG_BINGET twice, TUPLE2
    rb"|h.|j.{4}"
    rb"|K.|M.{2}|J.{4}|G.{8}"  # BININT1, BININT2, BININT, BINFLOAT
    rb"|\x8a(?:\x00|\x01.|\x02.{2}|\x03.{3}|\x04.{4}|\x05.{5}|\x06.{6}|\x07.{7}|\x08.{8}|\x09.{9})"  # LONG1
    rb")*+",
    re.DOTALL,
)


class UnsafePickle(TracetoolError):
    """A pickle that asks for more than plain data; `byte` is where."""

    def __init__(self, reason: str, byte: int) -> None:
        super().__init__(f"byte {byte}: {reason}")
        self.reason = reason
        self.byte = byte

    def __reduce__(self) -> tuple[type[UnsafePickle], tuple[str, int]]:
        return (UnsafePickle, (self.reason, self.byte))


class BrokenPickle(TracetoolError):
    """A pickle of plain data that ends too early or does not fit together; `byte` is where."""

    def __init__(self, reason: str, byte: int) -> None:
        super().__init__(f"byte {byte}: {reason}")
        self.reason = reason
        self.byte = byte

    def __reduce__(self) -> tuple[type[BrokenPickle], tuple[str, int]]:
        return (BrokenPickle, (self.reason, self.byte))


@dataclass(frozen=True)
class Scan:
    """What a pickle asks for, found without building anything."""

    end: int
    """Byte after STOP."""
    nesting: int
    """Upper bound of how deep its tuples nest."""
    memory_bytes: int
    """Upper bound of what its values take."""


def loads(data: bytes, memory_bytes: int = 1 << 30) -> object:
    """Return the plain data that a pickle holds.

    Raises UnsafePickle when it asks for anything else or for more than `memory_bytes`, BrokenPickle when it is
    damaged (try `salvage`).
    """
    found = scan(data)
    if found.memory_bytes > memory_bytes:
        reason = f"would take up to {found.memory_bytes >> 20} MiB; {memory_bytes >> 20} MiB are allowed"
        raise UnsafePickle(reason, 0)
    if found.nesting > _TUPLE_NESTING:
        return _interpret(data, salvage=False)[0]
    collecting = gc.isenabled()
    gc.disable()  # millions of young containers would be walked over and over
    try:
        with _bounded_memory(memory_bytes):
            return pickle.loads(data)  # noqa: S301 - scan() let only opcodes of plain data through
    except MemoryError:
        raise UnsafePickle(f"needs more than the {memory_bytes >> 20} MiB allowed", 0) from None
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        TypeError,
        IndexError,
        AttributeError,
        KeyError,
        OverflowError,
    ) as error:
        raise BrokenPickle(f"does not fit together ({error})", found.end) from None
    finally:
        if collecting:
            gc.enable()


def scan(data: bytes) -> Scan:
    """Check every opcode of a pickle. Raises UnsafePickle at the first that is not plain data, BrokenPickle at its end.

    What stands after STOP is not looked at, as no unpickler does.
    """
    position = stored = unproven = 0
    size = len(data)
    plain = _PLAIN.match
    while True:
        match = plain(data, position)
        position = match.end() if match else position
        if position >= size:
            raise BrokenPickle("ends in the middle", size)
        code = data[position]
        step = _STEPS.get(code)
        if step is None:
            raise _refusal(data, position)
        after = step(data, position + 1)
        if after > size:
            raise BrokenPickle("ends in the middle", size)
        if code in _TUPLES:
            unproven += 1
        elif code in _PUTS:
            index = stored if code == _MEMOIZE else int.from_bytes(data[position + 1 : after], "little")
            if index > stored:
                raise UnsafePickle(f"asks for a memo of {index + 1} values after storing {stored}", position)
            stored += 1
        elif code == _STOP:
            break
        position = after
    return Scan(position + 1, unproven, _memory(data) + unproven * _CONTAINER_BYTES)


def _memory(data: bytes) -> int:
    """Bound what the values take, bytes; the bytes of container opcodes inside text are counted too."""
    return len(data) * _VALUE_BYTES + (data.count(b"}") + data.count(b"]")) * _CONTAINER_BYTES


def salvage(data: bytes, memory_bytes: int = 1 << 30) -> tuple[object, int]:
    """Return what a damaged pickle holds up to its damage, open containers closed, and the byte of the damage.

    The last item of each container that was being written is left out. Raises UnsafePickle as `loads` does and
    BrokenPickle when not even the outermost container had been opened.
    """
    needed = _memory(data)
    if needed > memory_bytes:
        raise UnsafePickle(f"would take up to {needed >> 20} MiB; {memory_bytes >> 20} MiB are allowed", 0)
    return _interpret(data, salvage=True)


# ---- the table of opcodes: how far each one reaches ----


def _fixed(length: int) -> Callable[[bytes, int], int]:
    return lambda _data, start: start + length


def _counted(width: int) -> Callable[[bytes, int], int]:
    return lambda data, start: start + width + int.from_bytes(data[start : start + width], "little")


_STOP: Final = ord(".")
_MEMOIZE: Final = 0x94
_PUTS: Final = frozenset({ord("q"), ord("r"), _MEMOIZE})
_TUPLES: Final = frozenset({0x85, 0x86, 0x87, ord("t")})
_STEPS: Final[dict[int, Callable[[bytes, int], int]]] = {
    0x80: _fixed(1),  # PROTO
    0x95: _fixed(8),  # FRAME: its length is a hint and binds nothing
    _STOP: _fixed(0),
    ord("X"): _counted(4),  # BINUNICODE
    0x8C: _counted(1),  # SHORT_BINUNICODE
    0x8D: _counted(8),  # BINUNICODE8
    0x8A: _counted(1),  # LONG1
    ord("q"): _fixed(1),  # BINPUT
    ord("r"): _fixed(4),  # LONG_BINPUT
    _MEMOIZE: _fixed(0),
    **dict.fromkeys(_TUPLES, _fixed(0)),
    # the plain ones, for the end of a damaged file and for the unpickler in Python
    **dict.fromkeys(b"N\x88\x89(]})eusa", _fixed(0)),
    ord("h"): _fixed(1),  # BINGET
    ord("j"): _fixed(4),  # LONG_BINGET
    ord("K"): _fixed(1),  # BININT1
    ord("M"): _fixed(2),  # BININT2
    ord("J"): _fixed(4),  # BININT
    ord("G"): _fixed(8),  # BINFLOAT
}
_FORBIDDEN: Final = {
    ord("c"): "GLOBAL", 0x93: "STACK_GLOBAL", ord("i"): "INST", ord("o"): "OBJ", ord("R"): "REDUCE",
    ord("b"): "BUILD", 0x81: "NEWOBJ", 0x92: "NEWOBJ_EX", ord("P"): "PERSID", ord("Q"): "BINPERSID",
    0x82: "EXT1", 0x83: "EXT2", 0x84: "EXT4", 0x8B: "LONG4",
}  # fmt: skip


def _refusal(data: bytes, position: int) -> UnsafePickle:
    code = data[position]
    name = _FORBIDDEN.get(code, f"0x{code:02x}")
    return UnsafePickle(f"opcode {name} does not belong to plain data; nothing of the file was run", position)


@contextmanager
def _bounded_memory(extra_bytes: int) -> Iterator[None]:
    """Bound the address space of this process to what it has plus `extra_bytes` and some headroom."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError):  # no such file outside Linux: the scan's own bounds stand alone there
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = pages * resource.getpagesize() + extra_bytes + _HEADROOM_BYTES
    ceilings = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([wanted, *ceilings]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


# ---- an unpickler in Python, for damaged files ----

_MARK: Final = object()


def _interpret(data: bytes, *, salvage: bool) -> tuple[object, int]:
    """Run the opcodes one by one; on damage return what is there if `salvage`, else raise BrokenPickle."""
    machine = _Machine()
    position = 0
    while True:
        if position >= len(data):
            reason = "ends in the middle"
            break
        code = data[position]
        step = _STEPS.get(code)
        if step is None:
            if _FORBIDDEN.get(code) or not salvage:
                raise _refusal(data, position)
            reason = f"byte 0x{code:02x} is no opcode of plain data"
            break
        after = step(data, position + 1)
        if after > len(data):
            reason = "ends in the middle"
            break
        if code == _STOP:
            if machine.stack:
                return machine.stack[-1], position + 1
            reason = "stops before anything was built"
            break
        try:
            machine.run(code, data[position + 1 : after])
        except (IndexError, KeyError, TypeError, ValueError, struct.error) as error:
            reason = f"does not fit together ({error})"
            break
        position = after
    if not salvage:
        raise BrokenPickle(reason, position)
    rescued = machine.close()
    if rescued is None:
        raise BrokenPickle(reason, position)
    return rescued, position


class _Machine:
    """Stack and memo of the unpickler in Python."""

    def __init__(self) -> None:
        self.stack: list[object] = []
        self.memo: list[object] = []

    def run(self, code: int, argument: bytes) -> None:
        """Carry out one opcode; raises one of the errors its caller names when the stack does not fit."""
        stack = self.stack
        if code in _CONSTANTS:
            stack.append(_CONSTANTS[code])
        elif code in _MAKERS:
            stack.append(_MAKERS[code]())
        elif code in _DECODERS:
            stack.append(_DECODERS[code](argument))
        elif code in _PUTS:
            self._store(len(self.memo) if code == _MEMOIZE else int.from_bytes(argument, "little"))
        elif code in b"hj":
            stack.append(self.memo[int.from_bytes(argument, "little")])
        elif code in _TUPLES:
            count = len(self._above_mark()) if code == ord("t") else code - 0x84
            items = stack[len(stack) - count :] if count else []
            if len(items) < count or any(isinstance(item, tuple) or item is _MARK for item in items):
                raise ValueError("a tuple of tuples")
            del stack[len(stack) - count :]
            if code == ord("t"):
                stack.pop()
            stack.append(tuple(items))
        elif code in b"eu":
            items = self._above_mark()
            del stack[len(stack) - len(items) - 1 :]
            _put(stack[-1], items)
        elif code in b"as":
            count = 1 if code == ord("a") else 2
            items = stack[-count:]
            del stack[-count:]
            _put(stack[-1], items)

    def _store(self, index: int) -> None:
        if index > len(self.memo):
            raise ValueError(f"a memo of {index + 1} values after storing {len(self.memo)}")
        value = self.stack[-1]
        if index == len(self.memo):
            self.memo.append(value)
        else:
            self.memo[index] = value

    def _above_mark(self) -> list[object]:
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place] is _MARK:
                return self.stack[place + 1 :]
        raise ValueError("no mark on the stack")

    def close(self) -> object:
        """Close every open container, innermost first, and return the outermost; None when there is none."""
        stack = self.stack
        while True:
            try:
                items = self._above_mark()
            except ValueError:  # no mark is left: everything is closed
                break
            del stack[len(stack) - len(items) - 1 :]
            if not stack:
                return None
            target = stack[-1]
            # what was being written last may itself be cut short: only its closed predecessors count
            whole = items[:-1] if isinstance(target, list) else items[: len(items) // 2 * 2]
            try:
                _put(target, whole)
            except (TypeError, ValueError):
                return None
        return stack[0] if stack and isinstance(stack[0], dict | list) else None


def _put(target: object, items: list[object]) -> None:
    if any(item is _MARK for item in items):
        raise ValueError("a mark inside a container")
    if isinstance(target, list):
        target.extend(items)
    elif isinstance(target, dict):
        keys = items[::2]
        if len(items) % 2 or not all(isinstance(key, str) for key in keys):
            raise ValueError("dict keys that are not text")
        target.update(zip(cast("list[str]", keys), items[1::2], strict=True))
    else:
        raise TypeError("items for something that is no container")


def _text(argument: bytes, width: int) -> str:
    return argument[width:].decode("utf-8", "surrogatepass")


_CONSTANTS: Final[dict[int, object]] = {ord("N"): None, 0x88: True, 0x89: False, ord("("): _MARK, ord(")"): ()}
_MAKERS: Final[dict[int, Callable[[], object]]] = {ord("]"): list, ord("}"): dict}
_DECODERS: Final[dict[int, Callable[[bytes], object]]] = {
    ord("K"): lambda argument: argument[0],
    ord("M"): lambda argument: int.from_bytes(argument, "little"),
    ord("J"): lambda argument: int.from_bytes(argument, "little", signed=True),
    ord("G"): lambda argument: struct.unpack(">d", argument)[0],
    0x8A: lambda argument: int.from_bytes(argument[1:], "little", signed=True),
    ord("X"): lambda argument: _text(argument, 4),
    0x8C: lambda argument: _text(argument, 1),
    0x8D: lambda argument: _text(argument, 8),
}
