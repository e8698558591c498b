import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transduce.text.ragged import Ragged


def rows_of(ragged: Ragged) -> list[list[int]]:
    return [ragged.row(k).tolist() for k in range(len(ragged.lens))]


@settings(derandomize=True, deadline=None)
@given(rows=st.lists(st.lists(st.integers(0, 99), max_size=4), max_size=6), data=st.data())
def test_rows_are_those_given_in_whatever_order_they_are_taken(rows: list[list[int]], data: st.DataObject) -> None:
    ragged = Ragged.of(rows)
    assert rows_of(ragged) == rows
    order = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=9)) if rows else []
    selected = ragged.select(np.array(order, dtype=np.intp))
    assert rows_of(selected) == [rows[k] for k in order]
    assert rows_of(Ragged.chained([selected, ragged])) == [rows[k] for k in order] + rows
    assert selected.ids.tolist() == [i for k in order for i in rows[k]]


@pytest.mark.parametrize("dtype", [np.uint16, np.int64])
def test_ids_keep_their_type(dtype: type) -> None:
    ragged = Ragged(np.array([1, 2, 3], dtype=dtype), np.array([0, 1, 1, 3]))
    assert ragged.select(np.array([2, 1])).ids.dtype == dtype
    assert rows_of(ragged) == [[1], [], [2, 3]]
