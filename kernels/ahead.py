"""Compile the attention kernels for a card that is not here, and read what the compiler made of them.

A Triton kernel that compiles may still ask for more shared memory than the card has (found out at launch), spill
registers to memory, or miss the tensor cores. All of it can be read from the machine code (SASS), without a card.

Instructions counted by name, seen in the disassembly of these kernels with triton 3.7.1:

    sm_80, 86, 89   HMMA      one warp, operands in registers
    sm_90           HGMMA     a warp group (four warps), second operand in shared memory
    sm_100          UTCHMMA   one thread starts it, result in tensor memory
    sm_75           none      Triton makes tensor-core code from sm_80 on (its pull request 5066); FFMA instead
    all             LDL, STL  loads and stores of local memory: registers that were spilled
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from .launch import Launch, padded

KERNELS = {"forward": "forward_kernel", "dq": "dq_kernel", "dkv": "dkv_kernel"}
DTYPES = {"fp32": "*fp32", "fp16": "*fp16", "bf16": "*bf16"}
ROWS = ("q", "q_hat", "k", "v", "o", "do", "dq", "dk", "dv")     # tensors in the dtype of q
ANGLES = ("cos", "sin")                                          # half precision beside bfloat16, as ``attention`` makes them
FLOATS = ("scale", "unit", "inner", "eps")
INDICES = ("sees", "seen_by", "position")
REGISTERS = 65_536                                               # 32-bit registers of a multiprocessor, all of these cards
TENSOR_MEMORY = 512                                              # its columns of tensor memory (sm_100)


class Multiprocessor(NamedTuple):
    """What one multiprocessor holds (CUDA C++ programming guide, technical specifications per compute capability)."""

    shared_program: int  # bytes of shared memory one program may use
    shared: int          # bytes for all programs; each also costs ``reserved``
    reserved: int
    warps: int
    programs: int


CARDS = {"sm_75": Multiprocessor(65_536, 65_536, 0, 32, 16), "sm_80": Multiprocessor(166_912, 167_936, 1024, 64, 32),
         "sm_86": Multiprocessor(101_376, 102_400, 1024, 48, 16), "sm_89": Multiprocessor(101_376, 102_400, 1024, 48, 24),
         "sm_90": Multiprocessor(232_448, 233_472, 1024, 64, 32), "sm_100": Multiprocessor(232_448, 233_472, 1024, 64, 32)}
SHARED_LIMIT = {architecture: card.shared_program for architecture, card in CARDS.items()}


@dataclass(frozen=True)
class Compiled:
    """One kernel in machine code. Bytes for shared and stack; counts of instructions for the rest."""

    registers: int
    stack: int           # bytes a thread, holding spilled registers
    shared: int
    tensor_memory: int   # columns
    mma: int             # matrix instructions: HMMA
    wgmma: int           #                      HGMMA
    tcgen05: int         #                      UTCHMMA
    spill_loads: int
    spill_stores: int
    loop: float          # instructions a thread issues for one block: mean of the loop over whole blocks and that over edges
    loop_spills: int     # spill loads and stores inside those loops

    def matrix(self, architecture: str) -> int:
        """How many of the fastest matrix instructions that this card has."""
        return {"sm_90": self.wgmma, "sm_100": self.tcgen05}.get(architecture, self.mma)

    def fits(self, architecture: str) -> bool:
        """Whether a program can start at all."""
        return self.shared <= CARDS[architecture].shared_program and self.tensor_memory <= TENSOR_MEMORY

    def programs(self, architecture: str, warps: int) -> int:
        """Programs that one multiprocessor holds at once, by registers, memory and warps."""
        card = CARDS[architecture]
        if not self.fits(architecture):
            return 0
        eights = -(-self.registers // 8) * 8  # registers are handed out in eights a thread
        return min(REGISTERS // (32 * warps * eights), card.shared // (self.shared + card.reserved), card.warps // warps,
                   card.programs, TENSOR_MEMORY // max(self.tensor_memory, 1))


def compile_ahead(direction: str, architecture: str, head_dim: int, launch: Launch, *, dtype: str = "bf16",
                  norm: bool = True, rope: bool = True, softcap: bool = False, group: int = 1) -> Compiled:
    """Compile one kernel for ``architecture`` ('sm_90'); needs triton, no card. Raises what the compiler raises.

    Pointers, strides and the number of tokens are taken as multiples of 16, as Triton finds them in training.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from . import attention_triton
    import triton.language as tl

    kernel = getattr(attention_triton, KERNELS[direction])
    dot = {"fp32": tl.float32, "fp16": tl.float16, "bf16": tl.bfloat16}[dtype]
    constants = {"GROUP": group, "E": head_dim // 2, "HALF": padded(head_dim) // 2, "BLOCK_M": launch.block_m,
                 "BLOCK_N": launch.block_n, "NORM": norm, "ROPE": rope, "SOFTCAP": softcap, "DOT": dot, "PRECISION": "tf32"}
    absent = ([] if norm else ["q_gain", "k_gain", "dq_gain", "dk_gain"]) + ([] if rope else ["position", "cos", "sin"])
    constants |= {name: None for name in absent if name in kernel.arg_names}
    signature = {name: "constexpr" if name in constants else _type(name, dtype) for name in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names)
               if signature[name].startswith("*") or signature[name] == "i32"}
    target = GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)
    compiled = triton.compile(ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned), target=target,
                              options={"num_warps": launch.warps, "num_stages": launch.stages})
    return read(compiled.asm["cubin"], compiled.metadata.shared, getattr(compiled.metadata, "tmem_size", None) or 0)


