"""Arrays that are kept for the next call."""

from __future__ import annotations

import threading

from vivace.ops.runtime.workspace import Pair, Workspace, thread_workspace


def same_memory(a, b):
    return a.data_ptr() == b.data_ptr()


def test_the_same_name_and_shape_is_the_same_tensor():
    workspace = Workspace()
    first = workspace.take("a", 2, 3)
    assert first.shape == (2, 3)
    assert workspace.take("a", 2, 3) is first
    assert not same_memory(workspace.take("b", 2, 3), first)
    assert not same_memory(Workspace().take("a", 2, 3), first)


def test_shapes_of_one_name_share_its_memory():
    workspace = Workspace()
    first = workspace.take("a", 4, 3)
    for shape in ((3, 4), (2, 5), (1,), (0, 7)):
        other = workspace.take("a", *shape)
        assert other.shape == shape
        assert other.is_contiguous()
        assert other.numel() == 0 or same_memory(other, first)
    larger = workspace.take("a", 5, 3)
    assert not same_memory(larger, first)
    assert workspace.kept_numbers == 15


def test_tensor_and_array_are_the_same_numbers():
    pair = Workspace().pair("a", 2, 3)
    pair.array[:] = 7.0
    assert pair.tensor.tolist() == [[7.0] * 3] * 2
    assert same_memory(Pair.view(pair.tensor).tensor, pair.tensor)


def test_a_workspace_has_a_largest_size():
    """The oldest array is dropped, but stays valid for its users."""
    workspace = Workspace(most_numbers=10)
    first = workspace.take("a", 4).fill_(1.0)
    second = workspace.take("b", 4)
    workspace.take("c", 4)
    assert workspace.kept_numbers == 8
    assert workspace.take("b", 4) is second
    assert workspace.take("a", 4) is not first
    assert first.tolist() == [1.0] * 4
    assert workspace.take("huge", 11).shape == (11,)
    assert workspace.kept_numbers == 0


def test_each_thread_has_its_own():
    result = []
    other = threading.Thread(target=lambda: result.append(thread_workspace()))
    other.start()
    other.join()
    assert result != [thread_workspace()]
    assert thread_workspace() is thread_workspace()
