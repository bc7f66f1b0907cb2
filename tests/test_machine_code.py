"""Machine code, read from small texts as cuobjdump writes them; tests/test_roofline.py reads a real kernel's."""

import pytest
from sass import sass

from dogo_fast.bench.reports.machine_code import Code, access_bytes, count, hot_loops, loops, parse

PRINTED = """
	code for sm_90a
		Function : kernel
	.headerflags	@"EF_CUDA_SM90"
        /*0000*/                   LDC R1, c[0x0][0x28] ;                     /* 0x00000a00ff017b82 */
                                                                              /* 0x000e700000000800 */
        /*0010*/                   MUFU.EX2 R5, R4 ;                          /* 0x0000000400057308 */
        /*0020*/              @!P0 BRA 0x10 ;                                 /* 0xfffffffc00f88947 */
        /*0030*/                   EXIT ;                                     /* 0x000000000000794d */
"""


def test_instructions_are_read_as_cuobjdump_prints_them() -> None:
    load, exponential, branch, leave = parse(PRINTED)
    assert (load.address, load.opcode, load.operands) == (0, "LDC", "R1, c[0x0][0x28]")
    assert exponential.kind == "exp2" and exponential.name == "MUFU"
    assert (branch.predicate, branch.target) == ("!P0", 0x10)
    assert leave.name == "EXIT" and leave.target is None


@pytest.mark.parametrize("text", ["", PRINTED + PRINTED])
def test_text_that_is_not_one_function_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="one function"):
        parse(text)


@pytest.mark.parametrize(
    ("opcode", "kind"),
    [
        ("HGMMA.64x128x16.F32.BF16", "product"), ("HMMA.16816.F32.BF16", "product"), ("UTCHMMA", "product"),
        ("MUFU.EX2", "exp2"), ("MUFU.RCP", "special"), ("I2F.U8", "conversion"), ("F2FP.BF16.F32.PACK_AB", "packing"),
        ("FFMA", "fp32"), ("FADD2", "fp32"), ("HFMA2.MMA", "fp32"), ("IMAD.WIDE", "multiply"), ("DFMA", "other"),
        ("FSEL", "integer"), ("FMNMX", "integer"), ("FSETP.GT.AND", "integer"), ("LOP3.LUT", "integer"),
        ("MOV", "integer"), ("LDS.128", "shared"), ("STSM.16.M88.4", "shared"), ("SHFL.BFLY", "shuffle"),
        ("LDGSTS.E.BYPASS.128", "other"), ("UTMALDG.2D", "other"), ("LDGDEPBAR", "other"), ("LDL.64", "local"),
        ("STL", "local"), ("LDTM.x32", "other"), ("BAR.SYNC", "other"), ("WARPGROUP.ARRIVE", "other"),
        ("UTCBAR", "other"), ("UIADD3", "other"), ("R2UR", "other"), ("LDC", "other"), ("BRA.U", "other"),
    ],
)  # fmt: skip
def test_classes(opcode: str, kind: str) -> None:
    assert parse(sass(opcode + " R0"))[0].kind == kind


