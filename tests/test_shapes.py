"""Annotated shapes are checked while tests run."""

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float
from torch import Tensor

from shapes import checked
from small_model import small_model
from transduce.data.batches import Batch


def test_a_tensor_of_another_shape_than_annotated_is_refused_wherever_it_is_given() -> None:
    ids = torch.ones(2, 3, dtype=torch.long)
    Batch(ids, ids, ids)
    with pytest.raises(BeartypeCallHintViolation):
        Batch(ids, ids, ids[:1])
    with pytest.raises(BeartypeCallHintViolation):
        small_model()(ids, ids[:1])
    with pytest.raises(BeartypeCallHintViolation):
        small_model()(ids, ids.double())


def test_a_value_is_checked_together_with_what_it_was_computed_from() -> None:
    @checked
    def transposed(matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, "columns rows"]:
        return matrix

    transposed(torch.zeros(3, 3))
    with pytest.raises(BeartypeCallHintViolation):
        transposed(torch.zeros(3, 2))
