"""Memory that a process keeps once it decodes."""

import platform

import pytest
import torch

from transduce.devices.cpu import keep_freed_memory

resource = pytest.importorskip("resource")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc's allocator")
def test_freed_memory_is_used_again_without_page_faults():
    keep_freed_memory()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        _ = [torch.ones(2**22) for _ in range(8)]  # 16 MB each: more than the allocator keeps by itself
    num_pages = 10 * 8 * 16 * 2**20 // resource.getpagesize()
    # The first ones may find no hole of their size among what the process holds.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < num_pages / 2
