"""How a section of the configuration behaves: a frozen dataclass, read strictly from a mapping.

A key that is neither a field nor a key of MindFormers' BLIP-2 files (see
``mindblip2.compat.mindformers.keys``) is an error that names the nearest field.
"""

import dataclasses
import difflib
import logging
import math
import reprlib
import types
import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from mindblip2.compat.mindformers import keys

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_):  # typing has it from Python 3.11 on
        return lambda decorator: decorator


logger = logging.getLogger("mindblip2")
_REPR = reprlib.Repr()
_REPR.maxstring, _REPR.maxlevel = 100, 2


class ConfigError(ValueError):
    """A configuration that cannot be used; the message says what, got, expected, and the next step."""


@dataclass(frozen=True)
class Range:
    """The values that a numeric field may have: from ``low`` to ``high``, both included unless ``open_low``
    or ``open_high``; ``also`` is one more value, such as -1 for "none".  It is a part of the field's
    annotation, so that a field and its range are one line."""

    low: float | None = None
    high: float | None = None
    open_low: bool = False
    open_high: bool = False
    also: int | None = None

    def check(self, value, name):
        """Raises ConfigError, with the ``name`` of the key, for a value outside."""
        if value == self.also and self.also is not None:
            return
        below = self.low is not None and (value <= self.low if self.open_low else value < self.low)
        above = self.high is not None and (value >= self.high if self.open_high else value > self.high)
        if below or above:
            raise ConfigError(f"{name} = {value}: expected {self}")

    def __str__(self):
        low = "" if self.low is None else f"above {self.low}" if self.open_low else f"at least {self.low}"
        if None not in (self.low, self.high) and not self.open_low:
            low = f"from {self.low} to {'less than ' if self.open_high else ''}{self.high}"
        elif self.high is not None:
            low += f"{', ' if low else ''}{'less than' if self.open_high else 'at most'} {self.high}"
        return low + (f", or {self.also} for none" if self.also is not None else "")


INT32 = 2**31 - 1
Count = Annotated[int, Range(1)]
# the side of a picture as a model sees it: 3 GB as float32
Pixels = Annotated[int, Range(1, 16384)]
Natural = Annotated[int, Range(0)]
CountOrNone = Annotated[int, Range(1, also=-1)]
TokenId = Annotated[int, Range(0, INT32)]
Seed = Annotated[int, Range(0, 2**32 - 1)]  # what NumPy's generators take
Positive = Annotated[float, Range(0, open_low=True)]
NonNegative = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
Rate = Annotated[float, Range(0, 1, open_high=True)]  # a probability by whose complement is divided
Factor = Annotated[float, Range(0, 1, open_low=True)]


