"""Arrays that are kept for the next call."""

from __future__ import annotations

from vivace.ops.runtime.workspace import Memory, NoMemory


def test_the_same_name_and_shape_is_the_same_tensor():
    memory = Memory()
    first = memory.take("a", 2, 3)
    assert first.shape == (2, 3)
    assert memory.take("a", 2, 3) is first
    assert memory.take("a", 3, 2) is not first
    assert memory.take("b", 2, 3) is not first
    assert Memory().take("a", 2, 3) is not first


def test_without_memory_every_tensor_is_new():
    memory = NoMemory()
    first = memory.take("a", 2)
    assert memory.take("a", 2) is not first
