import torch

from parallel.kernels.adjacent import joined


def test_parts_of_one_memory_in_their_order_are_seen_as_one() -> None:
    whole = torch.arange(24).view(8, 3)
    parts = whole.split((2, 5, 1))
    found = joined(parts)
    assert found is not None
    assert torch.equal(found, whole)
    assert found.data_ptr() == whole.data_ptr()


def test_other_tensors_are_not() -> None:
    whole = torch.arange(24).view(8, 3)
    first, second, third = whole.split((2, 5, 1))
    assert joined([second, first]) is None
    assert joined([first, third]) is None
    assert joined([first, second.clone()]) is None
    assert joined([first, second.float()]) is None
    assert joined([whole[:, :2]]) is None