class Section:
    """Common behaviour of the sections: a dict-like repr, and copies with changes."""

    def __repr__(self):
        return repr(self.to_dict())

    def to_dict(self):
        """The section as plain nested dicts and lists, as YAML would hold it."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    def replace(self, **changes):
        """A copy with some fields changed; a nested section may be given as a dict of what differs."""
        return build(type(self), _merge(self.to_dict(), changes))


@dataclass_transform(frozen_default=True, kw_only_default=True)
def section(cls):
    """Frozen keyword-only dataclass.  One field stays assignable, ``checkpoint_name_or_path``: it says where
    the weights lie, not what the model is, and users of the MindFormers card set it on the config."""
    cls = dataclass(frozen=True, kw_only=True, repr=False)(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    init = cls.__init__

    def checked_init(self, **values):
        for key in values:
            if key not in names:
                raise ConfigError(_unknown_key(f"{cls.__name__}.{key}", key, names))
        hints, ignored = typing.get_type_hints(cls, include_extras=True), []
        kept = {
            key: value
            for key, value in values.items()
            if not _has_no_effect(cls, "", key, value, f"{cls.__name__}.{key}", ignored)
        }
        init(
            self,
            **{
                key: _cast(hints[key], value, f"{cls.__name__}.{key}", ignored) for key, value in kept.items()
            },
        )
        warn_ignored(ignored)

    def assign(self, name, value):
        if name != "checkpoint_name_or_path" or name not in names:
            raise dataclasses.FrozenInstanceError(
                f"{cls.__name__}.{name} cannot be assigned: configurations are frozen; make a changed copy "
                "with "
                f"config.replace({name}=…)"
            )
        object.__setattr__(self, name, value)

    cls.__init__ = checked_init
    cls.__setattr__ = assign
    return cls


def build(cls, raw, where="", ignored=None):
    """``cls`` from a mapping; ``where`` is the dotted path for messages, ``ignored`` collects the keys that
    have no effect.  Without such a list a warning names them."""
    if ignored is None:
        made = build(cls, raw, where, ignored := [])
        warn_ignored(ignored)
        return made
    if isinstance(raw, cls):
        return raw
    if not isinstance(raw, dict):
        raise ConfigError(f"{where or cls.__name__} must be a mapping, got {_short(raw)}")
    hints = typing.get_type_hints(cls, include_extras=True)
    known = {f.name: hints[f.name] for f in dataclasses.fields(cls)}
    raw = keys.translate(cls.__name__, raw)
    values = {}
    for key, value in raw.items():
        name = f"{where}.{key}" if where else str(key)
        if _has_no_effect(cls, where, key, value, name, ignored):
            continue
        if value in keys.IGNORED_VALUES.get(name, ()):
            ignored.append(name)
        elif key in known:
            values[key] = _cast(known[key], value, name, ignored)
        elif key in keys.IGNORED.get(cls.__name__, ()):
            ignored.append(name)
        elif key in keys.FIXED.get(cls.__name__, {}):
            _check_fixed(name, value, keys.FIXED[cls.__name__][key])
        else:
            raise ConfigError(_unknown_key(name, key, known))
    return cls(**values)


def argument(hint, value, name):
    """``value`` of a function's argument ``name`` as the type of ``hint``, checked as a field of a
    configuration is, but that a text is no number.  Raises ConfigError, which is a ValueError."""
    if isinstance(value, str | bytes):
        raise ConfigError(f"{name} = {_short(value)}: expected a number, got {type(value).__name__}")
    return _cast(hint, value, name, [])


def warn_ignored(names, source=""):
    """One line that names keys without effect; ``source``: the file that holds them."""
    if names:
        logger.warning(
            "%sthese keys have no effect in mindblip2 and are ignored: %s",
            f"{source}: " if source else "",
            ", ".join(names),
        )


def _has_no_effect(cls, where, key, value, name, ignored):
    """Whether nothing reads a field, which then keeps its default; ``ignored`` gets the ``name`` of another
    value. Raises ConfigError for a value that the field cannot have."""
    if key not in keys.WITHOUT_EFFECT.get(where, ()) and key not in keys.WITHOUT_EFFECT.get(cls.__name__, ()):
        return False
    (field,) = (f for f in dataclasses.fields(cls) if f.name == key)
    _cast(typing.get_type_hints(cls, include_extras=True)[key], value, name, [])
    if value not in (field.default, _plain(field.default)):
        ignored.append(name)
    return True


def positive(config, *names):
    """Check that the named properties, which are computed from several fields, are at least 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise ConfigError(
                f"{type(config).__name__}.{name} = {getattr(config, name)}: expected at least 1"
            )


def divides(config, divisor, of, advice):
    """Check that field ``of`` is a multiple of field ``divisor``."""
    small, large = getattr(config, divisor), getattr(config, of)
    if large % small:
        raise ConfigError(
            f"{of} = {large} is not a multiple of {divisor} = {small}: {advice} "
            f"(nearest: {large // small * small or small} or {(large // small + 1) * small})"
        )


def one_of(config, name, allowed):
    """Check that a field has one of the allowed values."""
    if getattr(config, name) not in allowed:
        raise ConfigError(
            f"{type(config).__name__}.{name} = {getattr(config, name)!r}: expected one of "
            f"{', '.join(map(repr, allowed))}"
        )


def _merge(base, changes):
    merged = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merge(base[key], value) if nested else value
    return merged


def _short(value):
    """A value in a message, on one line of at most some 200 characters: a YAML file may hold anything, at any
    size."""
    return _REPR.repr(value)


