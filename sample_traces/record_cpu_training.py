"""Record sample_traces/ddp_gloo and sample_traces/fsdp_gloo: a tiny GPT-2 trained on the CPU by four processes.

Needs PyTorch (recorded with 2.13, CPU build) and nothing of tracetool:

    python sample_traces/record_cpu_training.py OUTPUT_DIRECTORY

It writes OUTPUT_DIRECTORY/{ddp_gloo,fsdp_gloo}/rank<N>_trace.json.gz. Host and path names in the files' top-level
keys are replaced, so that the samples do not depend on where they were recorded; events are as the profiler wrote
them.
"""

from __future__ import annotations

import gzip
import json
import socket
import sys
import tempfile
from pathlib import Path

import torch
import torch.multiprocessing as mp
from torch import nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile, record_function, schedule

WORLD, LAYERS, WIDTH, HEADS, VOCAB, LENGTH, BATCH = 4, 2, 64, 4, 256, 32, 2
WARMUP_STEPS, RECORDED_STEPS = 2, 3


class Block(nn.Module):
    """One transformer layer: attention and MLP, each with its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output, same shape as its input [batch, length, width]."""
        batch, length, _ = x.shape
        heads = self.qkv(self.norm1(x)).view(batch, length, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        attention = functional.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
        x = x + self.out(attention.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class TinyGPT2(nn.Module):
    """A GPT-2 of two layers with learned positions and a tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCAB, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits [batch, length, vocabulary]."""
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.tokens.weight.T


def _wrapped(kind: str) -> nn.Module:
    model = TinyGPT2()
    if kind == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415 - not in every build of torch

    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    return model


def _train(rank: int, kind: str, rendezvous: str, output: str) -> None:
    torch.manual_seed(rank)
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=WORLD)
    model = _wrapped(kind)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    data = torch.utils.data.DataLoader(torch.randint(VOCAB, (256, LENGTH + 1)), batch_size=BATCH)
    batches = iter(data)
    with profile(
        activities=[ProfilerActivity.CPU],
        schedule=schedule(wait=0, warmup=WARMUP_STEPS, active=RECORDED_STEPS, repeat=1),
        record_shapes=True,
        profile_memory=True,
    ) as profiler:
        for _ in range(WARMUP_STEPS + RECORDED_STEPS):
            tokens = next(batches)
            with record_function("forward"):
                logits = model(tokens[:, :-1])
                loss = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            profiler.step()
    path = Path(output, f"{kind}_gloo", f"rank{rank}_trace.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(path))
    _pack(path)
    torch.distributed.destroy_process_group()


def _pack(path: Path) -> None:
    """Compress a trace reproducibly and take the recording machine's names out of its top-level keys."""
    text = path.read_text().replace(socket.gethostname(), "host.example")
    trace = json.loads(text)
    trace["traceName"] = path.name
    trace.pop("INFO", None)
    trace["traceEvents"] = [event for event in trace["traceEvents"] if event.get("ph") not in ("s", "f")]
    with gzip.GzipFile(f"{path}.gz", "wb", mtime=0) as packed:
        packed.write(json.dumps(trace, separators=(",", ":")).encode())
    path.unlink()


def main() -> None:
    """Record both runs below the directory named on the command line."""
    output = sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).parent)
    for kind in ("ddp", "fsdp"):
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(_train, args=(kind, f"{folder}/rendezvous", output), nprocs=WORLD)


if __name__ == "__main__":
    main()