def _type(name: str, dtype: str) -> str:
    if name in ROWS:
        return DTYPES[dtype]
    if name in ANGLES and dtype == "bf16":
        return "*fp16"
    if name in INDICES:
        return "*i32"
    if name in FLOATS:
        return "fp32"
    return "i32" if name == "n" or name.endswith(("_row", "_head")) else "*fp32"


def read(cubin: bytes, shared: int, tensor_memory: int = 0) -> Compiled:
    """Registers, stack and instruction counts of a cubin, by the disassembler that comes with triton."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        environment = os.environ | {"PATH": f"{tool.parent}:{os.environ.get('PATH', '')}"}
        usage, sass = (subprocess.run([tool, flag, path], capture_output=True, text=True, check=True, env=environment).stdout
                       for flag in ("-res-usage", "-sass"))
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    code = instructions(sass)
    count = Counter(name.partition(".")[0] for _, name, _ in code)
    loops = block_loops(code)
    return Compiled(int(registers), int(stack), shared, tensor_memory, count["HMMA"], count["HGMMA"], count["UTCHMMA"],
                    count["LDL"], count["STL"], sum(map(len, loops)) / max(len(loops), 1),
                    sum(name.partition(".")[0] in ("LDL", "STL") for loop in loops for name in loop))


def instructions(sass: str) -> list[tuple[int, str, str]]:
    """(address, name with its suffixes, operands) of each line such as ``/*01b0*/ @!UP1 BRA 0x40 ;``."""
    line = r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);"
    return [(int(address, 16), name, rest) for address, name, rest in re.findall(line, sass, flags=re.M)]


def block_loops(code: list[tuple[int, str, str]]) -> list[list[str]]:
    """Names of the instructions in each loop over blocks: the innermost loops that take exponentials.

    A loop ends in a jump back. Jumps that stand behind the last EXIT belong to waiting loops kept out of line.
    """
    end = max((address for address, name, _ in code if name == "EXIT"), default=0)  # none: only a trap, nothing fits
    jumps = [(int(target.group(1), 16), address) for address, name, rest in code
             if name.startswith("BRA") and address < end and (target := re.search(r"0x([0-9a-f]+)", rest))]
    bodies = {(low, high): [name for address, name, _ in code if low <= address <= high] for low, high in jumps if low < high}
    bodies = {place: body for place, body in bodies.items() if any(name == "MUFU.EX2" for name in body)}
    return [body for (low, high), body in bodies.items()
            if not any((low, high) != (a, b) and low <= a and b <= high for a, b in bodies)]
