"""What is skipped on a backend fails there without `TimeDistributed` too."""

import pytest

from backends import LIMITS


@pytest.mark.usefixtures("float64")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LIMITS)
def test_keras_itself_has_the_limit(name):
    limit = LIMITS[name]
    if limit.holds():
        with pytest.raises(limit.error):
            limit.plain()
    else:
        limit.plain()
