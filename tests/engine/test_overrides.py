# SPDX-License-Identifier: Apache-2.0
"""Methods that we override take vLLM's own arguments, by vLLM's names.

mypy checks that such methods exist and that their types go together, but not names of arguments.
"""

import importlib
import inspect
import pkgutil

import pytest

from headkv_vllm import engine

VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def modules():
    for found in pkgutil.walk_packages(engine.__path__, f"{engine.__name__}."):
        if not found.name.endswith((".cuda", ".rocm")):  # vLLM's, which look for a GPU
            yield importlib.import_module(found.name)


def overrides():
    """(class, name of the method) of all that are marked as overriding vLLM's."""
    classes = {
        each
        for module in modules()
        for _, each in inspect.getmembers(module, inspect.isclass)
        if each.__module__ == module.__name__
    }
    for each in sorted(classes, key=lambda one: f"{one.__module__}.{one.__qualname__}"):
        for name, value in vars(each).items():
            if getattr(getattr(value, "__func__", value), "__override__", False):
                yield each, name


def stock_method(own, name):
    """vLLM's method, which a mixin finds only in the classes that it goes in front of."""
    candidates = [
        own,
        *own.__subclasses__(),
        *(s for c in own.__subclasses__() for s in c.__subclasses__()),
    ]
    for candidate in candidates:
        for base in candidate.__mro__:
            if base.__module__.startswith("vllm.") and name in vars(base):
                return getattr(base, name)
    return None


OVERRIDES = list(overrides())


def test_there_are_many():
    assert len(OVERRIDES) > 40


@pytest.mark.parametrize(
    ("own", "name"), OVERRIDES, ids=[f"{c.__name__}.{n}" for c, n in OVERRIDES]
)
def test_arguments_have_vllms_names(own, name):
    stock = stock_method(own, name)
    if stock is None:
        assert any(name in vars(base) for base in own.__mro__[1:]), "nothing is overridden"
        return
    theirs, ours = (inspect.signature(each).parameters for each in (stock, getattr(own, name)))
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in ours.values()):
        return
    missing = [key for key, one in theirs.items() if one.kind not in VARIABLE and key not in ours]
    assert not missing
