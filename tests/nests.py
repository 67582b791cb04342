"""Nests of any kind, for properties."""

from hypothesis import strategies as st


def nests_of(leaves):
    return st.recursive(
        leaves,
        lambda nests: (
            st.lists(nests, min_size=1, max_size=3)
            | st.tuples(nests, nests)
            | st.lists(
                st.tuples(st.sampled_from("abcd"), nests),
                min_size=1,
                unique_by=lambda item: item[0],
            ).map(dict)
        ),
        max_leaves=5,
    )
