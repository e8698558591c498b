"""Memory that a process keeps once it decodes."""

import platform

import pytest

from transduce.devices.cpu import keep_freed_memory

resource = pytest.importorskip("resource")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc's allocator")
def test_freed_memory_is_used_again_without_page_faults():
    import torch

    keep_freed_memory()
    num_pages = 16 * 2**20 // resource.getpagesize()
    torch.ones(2**22)  # 16 MB of float32, given back to the allocator at once
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(2**22)
    assert (
        resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 2 * num_pages
    )  # given back, it would be eight times
