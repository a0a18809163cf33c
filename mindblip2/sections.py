"""How a section of the configuration behaves: a frozen dataclass, read strictly from a mapping.

A key that is neither a field nor a key of MindFormers' BLIP-2 files (see ``mindblip2.legacy``) is an error that names the
nearest field.
"""
import dataclasses
import difflib
import logging
import reprlib
import types
import typing
from dataclasses import dataclass

from mindblip2 import legacy

logger = logging.getLogger("mindblip2")
_REPR = reprlib.Repr()
_REPR.maxstring, _REPR.maxlevel = 100, 2


class ConfigError(ValueError):
    """A configuration that cannot be used; the message says what, got, expected, and the next step."""


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


def section(cls):
    """Frozen keyword-only dataclass.  One field stays assignable, ``checkpoint_name_or_path``: it says where the weights
    lie, not what the model is, and users of the MindFormers card set it on the config."""
    cls = dataclass(frozen=True, kw_only=True, repr=False)(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    init = cls.__init__

    def checked_init(self, **values):
        for key in values:
            if key not in names:
                raise ConfigError(_unknown_key(f"{cls.__name__}.{key}", key, names))
        hints, ignored = typing.get_type_hints(cls), []
        kept = {key: value for key, value in values.items() if not _has_no_effect(cls, "", key, value, f"{cls.__name__}.{key}", ignored)}
        init(self, **{key: _cast(hints[key], value, f"{cls.__name__}.{key}", ignored) for key, value in kept.items()})
        warn_ignored(ignored)

    def assign(self, name, value):
        if name != "checkpoint_name_or_path" or name not in names:
            raise dataclasses.FrozenInstanceError(
                f"{cls.__name__}.{name} cannot be assigned: configurations are frozen; make a changed copy with "
                f"config.replace({name}=…)")
        object.__setattr__(self, name, value)

    cls.__init__ = checked_init
    cls.__setattr__ = assign
    return cls


def build(cls, raw, where="", ignored=None):
    """``cls`` from a mapping; ``where`` is the dotted path for messages, ``ignored`` collects the keys that have no effect.  Without such
    a list a warning names them."""
    if ignored is None:
        made = build(cls, raw, where, ignored := [])
        warn_ignored(ignored)
        return made
    if isinstance(raw, cls):
        return raw
    if not isinstance(raw, dict):
        raise ConfigError(f"{where or cls.__name__} must be a mapping, got {_short(raw)}")
    hints = typing.get_type_hints(cls)
    known = {f.name: hints[f.name] for f in dataclasses.fields(cls)}
    raw = legacy.translate(cls.__name__, raw)
    values = {}
    for key, value in raw.items():
        name = f"{where}.{key}" if where else str(key)
        if _has_no_effect(cls, where, key, value, name, ignored):
            continue
        if value in legacy.IGNORED_VALUES.get(name, ()):
            ignored.append(name)
        elif key in known:
            values[key] = _cast(known[key], value, name, ignored)
        elif key in legacy.IGNORED.get(cls.__name__, ()):
            ignored.append(name)
        elif key in legacy.FIXED.get(cls.__name__, {}):
            _check_fixed(name, value, legacy.FIXED[cls.__name__][key])
        else:
            raise ConfigError(_unknown_key(name, key, known))
    return cls(**values)


def warn_ignored(names, source=""):
    """One line that names keys without effect; ``source``: the file that holds them."""
    if names:
        logger.warning("%sthese keys have no effect in mindblip2 and are ignored: %s", f"{source}: " if source else "", ", ".join(names))


def _has_no_effect(cls, where, key, value, name, ignored):
    """Whether nothing reads a field, which then keeps its default; ``ignored`` gets the ``name`` of another value."""
    if key not in legacy.WITHOUT_EFFECT.get(where, ()) and key not in legacy.WITHOUT_EFFECT.get(cls.__name__, ()):
        return False
    field, = (f for f in dataclasses.fields(cls) if f.name == key)
    if value not in (field.default, _plain(field.default)):
        ignored.append(name)
    return True


def positive(config, *names):
    """Check that the named fields are at least 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise ConfigError(f"{type(config).__name__}.{name} = {getattr(config, name)}: expected at least 1")


def divides(config, divisor, of, advice):
    """Check that field ``of`` is a multiple of field ``divisor``."""
    small, large = getattr(config, divisor), getattr(config, of)
    if large % small:
        raise ConfigError(f"{of} = {large} is not a multiple of {divisor} = {small}: {advice} "
                          f"(nearest: {large // small * small or small} or {(large // small + 1) * small})")


def within(config, name, low, high):
    """Check that a field is at least ``low`` and less than ``high``."""
    if not low <= getattr(config, name) < high:
        raise ConfigError(f"{type(config).__name__}.{name} = {getattr(config, name)}: expected from {low} to less than {high}")


def one_of(config, name, allowed):
    """Check that a field has one of the allowed values."""
    if getattr(config, name) not in allowed:
        raise ConfigError(f"{type(config).__name__}.{name} = {getattr(config, name)!r}: expected one of "
                          f"{', '.join(map(repr, allowed))}")


def _merge(base, changes):
    merged = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merge(base[key], value) if nested else value
    return merged


def _short(value):
    """A value in a message, on one line of at most some 200 characters: a YAML file may hold anything, at any size."""
    return _REPR.repr(value)


def _unknown_key(name, key, known):
    near = difflib.get_close_matches(str(key), list(known), 1, 0.6)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys here: {', '.join(known)}"
    return f"unknown key {name!r} in the configuration; {hint}"


def _check_fixed(name, value, expected):
    if value != expected:
        raise ConfigError(f"{name} = {value!r}: BLIP-2 has {expected!r} here and nothing else is implemented; "
                          "remove the key")


def _cast(hint, value, name, ignored):
    """``value`` as the declared type: PyYAML reads ``1e-4`` as a string, and lists arrive where tuples are meant."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    if value is None and (options[0] in (tuple, dict) or dataclasses.is_dataclass(options[0])):
        return options[0]()  # a section of a YAML file with nothing below it
    sections = [option for option in options if dataclasses.is_dataclass(option)]
    if sections:
        return build(_which(sections, value, name), value, name, ignored)
    for option in options:
        cast = _CASTS.get(option)
        if cast is not None:
            try:
                return cast(value)
            except (TypeError, ValueError, OverflowError):
                continue
    wanted = " or ".join(o.__name__ for o in options if o is not type(None))
    raise ConfigError(f"{name} = {_short(value)}: expected {wanted}, got {type(value).__name__}")


def _which(sections, value, name):
    """Of several sections that may stand here the one that ``type`` names; without a ``type`` the first."""
    if type(value) in sections:
        return type(value)
    wanted = value.get("type", sections[0].__name__) if isinstance(value, dict) and len(sections) > 1 else sections[0].__name__
    for one in sections:
        if one.__name__ == wanted:
            return one
    raise ConfigError(f"{name}.type = {wanted!r}: expected {' or '.join(repr(one.__name__) for one in sections)}")


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


_CASTS = {int: _integer, float: _number, bool: _strict(bool), str: _strict(str), tuple: _sequence, dict: _strict(dict)}


def _plain(value):
    if isinstance(value, Section):
        return value.to_dict()
    return [_plain(v) for v in value] if isinstance(value, tuple) else value
