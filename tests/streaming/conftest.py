"""What the tests of the engine stream through."""

import pytest

from tests.factories import tiny_model, tiny_vocabulary


@pytest.fixture(scope="module")
def vocabulary():
    return tiny_vocabulary()


@pytest.fixture(scope="module")
def random_model(vocabulary):
    return tiny_model(vocabulary)
