"""What is said to be free: the system's word, and the limit of a control group."""

from mixwell.core.machine import memory_bytes
from mixwell.kernels import memory


def test_free_memory_is_what_the_system_and_its_control_group_leave(tmp_path, monkeypatch):
    assert 0 < memory.free_bytes() <= memory_bytes()
    assert memory._group_bytes(tmp_path) == memory_bytes()
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("1200\n")
    assert memory._group_bytes(tmp_path) == 3800
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 600\nactive_file 100\n")  # read, and not wanted now
    assert memory._group_bytes(tmp_path) == 4400
    monkeypatch.setattr(memory, "_group_bytes", lambda folder: 3800)
    assert memory.free_bytes() == 3800
    monkeypatch.undo()
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._group_bytes(tmp_path) == memory_bytes()
