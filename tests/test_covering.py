from itertools import combinations, product

import pytest

from covering import covered, covering_array

SWITCHES = ([False, True], "abcd", [1, 2, 3], [False, True], "xy")


@pytest.mark.parametrize("strength", [1, 2, 3])
def test_all_values_of_that_many_switches_meet(strength):
    rows = covering_array(*SWITCHES, strength=strength)
    for columns in combinations(range(len(SWITCHES)), strength):
        met = {tuple(row[column] for column in columns) for row in rows}
        assert met == set(product(*(SWITCHES[column] for column in columns)))


def test_a_covering_array_is_far_smaller_than_the_product_and_the_same_each_time():
    rows = covering_array(*SWITCHES, strength=2)
    assert len(set(rows)) == len(rows) <= 15  # 12 are the fewest; the product has 96
    assert rows == covering_array(*SWITCHES, strength=2)


def test_what_is_not_covered_is_a_proof_and_nothing_is_lost():
    params = covered(*SWITCHES)
    assert [param.values for param in params] == list(product(*SWITCHES))
    run = {param.values for param in params if not param.marks}
    assert run == set(covering_array(*SWITCHES))
    assert {mark.name for param in params for mark in param.marks} == {"proof"}
