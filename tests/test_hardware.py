"""Device names and peaks: the traps are names that contain other names, and figures that count sparsity."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tracetool import hardware

if TYPE_CHECKING:
    from pathlib import Path

GB = 1_000_000_000


def bf16(name: str) -> float:
    device = hardware.find(name)
    assert device is not None, name
    return device.tflops["bf16"]


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("nvidia h100 80gb hbm3", 989.4),
        ("NVIDIA H800", 989),
        ("NVIDIA H20", 148),
        ("NVIDIA H200", 989),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 3090", 71),
        ("NVIDIA GeForce RTX 5090", 209.5),
        ("NVIDIA RTX A6000", 154.85),
        ("NVIDIA A10", 125),
        ("AMD Instinct MI250X", 191.5),
        ("AMD Instinct MI350X", 2309.6),
        ("AMD Instinct MI355X", 2500),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
    ],
)
def test_dense_bf16_peak_of_names_that_others_confuse(name: str, tflops: float) -> None:
    assert bf16(name) == tflops


@pytest.mark.parametrize(
    "name",
    [
        "",
        None,
        "AMD Radeon Graphics",
        "NVIDIA H100",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "GRID A100-10C",
        "NVIDIA H2000",
        "NVIDIA H900",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "Quadro RTX 6000",
        "NVIDIA H800 PCIe",
    ],
)
def test_unknown_devices_have_no_peak(name: str | None) -> None:
    assert hardware.find(name) is None


def test_a_peak_that_the_sources_dispute_is_not_known() -> None:
    device = hardware.find("NVIDIA A10G")
    assert device is not None
    assert device.peak_flops("bf16") is None


def test_no_bf16_on_parts_whose_tensor_cores_lack_it() -> None:
    device = hardware.find("Tesla V100-SXM2-32GB")
    assert device is not None
    assert device.peak_flops("bf16") is None
    assert device.peak_flops("fp16") == 125e12


def test_memory_bandwidth_goes_by_the_size_the_driver_reports() -> None:
    by_size = [hardware.find("NVIDIA A100-PG509-200", size) for size in (42 * GB, 85 * GB, None)]
    assert [device and device.memory_gbs for device in by_size] == [1555, 2039, 2039]
    plain, large = hardware.find("NVIDIA H20"), hardware.find("NVIDIA H20-3e")
    assert plain is not None
    assert large is not None
    assert (plain.memory_gbs, large.memory_gbs) == (4000, 4800)
    l4 = hardware.find("NVIDIA L4")
    assert l4 is not None
    assert l4.memory_gbs == 300


def test_every_example_names_its_own_entry_and_every_figure_has_a_source() -> None:
    for device in hardware.known():
        found = hardware.find(device.name)
        assert found is not None, device.name
        assert found.key == device.key
        assert device.sources
        assert set(device.tflops) <= set(hardware.DTYPES)
        assert all(tflops > 0 for tflops in device.tflops.values())


@pytest.mark.parametrize(
    ("name", "dtype", "tflops", "share"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 271.2, 0.869), ("NVIDIA GH200 480GB", "bf16", 828.6, 0.838),
        ("NVIDIA H100 80GB HBM3", "bf16", 794.5, 0.803), ("NVIDIA B300", "bf16", 1769, 0.786),
        ("NVIDIA B200", "bf16", 1745, 0.776), ("NVIDIA GB200", "bf16", 1822, 0.729),
        ("AMD Instinct MI325X", "bf16", 784.9, 0.60), ("AMD Instinct MI300X", "bf16", 668.4, 0.511),
        ("NVIDIA H200", "fp8", 1453.4, 0.734), ("NVIDIA H100 80GB HBM3", "fp8", 1402.6, 0.709),
    ],
)  # fmt: skip
def test_the_best_measured_product_lies_below_its_data_sheet(
    name: str, dtype: str, tflops: float, share: float
) -> None:
    device = hardware.find(name)
    assert device is not None
    assert device.measured_tflops[dtype] == tflops
    assert tflops / device.tflops[dtype] == pytest.approx(share, abs=0.002)


def test_memory_of_the_processor_beside_it_is_no_memory_of_the_device() -> None:
    """The trap: the 480 GB in a Grace Hopper's name are the host's."""
    named = hardware.find("NVIDIA GH200 480GB")
    assert named is not None
    assert (named.key, named.memory_gbs) == ("gh200", 4000)


def test_no_peak_counts_sparsity() -> None:
    """Twice the rate from one format to the next narrower one is the most that dense units of one die do."""
    for device in hardware.known():
        peaks = device.tflops
        if "fp8" in peaks:
            assert peaks["fp8"] <= 2.05 * peaks["bf16"], device.key
        if "tf32" in peaks:
            assert peaks["tf32"] <= 0.51 * peaks["fp16"], device.key


def test_similar_names_help_after_an_unknown_one() -> None:
    assert "NVIDIA H100 80GB HBM3" in hardware.similar("H100")
    assert hardware.similar("abacus") == ()


def test_reference_names_and_figures(shared: Path) -> None:
    peaks = json.loads((shared / "mfu" / "peaks.json").read_text(encoding="utf-8"))
    names = {name: (device.key if (device := hardware.find(name)) else None) for name in peaks["name_tests"]}
    assert len(names) == 76
    assert names == peaks["name_tests"]
    ours = {device.key: device for device in hardware.known()}
    assert len(ours) == 42
    for row in peaks["devices"]:
        device = ours[row["key"]]
        for dtype, tflops in row["dense_tflops"].items():
            assert device.tflops.get(dtype) == (None if tflops is None else pytest.approx(tflops, rel=5e-4)), row
        assert device.memory_gbs == row["mem_bw_GBps"]
        assert device.link_gbs == row["link_GBps_per_direction"]
