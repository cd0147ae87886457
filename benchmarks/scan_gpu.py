"""The Mamba scan on a GPU: against mamba_ssm's CUDA kernels, and what bytes and exponentials allow; a supernet step.

    python benchmarks/scan_gpu.py            # with a CUDA device: minutes; without: checks tiny shapes, interpreted

Bound of a pass = the larger of its bytes over the bandwidth and its exponentials over their rate. Bars: forward within
3 times, backward within 4 times of that, and no slower than mamba_ssm. Mixing is what a supernet's step takes beyond
its components' own steps; above 5 % it would be worth a kernel. Without a CUDA device nothing is timed: the kernels run
in Triton's interpreter on tiny shapes, and every figure is marked "not measured".
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch

ON_GPU = torch.cuda.is_available()
if not ON_GPU:
    # Triton decides when it is first imported, and transformers imports it
    os.environ["TRITON_INTERPRET"] = "1"

from measure import paired_ratio, write_json
from rich.console import Console
from rich.table import Table
from transformers import GPTNeoConfig, GPTNeoForCausalLM, MambaConfig, MambaForCausalLM

import manticore
from manticore.kernels import scan_mamba_ssm, scan_torch, scan_triton
from manticore.kernels.mamba import fast_scan
from manticore.kernels.scan_contract import Inputs

NOT_MEASURED = "not measured"
SHAPES = ((8, 1536, 2048, 16), (1, 1536, 2048, 16), (1, 1536, 16384, 16), (4, 5120, 1024, 16), (8, 1536, 2048, 64))
"""(batch, channels, steps, state size)"""
TINY = ((2, 3, 20, 4), (1, 2, 70, 16), (1, 2, 13, 5))
BARS = {"forward": 3.0, "backward": 4.0}
EXPONENTIALS_PER_CLOCK = 16
"""Of one multiprocessor, compute capability 8.0 and 9.0 (CUDA programming guide, arithmetic instructions)."""
MIXING_BAR = 0.05


def make(shape: tuple[int, int, int, int], dtype: torch.dtype, device: str) -> Inputs:
    """Everything that a Mamba layer passes: parameters in float32, sequences in ``dtype``."""
    batch, channels, steps, state_size = shape
    generator = torch.Generator(device).manual_seed(0)

    def normal(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, generator=generator, device=device)

    return Inputs(
        u=normal(batch, channels, steps).to(dtype),
        delta=(0.5 * normal(batch, channels, steps) - 2).to(dtype),
        A=-torch.arange(1.0, state_size + 1, device=device).repeat(channels, 1),
        B=normal(batch, state_size, steps).to(dtype),
        C=normal(batch, state_size, steps).to(dtype),
        D=normal(channels),
        z=normal(batch, channels, steps).to(dtype),
        delta_bias=normal(channels),
        initial_state=None,
        delta_softplus=True,
    )


def worst_error(path: Any, inputs: Inputs) -> float:
    """Largest error of output and gradients against float64, relative to the largest value of each tensor."""
    out, _, states = path.forward(inputs, True)
    grad_out = torch.ones_like(out)
    found = path.backward(inputs, states, grad_out, None)
    doubles = inputs.map(torch.Tensor.double)
    expected_out, _, expected_states = scan_torch.forward(doubles, True)
    expected = scan_torch.backward(doubles, expected_states, grad_out.double(), None)
    pairs = [(out, expected_out), *((getattr(found, name), getattr(expected, name)) for name in inputs.tensors())]
    return max(((a.double() - b).abs().max() / b.abs().max()).item() for a, b in pairs)


def device_limits() -> dict[str, Any]:
    """Bytes and exponentials per second of the device, and where each figure comes from."""
    properties = torch.cuda.get_device_properties(0)
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    seconds = statistics.median(timed({"copy": lambda: target.copy_(source)}, rounds=20)["copy"])
    clock_hertz = properties.clock_rate * 1e3
    return {
        "device": properties.name,
        "bytes_per_second": 2 * source.numel() / seconds,
        "bytes_per_second_from": "measured: copy of 1 GiB, read and written",
        "exponentials_per_second": EXPONENTIALS_PER_CLOCK * properties.multi_processor_count * clock_hertz,
        "exponentials_per_second_from": f"16 per clock on {properties.multi_processor_count} multiprocessors at the "
        f"highest clock that torch reports, {clock_hertz / 1e9:.2f} GHz",
    }


def timed(candidates: Mapping[str, Callable[[], Any]], *, rounds: int, warmup: int = 3) -> dict[str, list[float]]:
    """Seconds on the device of each candidate, one value per round, candidates in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for round_ in range(warmup + rounds):
        for name, run in candidates.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            end.synchronize()
            if round_ >= warmup:
                seconds[name].append(start.elapsed_time(end) / 1e3)
    return seconds


