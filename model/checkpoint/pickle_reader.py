"""What tensors a checkpoint's pickle describes, read without executing it.

A pickle is a program. This reads its opcodes with `pickletools` and follows only the few that
torch.save writes for a dictionary of tensors; anything else is refused before torch sees the file.
Source of the forms: torch/serialization.py and torch/_utils.py (torch 2.13).
"""

import io
import pickletools
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from model.checkpoint.files import printable

_STORAGE_DTYPES = {
    "torch FloatStorage": "float32",
    "torch HalfStorage": "float16",
    "torch BFloat16Storage": "bfloat16",
    "torch DoubleStorage": "float64",
    "torch LongStorage": "int64",
    "torch IntStorage": "int32",
    "torch ShortStorage": "int16",
    "torch CharStorage": "int8",
    "torch ByteStorage": "uint8",
    "torch BoolStorage": "bool",
    "torch.storage UntypedStorage": "untyped",
    "torch QInt8Storage": "qint8",
    "torch QUInt8Storage": "quint8",
    "torch QInt32Storage": "qint32",
}
# Forms of torch's that are no danger, but no plain tensor either: refused later, with their key.
_ODD_TENSORS = {
    "torch._utils _rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils _rebuild_sparse_csr_tensor": "a sparse tensor",
    "torch._utils _rebuild_meta_tensor_no_storage": "a meta tensor (a shape without data)",
    "torch._utils _rebuild_qtensor": "a quantised tensor",
    "torch._utils _rebuild_nested_tensor": "a nested tensor",
    "torch._utils _rebuild_device_tensor_from_numpy": "a tensor made from a numpy array",
}
_TENSOR = "torch._utils _rebuild_tensor_v2"
_PARAMETER = "torch._utils _rebuild_parameter"
_ORDERED_DICT = "collections OrderedDict"
# What torch.save writes, and what torch's weights-only reader follows.
_PROTOCOLS = (2, 3)
_LAYOUT = "torch.serialization _get_layout"
# What odd tensors are described with; plain words, never called.
_ODD_WORDS = {f"torch {word}" for word in ("float32", "float16", "bfloat16", "float64", "int64", "per_tensor_affine")}
_HARMLESS = {_TENSOR, _PARAMETER, _ORDERED_DICT, _LAYOUT, "torch Size", *_STORAGE_DTYPES, *_ODD_TENSORS, *_ODD_WORDS}
_PUSH_ARGUMENT = {"BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE", "BINFLOAT"}
_PUSH_CONSTANT = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class UnsafePickle(Exception):
    """The pickle holds what no dictionary of tensors needs. The text says what."""


@dataclass(frozen=True, slots=True)
class PickledGlobal:
    """A name that the pickle mentions, as 'module name'. It is never imported."""

    name: str


@dataclass(frozen=True, slots=True)
class PickledStorage:
    dtype: str
    key: str
    numel: int


@dataclass(frozen=True, slots=True)
class PickledTensor:
    """A tensor as the pickle describes it; offset and strides in elements of its storage."""

    storage: PickledStorage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OddTensor:
    """A tensor of a kind that no checkpoint of ours holds."""

    kind: str


def read_pickle(data: bytes) -> Any:
    """The pickle's value, its tensors as PickledTensor or OddTensor. Raises UnsafePickle; runs nothing."""
    try:
        return _Machine().run(data)
    except UnsafePickle:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise UnsafePickle(f"its pickle is damaged ({type(error).__name__})") from None


