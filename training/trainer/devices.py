"""What a training runs on: devices, precision, processes."""

from __future__ import annotations

import os

import torch
from lightning_fabric import Fabric


def make_fabric(precision: str) -> Fabric:
    """Fabric on what there is: one process here, or as many as ``torchrun`` started."""
    bf16 = precision == "bfloat16" or (precision == "auto" and _multiplies_bfloat16())
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    nodes = int(os.environ.get("WORLD_SIZE", "1")) // processes
    return Fabric(
        accelerator="cuda" if torch.cuda.is_available() else "cpu",
        devices=processes,
        num_nodes=nodes,
        strategy="ddp" if processes * nodes > 1 else "auto",
        precision="bf16-mixed" if bf16 else "32-true",
    )


def _multiplies_bfloat16() -> bool:
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    processor = torch.cpu.get_capabilities()
    return bool(processor.get("avx512_bf16") or processor.get("amx_bf16"))


def leave_together(fabric: Fabric) -> None:
    """No process is done before the checkpoint is there."""
    if fabric.world_size > 1:
        fabric.barrier()
        torch.distributed.destroy_process_group()


def hardware_name() -> str:
    """GPU, or number of cores and kind of processor."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} cores of {torch.cpu.get_capabilities().get('cpu_name', 'a CPU')}"
