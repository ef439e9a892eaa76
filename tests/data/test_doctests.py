import doctest
import importlib
import pkgutil

import pytest

from behrt_jax import data

MODULES = sorted(module.name for module in pkgutil.iter_modules(data.__path__))


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    assert doctest.testmod(importlib.import_module(f"behrt_jax.data.{name}")).failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    modules = [importlib.import_module(f"behrt_jax.data.{name}") for name in MODULES]
    assert sum(len(test.examples) for module in modules for test in finder.find(module)) >= 2
