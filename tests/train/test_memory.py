"""A container whose memory limit is too low is refused before the training."""

import pytest

from train.errors import SettingsError
from train.memory import check_memory


@pytest.mark.parametrize("name", ["memory.max", "memory/memory.limit_in_bytes"])
def test_a_container_with_too_little_memory_is_refused(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(f"{600 * 2**20}\n")
    with pytest.raises(SettingsError, match="expected at least 2,000 MiB of memory, found 600 MiB"):
        check_memory(tmp_path)


def test_a_container_without_a_limit_is_accepted(tmp_path):
    (tmp_path / "memory.max").write_text("max\n")
    check_memory(tmp_path)