def test_a_loop_and_what_it_counts() -> None:
    """A pipelined loop with a mask that few iterations take, and a spill."""
    code = parse(
        sass(
            "LDC R1, c[0x0][0x28]",
            "top: BAR.SYNC.DEFER_BLOCKING 0x0",
            "@!PT LDS RZ, [RZ]",
            "HGMMA.64x64x16.F32.BF16 R24, gdesc[UR16], RZ, !UPT",
            "HGMMA.64x128x16.F32.BF16 R24, R152, gdesc[UR8].tnspB, R24, gsb0",
            "FFMA R4, R4, R5, -R5",
            "FADD2 R4, R4, R5",
            "MUFU.EX2 R5, R4",
            "@P2 BRA {unmasked}",
            "FSEL R5, R5, RZ, P3",
            "FSEL R6, R6, RZ, P3",
            "unmasked: STL [R1], R5",
            "LDL R5, [R1]",
            "LDS.128 R8, [R127+0x10000]",
            "LDGSTS.E.BYPASS.128 [R99], desc[UR34][R88.64], !P5",
            "@!P0 BRA {top}",
            "STG.E [R2], R5",
            "EXIT",
            "end: BRA {end}",
        )
    )
    (loop,) = loops(code)
    instructions, inner = loop.path()
    assert (loop.head, len(loop.instructions), len(instructions), inner) == (0x10, 15, 13, [])
    counts = count(instructions)
    assert counts.issued == 13 and "integer" not in counts.classes and counts.classes["local"] == 2
    assert counts.classes["shared"] == 1 and counts.classes["other"] == 5  # the filler is no load
    assert (counts.fp32, counts.fused) == (3, 1)
    # a quarter each: 64 × 64 × 16 and 64 × 128 × 16 multiply-adds of a warpgroup
    assert counts.flop == {"BF16": (2 * 64 * 64 * 16 + 2 * 64 * 128 * 16) // 4}
    # the first reads 64 rows and 64 keys of 32 bytes, the second 128 keys: its rows lie in registers
    assert counts.operand_bytes == (32 * (64 + 64) + 32 * 128) // 4
    assert counts.bank_bytes == counts.operand_bytes + 128 + 32 * 16  # lanes may load the same address
    assert hot_loops([loop]) == [loop]


@pytest.mark.parametrize(
    ("opcode", "dtype", "flop"),
    [
        ("HGMMA.64x32x16.F32", "F16", 2 * 64 * 32 * 16 // 4), ("HGMMA.64x32x8.F32.TF32", "TF32", 2 * 64 * 32 * 8 // 4),
        ("HMMA.16816.F32", "F16", 4096), ("HMMA.1688.F32.TF32", "TF32", 2048),
    ],
)  # fmt: skip
def test_products_of_other_types(opcode: str, dtype: str, flop: int) -> None:
    counts = count(parse(sass(f"{opcode} R24, R152, gdesc[UR8], R24")))
    assert counts.flop == {dtype: flop}
    assert counts.operand_bytes == (32 * 32 // 4 if opcode.startswith("HGMMA") else 0)


def test_the_usual_path_leaves_out_no_product_and_no_exponential() -> None:
    """The shorter way round would skip the work."""
    code = parse(sass("top: IADD3 R0, R0, R1, R2", "@P0 BRA {skipped}", "MUFU.EX2 R5, R4", "FADD R5, R5, R5",
                      "skipped: @!P0 BRA {top}", "EXIT"))  # fmt: skip
    assert count(loops(code)[0].path()[0]).classes["exp2"] == 1


def test_loops_within_loops() -> None:
    code = parse(
        sass(
            "MOV R0, RZ",
            "outer: HMMA.16816.F32.BF16 R0, R1, R2, R3",
            "inner: HMMA.16816.F32.BF16 R4, R1, R2, R4",
            "@P1 BRA {inner}",
            "MUFU.EX2 R4, R4",
            "@P0 BRA {outer}",
            "small: FADD R0, R0, R1",
            "@P2 BRA {small}",
            "EXIT",
        )
    )
    found = loops(code)
    outer, small = found
    (inner,) = outer.inner
    assert [each.head for each in (outer, inner, small)] == [0x10, 0x20, 0x60] and not small.inner
    instructions, passed = outer.path()
    assert passed == [inner] and count(instructions).flop == {"BF16": 2 * 16 * 8 * 16}
    assert count(inner.path()[0]).flop == {"BF16": 2 * 16 * 8 * 16} and count(instructions).issued == 3
    assert hot_loops(found) == [outer]


@pytest.mark.parametrize(("waits", "serialised"), [(1, False), (4, True), (0, False)])
def test_products_that_wait_for_each_other_are_seen(waits: int, serialised: bool) -> None:
    lines = ["HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], R24"] * 4 + ["WARPGROUP.DEPBAR.LE gsb0, 0x0"] * waits
    assert Code(255, 0, parse(sass(*lines, "EXIT"))).serialised is serialised
    assert not Code(255, 0, parse(sass("WARPGROUP.DEPBAR.LE gsb0, 0x0", "EXIT"))).serialised


def test_a_loop_that_only_repeats_others_is_not_the_hot_one() -> None:
    """Row blocks around tiles, which have the products: of rows of one chunk, and of several."""
    lines = [
        "blocks: MOV R0, RZ",
        "tiles: HMMA.16816.F32.BF16 R0, R1, R2, R3",
        "chunks: HMMA.16816.F32.BF16 R4, R1, R2, R4",
        "@P1 BRA {chunks}",
        "@P0 BRA {tiles}",
        "@P2 BRA {blocks}",
        "EXIT",
    ]
    (blocks,) = found = loops(parse(sass(*lines)))
    (tiles,) = blocks.inner
    assert tiles.inner and hot_loops(found) == [tiles]


def test_bytes_of_an_access() -> None:
    sizes = {"LDS": 4, "LDS.64": 8, "STS.128": 16, "LDG.E.U8": 1, "STS.U16": 2, "LDSM.16.M88.4": 16, "LDSM.16.M88": 4}
    assert {opcode: access_bytes(opcode) for opcode in sizes} == sizes