def _unknown_key(name, key, known):
    near = difflib.get_close_matches(str(key), list(known), 1, 0.6)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys here: {', '.join(known)}"
    return f"unknown key {name!r} in the configuration; {hint}"


def _check_fixed(name, value, expected):
    if value != expected:
        raise ConfigError(
            f"{name} = {value!r}: BLIP-2 has {expected!r} here and nothing else is implemented; "
            "remove the key"
        )


def _cast(hint, value, name, ignored):
    """``value`` as the declared type and in the declared range: PyYAML reads ``1e-4`` as a string, and lists
    arrive where tuples are meant.

    ``hint``: int, float, bool, str, dict, tuple, ``tuple[X, ...]``, ``tuple[X, X, X]``, a section, any of
    them with a :class:`Range`, or several of them.  Numbers are finite wherever they stand."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    if value is None and type(None) in options:
        return None
    plain = [_plain_type(option) for option in options]
    if value is None and (plain[0] in (tuple, dict) or dataclasses.is_dataclass(plain[0])):
        return plain[0]()  # a section of a YAML file with nothing below it
    sections = [option for option in options if dataclasses.is_dataclass(option)]
    if sections:
        return build(_which(sections, value, name), value, name, ignored)
    for option, kind in zip(options, plain):
        if kind in _CASTS:
            try:
                cast = _CASTS[kind](value)
            except (TypeError, ValueError, OverflowError):
                continue
            return _checked(option, cast, name, ignored)
    wanted = " or ".join(kind.__name__ for kind in plain if kind is not type(None))
    raise ConfigError(f"{name} = {_short(value)}: expected {wanted}, got {type(value).__name__}")


def _plain_type(hint):
    """``int`` of ``Annotated[int, …]``, ``tuple`` of ``tuple[float, ...]``."""
    hint = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
    return typing.get_origin(hint) or hint


def _checked(hint, value, name, ignored):
    """``value``, which has the type of ``hint``, with its range and its elements checked.  Raises
    ConfigError."""
    _check_finite(value, name)
    if typing.get_origin(hint) is Annotated:
        hint, *about = typing.get_args(hint)
        for one in about:
            one.check(value, name)
    if typing.get_origin(hint) is not tuple:
        return value
    elements = typing.get_args(hint)
    if elements[-1] is ...:
        elements = elements[:1] * len(value)
    if len(elements) != len(value):
        raise ConfigError(
            f"{name} = {_short(list(value))}: expected {len(elements)} values, got {len(value)}"
        )
    return tuple(
        _cast(element, one, f"{name}[{i}]", ignored) for i, (element, one) in enumerate(zip(elements, value))
    )


def _check_finite(value, name):
    """Raises ConfigError for NaN and infinity, wherever they are in a value of plain data."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name} = {value}: expected a finite number")
    for key, one in (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list | tuple)
        else ()
    ):
        _check_finite(one, f"{name}[{key}]" if isinstance(key, int) else f"{name}.{key}")


def _which(sections, value, name):
    """Of several sections that may stand here the one that ``type`` names; without a ``type`` the first."""
    if type(value) in sections:
        return type(value)
    wanted = (
        value.get("type", sections[0].__name__)
        if isinstance(value, dict) and len(sections) > 1
        else sections[0].__name__
    )
    for one in sections:
        if one.__name__ == wanted:
            return one
    raise ConfigError(
        f"{name}.type = {wanted!r}: expected {' or '.join(repr(one.__name__) for one in sections)}"
    )


def _strict(kind):
    def cast(value):
        if isinstance(value, kind):
            return value
        raise TypeError

    return cast


def _integer(value):
    if isinstance(value, bool) or (isinstance(value, float) and value != int(value)):
        raise TypeError
    return int(value)


def _number(value):
    if isinstance(value, bool):
        raise TypeError
    return float(value)


def _sequence(value):
    if isinstance(value, (list, tuple)):
        return tuple(value)
    raise TypeError


_CASTS = {
    int: _integer,
    float: _number,
    bool: _strict(bool),
    str: _strict(str),
    tuple: _sequence,
    dict: _strict(dict),
}


def _plain(value):
    if isinstance(value, Section):
        return value.to_dict()
    return [_plain(v) for v in value] if isinstance(value, tuple) else value