class _Machine:
    """Pickle's stack machine, for the opcodes of a dictionary of tensors."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.protocol = 0
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for name, argument in _opcodes(data):
            if name == "STOP":
                # Said last, so that a name that does harm is told first.
                if self.protocol not in _PROTOCOLS:
                    raise UnsafePickle(f"its pickle has protocol {self.protocol}; save it again with torch.save's own")
                return self.stack.pop()
            if name in _PUSH_ARGUMENT:
                self.stack.append(argument)
            elif name in _PUSH_CONSTANT:
                self.stack.append(_PUSH_CONSTANT[name])
            elif name in _TUPLES:
                count = _TUPLES[name]
                self.stack[-count:] = [tuple(self.stack[-count:])]
            else:
                getattr(self, f"_op_{name.lower()}")(argument)
        raise UnsafePickle("its pickle has no end")

    def _op_proto(self, version: int) -> None:
        self.protocol = version

    def _op_frame(self, _: int) -> None:
        pass

    def _op_mark(self, _: None) -> None:
        self.marks.append(len(self.stack))

    def _since_mark(self) -> list[Any]:
        index = self.marks.pop()
        values = self.stack[index:]
        del self.stack[index:]
        return values

    def _op_empty_dict(self, _: None) -> None:
        self.stack.append({})

    def _op_empty_tuple(self, _: None) -> None:
        self.stack.append(())

    def _op_empty_list(self, _: None) -> None:
        self.stack.append([])

    def _op_tuple(self, _: None) -> None:
        self.stack.append(tuple(self._since_mark()))

    def _op_append(self, _: None) -> None:
        value = self.stack.pop()
        _need(isinstance(self.stack[-1], list))
        self.stack[-1].append(value)

    def _op_appends(self, _: None) -> None:
        values = self._since_mark()
        _need(isinstance(self.stack[-1], list))
        self.stack[-1].extend(values)

    def _op_setitem(self, _: None) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set(key, value)

    def _op_setitems(self, _: None) -> None:
        values = self._since_mark()
        for key, value in zip(values[::2], values[1::2], strict=True):
            self._set(key, value)

    def _set(self, key: Any, value: Any) -> None:
        target = self.stack[-1]
        _need(isinstance(target, dict))
        self._enter(target, key, value)

    def _enter(self, target: dict[Any, Any], key: Any, value: Any) -> None:
        # Names and numbers only: to hash a tuple nested a million times ends the interpreter.
        if not isinstance(key, str | int):
            raise UnsafePickle(f"its pickle has a {type(key).__name__} for a key")
        if key in target:
            raise UnsafePickle(f"its pickle sets the key {str(key)[:80]!r} twice")
        target[key] = value

    def _op_binput(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    _op_long_binput = _op_binput

    def _op_memoize(self, _: None) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _op_binget(self, index: int) -> None:
        self.stack.append(self.memo[index])

    _op_long_binget = _op_binget

    def _op_global(self, name: str) -> None:
        if name not in _HARMLESS:
            raise UnsafePickle(
                f"its pickle asks for {printable(name.replace(' ', '.')[:120])}, which loading weights does not need"
            )
        self.stack.append(PickledGlobal(name))

    def _op_stack_global(self, _: None) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        _need(isinstance(name, str) and isinstance(module, str))
        self._op_global(f"{module} {name}")

    def _op_binpersid(self, _: None) -> None:
        kind, storage_type, key, _location, numel = self.stack.pop()
        _need(kind == "storage" and isinstance(key, str) and isinstance(numel, int))
        self.stack.append(PickledStorage(_STORAGE_DTYPES[storage_type.name], key, numel))

    def _op_reduce(self, _: None) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, PickledGlobal):
            raise UnsafePickle("its pickle calls what is no function")
        self.stack.append(self._call(function.name, arguments))

    def _call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        if name == _ORDERED_DICT:
            table: dict[Any, Any] = {}
            for key, value in arguments[0] if arguments else ():
                self._enter(table, key, value)
            return table
        if name == _LAYOUT:
            return None
        if name == _PARAMETER:
            return arguments[0]
        if name in _ODD_TENSORS:
            return OddTensor(_ODD_TENSORS[name])
        if name == "torch Size":
            return tuple(*arguments)
        if name != _TENSOR:
            raise UnsafePickle(f"its pickle calls {printable(name.replace(' ', '.'))}")
        storage, offset, shape, stride = arguments[:4]
        _need(isinstance(storage, PickledStorage) and _natural(offset, *shape, *stride) and len(shape) == len(stride))
        return PickledTensor(storage, offset, tuple(shape), tuple(stride))

    def _op_build(self, _: None) -> None:
        # torch hangs `_metadata` on a state dict this way; the dictionary's content stays as it is.
        state = self.stack.pop()
        if not (isinstance(self.stack[-1], dict) and isinstance(state, dict) and set(state) <= {"_metadata"}):
            raise UnsafePickle("its pickle sets attributes on what is no state dict")


def _need(condition: bool) -> None:
    if not condition:
        raise UnsafePickle("its pickle is damaged")


def _opcodes(data: bytes) -> Iterator[tuple[str, Any]]:
    """Name and argument of each opcode. One that we do not follow is refused before its argument is read."""
    stream = io.BytesIO(data)
    while code := stream.read(1):
        opcode = _BY_CODE.get(code.decode("latin-1"))
        name = opcode.name if opcode is not None else f"0x{code.hex()}"
        if opcode is None or name not in _FOLLOWED:
            raise UnsafePickle(f"its pickle uses the opcode {name} (byte {stream.tell() - 1})")
        if name == "GLOBAL":
            # pickletools would interpret escapes in the two lines; nothing that we follow has any.
            yield name, " ".join(stream.readline().decode("ascii").removesuffix("\n") for _ in range(2))
        else:
            yield name, opcode.arg.reader(stream) if opcode.arg is not None else None
        if name == "STOP":
            return


_BY_CODE = {opcode.code: opcode for opcode in pickletools.opcodes}
_FOLLOWED = {"STOP", *_PUSH_ARGUMENT, *_PUSH_CONSTANT, *_TUPLES}
_FOLLOWED |= {name.removeprefix("_op_").upper() for name in dir(_Machine) if name.startswith("_op_")}


def _natural(*numbers: Any) -> bool:
    return all(isinstance(number, int) and 0 <= number < 2**62 for number in numbers)
