"""Instructions of whole warps and of memory, thread by thread as PTX ISA describes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.gpu.assemble import run_lines
from tests.gpu.machine import EmulationError, Machine

RANDOM = np.random.default_rng(0)
THREADS = 64


def words(count: int = THREADS) -> NDArray[np.uint32]:
    return RANDOM.integers(0, 2**32, count, np.uint32)


def result(machine: Machine, name: str) -> NDArray:
    return np.broadcast_to(machine.named[name], (machine.lanes,))


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
@pytest.mark.parametrize(
    ("distance", "clamp"), [(0, 31), (1, 31), (5, 31), (16, 31), (3, 0), (2, 0x181F), (1, 0x1C1F), (9, 0x1807)]
)
def test_shuffles(mode: str, distance: int, clamp: int) -> None:
    values = words()
    machine = run_lines(f"shfl.sync.{mode}.b32 %r1|%p1, %r2, {distance}, {clamp}, -1;", {"%r2": values}, THREADS)
    for thread in range(THREADS):
        # The pseudocode of PTX ISA, one lane at a time.
        lane, segment, last = thread % 32, clamp >> 8 & 31, clamp & 31
        highest, lowest = lane & segment | last & ~segment & 31, lane & segment
        source = {
            "up": lane - distance,
            "down": lane + distance,
            "bfly": lane ^ distance,
            "idx": lowest | distance & ~segment & 31,
        }[mode]
        valid = source >= highest if mode == "up" else source <= highest
        source = source if valid else lane
        assert result(machine, "%r1")[thread] == values[thread - lane + source]
        assert result(machine, "%p1")[thread] == valid


def decode(value: int, kind: str) -> float:
    bits = torch.tensor(value - 2**16 if value >= 2**15 else value, dtype=torch.int16)
    return bits.view(torch.float16 if kind == "f16" else torch.bfloat16).item()


def place_in_a(kind: str, depth: int, element: int, lane: int) -> tuple[int, int]:
    """Row and column of a thread's element of A, from the formulas under "Matrix Fragments for mma.m16n8k..."."""
    group, member = lane >> 2, lane % 4
    if kind == "tf32":
        return group if element in (0, 2) else group + 8, member if element < 2 else member + 4
    row = group if element < 2 or 4 <= element < 6 else group + 8
    return row, member * 2 + (element & 1) + (8 if element >= 4 else 0)


def place_in_b(kind: str, element: int, lane: int) -> tuple[int, int]:
    group, member = lane >> 2, lane % 4
    if kind == "tf32":
        return member + 4 * element, group
    return member * 2 + (element & 1) + (8 if element >= 2 else 0), group


