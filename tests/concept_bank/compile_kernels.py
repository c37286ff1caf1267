"""Compile the bank's Triton kernels for a GPU that need not be there, and print what ptxas says of their registers.

python -m tests.concept_bank.compile_kernels 90
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from megatron_ovenc.concept_bank import kernels

POINTERS = {
    "row_list": "*i64",
    "places": "*i64",
    "padding": "*i1",
    "samples": "i32",
    "rows": "i32",
    "owned": "i32",
    "blocks_a_part": "i32",
}
"""Types of arguments; the others are pointers to float32."""
CONSTANTS = {
    "WIDTH": 1024,
    "SLOTS": 8,
    "THRESHOLD": 0.75,
    "SAMPLED": True,
    "WEIGHTED": True,
    "PADDED": True,
    "SLOPES": True,
    "EPS": 1e-12,
    "BLOCK_N": kernels._BLOCK_N,
    "BLOCK_M": kernels._BLOCK_M,
    "BLOCK_D": kernels._BLOCK_D,
}


def registers(kernel: Any, capability: int, sigmoid: bool, half: bool) -> str:
    """ptxas's line about registers and spills."""
    constants = {"SIGMOID": sigmoid, "HALF": half, **CONSTANTS}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature = {name: "constexpr" if name in constants else POINTERS.get(name, "*fp32") for name in kernel.arg_names}
    if half and "out" in signature:
        signature["out"] = "*bf16"
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": kernels._WARPS})
    # The newest assembler of those that come with Triton, which knows its dialect of PTX.
    ptxas = max((Path(triton.__file__).parent / "backends" / "nvidia" / "bin").glob("ptxas*"))
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "kernel.ptx"
        text.write_text(compiled.asm["ptx"])
        suffix = "a" if capability == 90 else ""
        command = [str(ptxas), "-v", f"--gpu-name=sm_{capability}{suffix}", str(text), "-o", f"{folder}/kernel.cubin"]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        if said.returncode:
            raise SystemExit(said.stderr)
    return next(line.strip() for line in said.stderr.splitlines() if "spill" in line)


def main() -> None:
    """Command line."""
    for kernel, sigmoid, half in product((kernels._statistics, kernels._shares), (False, True), (False, True)):
        name = f"{kernel.fn.__name__} sigmoid={sigmoid} bf16={half}"
        print(f"{name}: {registers(kernel, int(sys.argv[1]), sigmoid, half)}")


if __name__ == "__main__":
    main()
