"""Reads a pickle that holds plain values and numpy arrays of them, and cannot do anything else.

A pickle is a program. Here it gets the operations that build numbers, text, lists and dictionaries, and a handful of
stand-ins for what numpy puts into its own pickles; nothing that it names is imported, and no stand-in has an effect.
Every other operation or name is refused. The pure Python reader of the standard library is used because its table of
operations can be cut down, and because its memory grows with the file and not with numbers in the file.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from passerby_model.datasets.files import broken, read_bytes

_DTYPE = re.compile(r"[<>|=]?(?P<spec>b1|[iu][1248]|f[248]|[SU]\d{1,4})", re.ASCII)


class _Tuple(tuple[Any, ...]):
    """No key of a dictionary: hashing tuples nested in each other can take for ever."""

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]


class _Dtype:
    """Stands for numpy.dtype: booleans, numbers, text and bytes; no objects."""

    __slots__ = ("spec",)

    def __init__(self, spec: object, *_: object) -> None:
        match = _DTYPE.fullmatch(spec) if isinstance(spec, str) else None
        if match is None:
            raise pickle.UnpicklingError(f"an array of {spec!r}, where text or numbers belong")
        self.spec = match["spec"]

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        if order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"byte order {order!r}")
        self.spec = order + self.spec.lstrip("<>|=")


class _Array:
    """Stands for numpy.ndarray, of one axis."""

    __slots__ = ("values",)

    def __init__(self, *_: object) -> None:
        self.values: list[Any] = []

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, _, data = state
        self.values = _values(data, dtype, shape)


class _Call:
    """A name that the pickle may call. It has no attributes for the pickle to set."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., object]) -> None:
        self._call = call

    def __call__(self, *arguments: object) -> object:
        return self._call(*arguments)


def load(path: Path) -> Any:
    """What the pickle holds: None, booleans, numbers, text, bytes, and lists and dictionaries of them.

    Arrays that are values of the outermost dictionary are lists; any deeper in are objects that tell nothing. Text of
    Python 2 is read as Latin-1.

    Raises:
        NotFoundError: the file cannot be read.
        InvalidArgumentError: no pickle, or one that wants more than plain values.
    """
    data = read_bytes(path)
    try:
        value = _Reader(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:
        reason = f"operation {error} is not for plain values" if isinstance(error, KeyError) else str(error)
        raise broken(path, f"refused as a pickle of plain values: {reason or type(error).__name__}") from error
    if isinstance(value, dict):
        return {key: one.values if isinstance(one, _Array) else one for key, one in value.items()}
    return value


def _values(data: Any, dtype: Any, shape: Any) -> list[Any]:
    if not isinstance(dtype, _Dtype) or len(shape) != 1:
        raise pickle.UnpicklingError(f"an array of shape {shape!r}, where a list belongs")
    raw = data.encode("latin1") if isinstance(data, str) else data
    return list(np.frombuffer(raw, np.dtype(dtype.spec), count=int(shape[0])).tolist())


def _scalar(dtype: Any, data: Any) -> object:
    return _values(data, dtype, (1,))[0]


def _from_buffer(data: Any, dtype: Any, shape: Any, *_: object) -> _Array:
    array = _Array()
    array.values = _values(data, dtype, shape)
    return array


def _encode(text: Any, encoding: Any) -> bytes:
    """How protocol 2 writes bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in encoding {encoding!r}")
    return bytes(str(text).encode("latin1"))


_NAMES: Mapping[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): dict,
} | {
    (f"numpy.{core}.{module}", name): stand_in
    for core in ("core", "_core")
    for module, name, stand_in in (
        ("multiarray", "_reconstruct", _Array),
        ("multiarray", "scalar", _scalar),
        ("numeric", "_frombuffer", _from_buffer),
    )
}
_OPERATIONS = (
    *(pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.POP, pickle.POP_MARK),
    *(pickle.GET, pickle.BINGET, pickle.LONG_BINGET, pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE),
    *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.FLOAT, pickle.BINFLOAT),
    *(pickle.INT, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG, pickle.LONG1, pickle.LONG4),
    *(pickle.STRING, pickle.BINSTRING, pickle.SHORT_BINSTRING),
    *(pickle.UNICODE, pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.BINUNICODE8),
    *(pickle.BINBYTES, pickle.SHORT_BINBYTES, pickle.BINBYTES8),
    *(pickle.LIST, pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS),
    *(pickle.DICT, pickle.EMPTY_DICT, pickle.SETITEM, pickle.SETITEMS),
    *(pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.REDUCE, pickle.BUILD),
)
_TUPLES = (pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3)


def _unhashable(load_tuple: Callable[[Any], None]) -> Callable[[Any], None]:
    def load(reader: Any) -> None:
        load_tuple(reader)
        reader.stack[-1] = _Tuple(reader.stack[-1])

    return load


_ALL: Mapping[int, Callable[[Any], None]] = pickle._Unpickler.dispatch


class _Reader(pickle._Unpickler):
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **{code[0]: _ALL[code[0]] for code in _OPERATIONS},
        **{code[0]: _unhashable(_ALL[code[0]]) for code in _TUPLES},
        # Of protocol 5, for arrays; as bytes, since a bytearray is made before it is known whether it can be filled.
        pickle.BYTEARRAY8[0]: _ALL[pickle.BINBYTES8[0]],
    }

    def find_class(self, module: str, name: str) -> Any:
        stand_in = _NAMES.get((module.replace("numpy._core", "numpy.core"), name))
        if stand_in is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _Call(stand_in)