@pytest.mark.parametrize(("kind", "depth"), [("f16", 16), ("bf16", 16), ("f16", 8), ("bf16", 8), ("tf32", 8)])
def test_matrix_products(kind: str, depth: int) -> None:
    count_a, count_b = (4, 2) if depth == 16 or kind == "tf32" else (2, 1)
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32}[kind]
    registers = {}
    for place in range(count_a + count_b):
        values = torch.randn(THREADS, 1 if kind == "tf32" else 2).to(dtype)
        registers[f"%r{10 + place}"] = (
            values.numpy().view(np.uint32).reshape(-1)
            if kind == "tf32"
            else values.view(torch.int16).numpy().view(np.uint32).reshape(-1)
        )
    for place in range(4):
        registers[f"%r{20 + place}"] = torch.randn(THREADS).numpy().view(np.uint32)
    names = [
        [f"%r{base + i}" for i in range(n)] for base, n in ((1, 4), (10, count_a), (10 + count_a, count_b), (20, 4))
    ]
    d, a, b, c = (f"{{{', '.join(part)}}}" for part in names)
    machine = run_lines(
        f"mma.sync.aligned.m16n8k{depth}.row.col.f32.{kind}.{kind}.f32 {d}, {a}, {b}, {c};", registers, THREADS
    )
    per_register = 1 if kind == "tf32" else 2
    for warp in range(THREADS // 32):
        matrix_a, matrix_b, total = np.zeros((16, depth)), np.zeros((depth, 8)), np.zeros((16, 8))
        for lane in range(32):
            thread = warp * 32 + lane
            for matrix, part, count in ((matrix_a, names[1], count_a), (matrix_b, names[2], count_b)):
                for element in range(count * per_register):
                    word = int(registers[part[element // per_register]][thread])
                    if kind == "tf32":
                        value = float(np.array([word & 0xFFFFE000], np.uint32).view(np.float32)[0])
                    else:
                        value = decode(word >> 16 * (element % 2) & 0xFFFF, kind)
                    at = (
                        place_in_a(kind, depth, element, lane)
                        if matrix is matrix_a
                        else place_in_b(kind, element, lane)
                    )
                    matrix[at] = value
            for element in range(4):
                row, column = (lane >> 2) + (8 if element >= 2 else 0), (lane % 4) * 2 + (element & 1)
                total[row, column] = registers[names[3][element]][thread : thread + 1].view(np.float32)[0]
        total += matrix_a @ matrix_b
        for lane in range(32):
            for element in range(4):
                row, column = (lane >> 2) + (8 if element >= 2 else 0), (lane % 4) * 2 + (element & 1)
                got = result(machine, names[0][element])[warp * 32 + lane : warp * 32 + lane + 1].view(np.float32)[0]
                assert got == pytest.approx(total[row, column], rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_loads_of_matrices(count: int, transposed: bool) -> None:
    values = words(4 * THREADS).reshape(THREADS, 4)
    rows = RANDOM.permutation(THREADS).astype(np.uint32) * 16
    registers = {f"%r{10 + i}": values[:, i].copy() for i in range(4)}
    registers |= {"%r2": np.arange(THREADS, dtype=np.uint32) * 16, "%r3": rows}
    to = ", ".join(f"%r{20 + i}" for i in range(count))
    machine = run_lines(
        "st.shared.v4.b32 [%r2], {%r10, %r11, %r12, %r13};\nbar.sync 0;\n"
        f"ldmatrix.sync.aligned.m8n8.x{count}{'.trans' if transposed else ''}.shared.b16 {{{to}}}, [%r3];",
        registers, THREADS, shared=16 * THREADS,
    )  # fmt: skip
    memory = values.view(np.uint16).reshape(-1)
    for thread in range(THREADS):
        lane = thread % 32
        for matrix in range(count):
            pair = []
            for element in (0, 1):
                row, column = lane // 4, lane % 4 * 2 + element
                row, column = (column, row) if transposed else (row, column)
                address = int(rows[thread - lane + 8 * matrix + row])
                pair.append(int(memory[address // 2 + column]))
            assert result(machine, f"%r{20 + matrix}")[thread] == pair[0] | pair[1] << 16


STORE_AND_LOAD = "st.shared.b32 [%r2], %r10;\n{between}\nld.shared.b32 %r1, [%r3];"


def shared_exchange(between: str, distance: int) -> tuple[Machine, NDArray, NDArray]:
    """Each thread stores a word and loads the one of the thread ``distance`` further."""
    values, own = words(), np.arange(THREADS, dtype=np.uint32) * 4
    registers = {"%r10": values, "%r2": own, "%r3": np.roll(own, -distance)}
    machine = run_lines(STORE_AND_LOAD.format(between=between), registers, THREADS, shared=4 * THREADS)
    return machine, result(machine, "%r1"), np.roll(values, -distance)


def test_words_of_another_warp_need_a_barrier() -> None:
    machine, got, wanted = shared_exchange("bar.sync 0;", 32)
    assert np.array_equal(got, wanted) and machine.shared.races == {}
    machine, got, wanted = shared_exchange("", 32)
    assert np.array_equal(got, wanted)
    assert list(machine.shared.races.values()) == [THREADS]
    machine, got, wanted = shared_exchange("", 0)
    assert np.array_equal(got, wanted) and machine.shared.races == {}


def test_two_warps_that_write_the_same_word_race() -> None:
    registers = {"%r2": np.arange(THREADS, dtype=np.uint32) % 32 * 4, "%r10": words()}
    assert run_lines("st.shared.b32 [%r2], %r10;", registers, THREADS, shared=128).shared.races
    same = {**registers, "%r10": np.tile(words(32), 2)}
    assert not run_lines("st.shared.b32 [%r2], %r10;", same, THREADS, shared=128).shared.races
    assert run_lines("st.shared.b32 [%r2], %r10;\nld.shared.b32 %r1, [%r2];", same, THREADS, shared=128).shared.races
    lines = "@%p1 st.shared.b32 [%r2], %r10;\nbar.sync 0;\n@!%p1 st.shared.b32 [%r2], %r10;"
    registers["%p1"] = np.arange(THREADS) < 32
    assert not run_lines(lines, registers, THREADS, shared=128).shared.races


def test_words_of_different_sizes_are_compared_byte_by_byte() -> None:
    own = np.arange(THREADS, dtype=np.uint32)
    registers = {"%r2": own * 4, "%r10": words(), "%r3": (own[::-1] // 4) * 16}
    lines = "st.shared.b32 [%r2], %r10;\nld.shared.v4.b32 {%r4, %r5, %r6, %r7}, [%r3];"
    assert run_lines(lines, registers, THREADS, shared=4 * THREADS).shared.races


def test_shared_memory_has_bounds_and_alignment() -> None:
    registers = {"%r2": np.arange(THREADS, dtype=np.uint32) * 4, "%r10": words()}
    with pytest.raises(EmulationError, match="shared store of 4 bytes out of bounds: byte 252 of 252 bytes"):
        run_lines("st.shared.b32 [%r2], %r10;", registers, THREADS, shared=252)
    with pytest.raises(EmulationError, match="misaligned shared store of 4 bytes: byte 2"):
        run_lines("st.shared.b32 [%r2+2], %r10;", registers, THREADS, shared=1024)


def test_what_was_never_written_is_not_read_as_a_number() -> None:
    with pytest.raises(EmulationError, match="reads a register that was never written"):
        run_lines("add.s32 %r1, %r2, 1;", {}, 32)
    machine = run_lines("ld.shared.b32 %r1, [0];", {}, 32, shared=16)
    assert np.isnan(result(machine, "%r1").view(np.float32)).all()
    machine = run_lines("@%p1 mov.b32 %r1, 5;", {"%p1": np.arange(32) < 3}, 32)
    assert np.isnan(result(machine, "%r1")[3:].view(np.float32)).all() and (result(machine, "%r1")[:3] == 5).all()


def test_narrow_and_wide_loads_and_moves() -> None:
    registers = {"%r2": np.arange(32, dtype=np.uint32) * 16, "%r10": words(32), "%r11": words(32)}
    lines = (
        "mov.b64 %rd1, {%r10, %r11};\nst.shared.b64 [%r2], %rd1;\nld.shared.b8 %rs1, [%r2+7];\nld.shared.s8 %rs2, [%r2+7];\n"
        "ld.shared.v4.b16 {%rs3, %rs4, %rs5, %rs6}, [%r2];\nmov.b32 %r3, {%rs5, %rs6};\nmov.b32 {%rs7, _}, %r11;\nmov.b64 {%r4, %r5}, %rd1;\nld.shared.s32 %rd2, [%r2];\nld.shared.b32 %rd3, [%r2];"
    )
    machine = run_lines(lines, registers, 32, shared=512)
    top = registers["%r11"] >> 24
    assert np.array_equal(result(machine, "%rs1"), top)
    assert np.array_equal(result(machine, "%rs2").view(np.int16), top.astype(np.uint8).view(np.int8))
    assert np.array_equal(result(machine, "%r3"), registers["%r11"])
    assert np.array_equal(result(machine, "%rd2").view(np.int64), registers["%r10"].view(np.int32))
    assert np.array_equal(result(machine, "%rd3"), registers["%r10"])
    assert np.array_equal(result(machine, "%rs7"), registers["%r11"] & 0xFFFF)
    assert np.array_equal(result(machine, "%r4"), registers["%r10"]) and np.array_equal(
        result(machine, "%r5"), registers["%r11"]
    )


def test_threads_that_part_meet_again() -> None:
    lines = """
    setp.lt.u32 %p1, %r2, 10;
    mov.b32 %r1, 0;
$L__loop:
    @%p1 bra $L__small;
    add.s32 %r1, %r1, 100;
    bra $L__join;
$L__small:
    add.s32 %r1, %r1, %r2;
$L__join:
    add.s32 %r3, %r3, -1;
    setp.gt.s32 %p2, %r3, 0;
    @%p2 bra $L__loop;
    bar.sync 0;
    add.s32 %r1, %r1, 1000;
    """
    thread = np.arange(THREADS, dtype=np.uint32)
    machine = run_lines(lines, {"%r2": thread, "%r3": thread % 4}, THREADS)
    rounds = np.maximum(thread % 4, 1)
    assert np.array_equal(result(machine, "%r1"), np.where(thread < 10, thread, 100) * rounds + 1000)


def test_a_barrier_that_some_threads_never_reach_is_an_error() -> None:
    lines = "@%p1 bra $L__past;\nbar.sync 0;\n$L__past:\nmov.b32 %r1, 0;"
    with pytest.raises(EmulationError, match=r"bar.sync 0.*a barrier that not all threads of the program reach"):
        run_lines(lines, {"%p1": np.arange(THREADS) < 5}, THREADS)
    machine = run_lines("@%p1 ret;\nbar.sync 0;\nmov.b32 %r1, 7;", {"%p1": np.arange(THREADS) < 5}, THREADS)
    assert (result(machine, "%r1")[5:] == 7).all()


def test_a_shuffle_by_some_threads_is_an_error() -> None:
    lines = "@%p1 bra $L__past;\nshfl.sync.bfly.b32 %r1, %r2, 1, 31, -1;\n$L__past:\nmov.b32 %r1, 0;"
    with pytest.raises(EmulationError, match="executed by some threads only"):
        run_lines(lines, {"%p1": np.arange(THREADS) < 5, "%r2": words()}, THREADS)