def bounds(inputs: Inputs, limits: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Least seconds of each pass by bytes and by exponentials; every tensor is moved once, states stay on chip."""
    batch, channels, steps = inputs.u.shape
    state_size = inputs.A.shape[1]
    element = inputs.u.element_size()
    sequence, projection = batch * channels * steps, batch * state_size * steps
    exponentials = sequence * state_size / limits["exponentials_per_second"]
    bytes_ = {
        "forward": element * (4 * sequence + 2 * projection) + 4 * (channels * state_size + 2 * channels),
        "backward": element * (7 * sequence + 2 * projection) + 8 * projection + 8 * channels * state_size,
    }
    return {
        name: {"bytes_seconds": value / limits["bytes_per_second"], "exponentials_seconds": exponentials}
        for name, value in bytes_.items()
    }


def measure_shape(
    shape: tuple[int, int, int, int], dtype: torch.dtype, limits: Mapping[str, Any], rounds: int
) -> list[dict[str, Any]]:
    """One row for each pass, after a check of the results."""
    inputs = make(shape, dtype, "cuda")
    error = worst_error(scan_triton, make((1, min(shape[1], 64), min(shape[2], 512), shape[3]), dtype, "cuda"))
    paths = {"triton": scan_triton}
    if scan_mamba_ssm.problem() is None and scan_mamba_ssm.takes(inputs):
        paths["mamba_ssm"] = scan_mamba_ssm
    grad_out = torch.randn_like(inputs.u)
    saved = {name: path.forward(inputs, True).states for name, path in paths.items()}
    runs: dict[str, dict[str, Callable[[], Any]]] = {
        "forward": {name: lambda path=path: path.forward(inputs, True) for name, path in paths.items()},
        "backward": {
            name: lambda name=name, path=path: path.backward(inputs, saved[name], grad_out, None)
            for name, path in paths.items()
        },
    }
    rows = []
    for name, least in bounds(inputs, limits).items():
        seconds = timed(runs[name], rounds=rounds)
        own = statistics.median(seconds["triton"])
        ratio = own / max(least.values())
        row = {"shape": list(shape), "dtype": str(dtype).removeprefix("torch."), "pass": name, "error": error}
        row |= {"seconds": own, **least, "ratio": ratio, "bar": BARS[name], "met": ratio <= BARS[name]}
        row["mamba_ssm_seconds"] = NOT_MEASURED
        if "mamba_ssm" in seconds:
            row["mamba_ssm_seconds"] = statistics.median(seconds["mamba_ssm"])
            row["met"] = row["met"] and paired_ratio(seconds["triton"], seconds["mamba_ssm"]) <= 1
        rows.append(row)
    return rows


def supernet_step(rounds: int) -> dict[str, Any]:
    """Training step (bfloat16 autocast) of a supernet of a GPT-Neo of 125M and a Mamba of 130M, and of each alone."""
    gpt_neo = GPTNeoForCausalLM(
        GPTNeoConfig(hidden_size=768, num_layers=12, num_heads=12, attention_types=[[["global", "local"], 6]])
    )
    parents = [gpt_neo, MambaForCausalLM(MambaConfig(hidden_size=768, num_hidden_layers=24, vocab_size=50257))]
    supernet = manticore.combine(parents, num_blocks=3)
    models = {"gpt_neo": parents[0], "mamba": parents[1], "supernet": supernet}
    input_ids = torch.randint(0, 50257, (4, 1024), device="cuda")

    def step(model: Any) -> None:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = model(input_ids=input_ids, labels=input_ids, use_cache=False).loss
        loss.backward()
        model.zero_grad(set_to_none=True)

    for model in models.values():
        model.to("cuda").train()
    with fast_scan(parents[1]), fast_scan(supernet):
        seconds = timed({name: lambda model=model: step(model) for name, model in models.items()}, rounds=rounds)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    together = [a + b for a, b in zip(seconds["gpt_neo"], seconds["mamba"])]
    share = 1 - 1 / paired_ratio(seconds["supernet"], together)
    return {"seconds": medians, "mixing_share": share, "bar": MIXING_BAR, "met": share <= MIXING_BAR}


def interpreted() -> dict[str, Any]:
    """Correctness on tiny shapes; what a GPU would have to say is marked as missing."""
    checks = [
        {"shape": list(shape), "dtype": str(dtype).removeprefix("torch."), "error": worst_error(scan_triton, inputs)}
        for shape in TINY
        for dtype in (torch.float32, torch.bfloat16)
        for inputs in (make(shape, dtype, "cpu"),)
    ]
    rows = [
        {"shape": list(shape), "dtype": "bfloat16", "pass": name, "bar": bar}
        | dict.fromkeys(
            ("seconds", "bytes_seconds", "exponentials_seconds", "ratio", "mamba_ssm_seconds"), NOT_MEASURED
        )
        for shape in SHAPES
        for name, bar in BARS.items()
    ]
    step = {"seconds": NOT_MEASURED, "mixing_share": NOT_MEASURED, "bar": MIXING_BAR}
    return {"device": NOT_MEASURED, "interpreted": checks, "passes": rows, "supernet_step": step}


def show(figures: Mapping[str, Any]) -> None:
    """Print the tables."""
    console = Console(width=130)

    def microseconds(value: Any) -> str:
        return value if isinstance(value, str) else f"{value * 1e6:.0f}"

    if "interpreted" in figures:
        table = Table("shape (B, D, L, N)", "dtype", "largest relative error", title="interpreted, against float64")
        for row in figures["interpreted"]:
            table.add_row(str(tuple(row["shape"])), row["dtype"], f"{row['error']:.1e}")
        console.print(table)
    else:
        console.print(figures["device"])
    columns = (
        "shape (B, D, L, N)",
        "dtype",
        "pass",
        "µs",
        "bytes µs",
        "exp µs",
        "÷ larger",
        "bar",
        "mamba_ssm µs",
        "met",
    )
    table = Table(*columns, title="one pass on the GPU")
    for row in figures["passes"]:
        ratio = row["ratio"] if isinstance(row["ratio"], str) else f"{row['ratio']:.1f}"
        times = [microseconds(row[name]) for name in ("seconds", "bytes_seconds", "exponentials_seconds")]
        met = {True: "pass", False: "FAIL", None: NOT_MEASURED}[row.get("met")]
        last = (ratio, str(row["bar"]), microseconds(row["mamba_ssm_seconds"]), met)
        table.add_row(str(tuple(row["shape"])), row["dtype"], row["pass"], *times, *last)
    console.print(table)
    console.print("supernet step:", figures["supernet_step"])


def main() -> int:
    """Measure what there is to measure; fail where a bar is missed or a result is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    if ON_GPU:
        limits = device_limits()
        dtypes = (torch.bfloat16, torch.float32)
        rows = [
            row for shape in SHAPES for dtype in dtypes for row in measure_shape(shape, dtype, limits, arguments.rounds)
        ]
        figures = {"device": limits, "passes": rows, "supernet_step": supernet_step(arguments.rounds)}
    else:
        figures = interpreted()
    show(figures)
    print(f"written to {write_json('scan_gpu', figures)}")
    checked = [*figures.get("interpreted", ()), *(row for row in figures["passes"] if "error" in row)]
    right = all(row["error"] <= (2e-6 if row["dtype"] == "float32" else 2**-6) for row in checked)
    met = all(row.get("met", True) for row in (*figures["passes"], figures["supernet_step"]))
    return 0 if right and met else 1


if __name__ == "__main__":
    sys.exit(main())
