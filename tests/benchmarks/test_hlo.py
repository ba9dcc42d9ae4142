"""The counter of optimised HLO, on small texts whose counts are worked out by hand."""

import pytest

from benchmarks.hlo import Counts, HloError, count, size

LAUNCH, SPEED = 1e-6, 1e9  # a kernel of 1,000 bytes takes as long as its launch


def counted(text, folder=""):
    return count(text, launch_seconds=LAUNCH, bytes_per_second=SPEED, folder=folder)


def entry(body, computations="", head=""):
    return f"HloModule m\n\n{head}\n{computations}\n\nENTRY %main (p: f32[10]) -> f32[10] {{\n{body}\n}}\n"


def of(body, computations=""):
    return counted(entry(body, computations))[0]


P = "  %p = f32[10]{0} parameter(0)\n"
ADDED = """
%added (a: f32[10], b: f32[10]) -> f32[10] {
  %a = f32[10]{0} parameter(0)
  %b = f32[10]{0} parameter(1)
  %t = f32[10]{0} tanh(%a)
  ROOT %s = f32[10]{0} add(%t, %b)
}
"""


def test_a_fusion_is_one_kernel_that_reads_its_operands_and_writes_its_result():
    counts = of(P + "  ROOT %f = f32[10]{0} fusion(%p, %p), kind=kLoop, calls=%added", ADDED)
    assert counts == Counts(kernels=1, bytes=120, arithmetic=10, transcendentals=10, seconds=LAUNCH)


def test_shapes_of_all_types_have_bytes():
    assert size("(f32[2,3]{1,0}, /*index=1*/bf16[4]{0}, pred[], c64[2]{0}, token[], s4[3]{0}, f8e4m3fn[5]{0})") == (
        24 + 8 + 1 + 16 + 0 + 2 + 5
    )


LOOPS = """
%inner (c: (s32[], f32[10])) -> (s32[], f32[10]) {
  %c = (s32[], f32[10]{0}) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  %x = f32[10]{0} get-tuple-element(%c), index=1
  %y = f32[10]{0} fusion(%x, %x), kind=kLoop, calls=%added
  ROOT %r = (s32[], f32[10]{0}) tuple(%i, %y)
}

%outer (d: (s32[], f32[10])) -> (s32[], f32[10]) {
  %d = (s32[], f32[10]{0}) parameter(0)
  %w = (s32[], f32[10]{0}) while(%d), condition=%more, body=%inner, backend_config={"known_trip_count":{"n":"5"}}
  %z = f32[10]{0} get-tuple-element(%w), index=1
  %n = f32[10]{0} copy(%z)
  %j = s32[] get-tuple-element(%w), index=0
  ROOT %q = (s32[], f32[10]{0}) tuple(%j, %n)
}

%more (e: (s32[], f32[10])) -> pred[] {
  %e = (s32[], f32[10]{0}) parameter(0)
  %k = s32[] get-tuple-element(%e), index=0
  %five = s32[] constant(5)
  ROOT %l = pred[] compare(%k, %five), direction=LT
}
"""
LOOP = (
    P + "  %zero = s32[] constant(0)\n  %start = (s32[], f32[10]{0}) tuple(%zero, %p)\n"
    '  %v = (s32[], f32[10]{0}) while(%start), condition=%more, body=%outer, metadata={op_name="jit(f)/while"}'
    ', backend_config={"known_trip_count":{"n":"3"}}\n  ROOT %o = f32[10]{0} get-tuple-element(%v), index=1'
)


def test_a_loop_inside_a_loop_counts_as_often_as_it_runs():
    counts = of(LOOP, ADDED + LOOPS)
    assert (counts.kernels, counts.transcendentals) == (3 * (5 + 1), 3 * 5 * 10)
    assert counts.bytes == 3 * (5 * 120 + 80)


def test_a_loop_of_unknown_length_is_an_error_that_names_it():
    with pytest.raises(HloError, match=r"the loop v \(jit\(f\)/while\) has no known number"):
        of(LOOP.replace(', backend_config={"known_trip_count":{"n":"3"}}', ""), ADDED + LOOPS)
    with pytest.raises(HloError, match="no HLO module"):
        counted("nothing")


def test_a_conditional_counts_as_its_longest_branch():
    branches = "".join(
        f"\n%{name} ({name}x: f32[10]) -> f32[10] {{\n  %{name}x = f32[10]{{0}} parameter(0)\n{body}\n}}\n"
        for name, body in (
            ("short", "  ROOT %s1 = f32[10]{0} negate(%shortx)"),
            ("long", "  %l1 = f32[10]{0} negate(%longx)\n  ROOT %l2 = f32[10]{0} negate(%l1)"),
        )
    )
    listed = P + "  %i = s32[] constant(0)\n  ROOT %c = f32[10]{0} conditional(%i, %p, %p), branch_computations="
    assert of(listed + "{%short, %long}", branches).kernels == of(listed + "{%long, %short}", branches).kernels == 2
    named = P + "  %i = pred[] constant(0)\n  ROOT %c = f32[10]{0} conditional(%i, %p, %p), "
    assert of(named + "true_computation=%short, false_computation=%long", branches).kernels == 2


UPDATES = """
%updated (big: f32[100,10], row: f32[1,10], at: s32[]) -> f32[100,10] {
  %big = f32[100,10]{1,0} parameter(0)
  %row = f32[1,10]{1,0} parameter(1)
  %at = s32[] parameter(2)
  %zero = s32[] constant(0)
  %new = f32[1,10]{1,0} negate(%row)
  %flat = f32[100,10]{1,0} bitcast(%big)
  ROOT %u = f32[100,10]{1,0} dynamic-update-slice(%flat, %new, %at, %zero)
}

%both (big2: f32[100,10], row2: f32[1,10], at2: s32[]) -> (f32[100,10], f32[1,10]) {
  %big2 = f32[100,10]{1,0} parameter(0)
  %row2 = f32[1,10]{1,0} parameter(1)
  %at2 = s32[] parameter(2)
  %zero2 = s32[] constant(0)
  %new2 = f32[1,10]{1,0} negate(%row2)
  %u2 = f32[100,10]{1,0} dynamic-update-slice(%big2, %new2, %at2, %zero2)
  ROOT %t2 = (f32[100,10]{1,0}, f32[1,10]{1,0}) tuple(%u2, %new2)
}

%turned (big3: f32[100,10], at3: s32[]) -> f32[1,10] {
  %big3 = f32[100,10]{1,0} parameter(0)
  %at3 = s32[] parameter(1)
  %zero3 = s32[] constant(0)
  %old = f32[1,10]{1,0} dynamic-slice(%big3, %at3, %zero3), dynamic_slice_sizes={1,10}
  %last = f32[1,10]{1,0} slice(%big3), slice={[99:100], [0:10]}
  ROOT %sum = f32[1,10]{1,0} add(%old, %last)
}

%whole (big4: f32[100,10]) -> f32[1000] {
  %big4 = f32[100,10]{1,0} parameter(0)
  %first = f32[1,10]{1,0} slice(%big4), slice={[0:1], [0:10]}
  %one = f32[10]{0} bitcast(%first)
  %wide = f32[100,10]{1,0} broadcast(%one), dimensions={1}
  ROOT %s4 = f32[100,10]{1,0} add(%big4, %wide)
}
"""
BIG = "  %b = f32[100,10]{1,0} parameter(0)\n  %r = f32[1,10]{1,0} parameter(1)\n  %i = s32[] parameter(2)\n"


@pytest.mark.parametrize(
    ("body", "number"),
    [
        ("f32[100,10]{1,0} fusion(%b, %r, %i), kind=kLoop, calls=%updated", 40 + 40 + 4),
        # A fusion with another output writes the whole array.
        ("(f32[100,10]{1,0}, f32[1,10]{1,0}) fusion(%b, %r, %i), kind=kLoop, calls=%both", 4000 + 40 + 4 + 4000 + 40),
        ("f32[1,10]{1,0} fusion(%b, %i), kind=kLoop, calls=%turned", 40 + 40 + 4 + 40),
        ("f32[100,10]{1,0} fusion(%b), kind=kLoop, calls=%whole", 4000 + 4000),
        ("f32[100,10]{1,0} dynamic-update-slice(%b, %r, %i, %i)", 40 + 40),
        ("f32[1,10]{1,0} dynamic-slice(%b, %i, %i), dynamic_slice_sizes={1,10}", 40 + 40 + 4 + 4),
        ("f32[1,10]{1,0} slice(%b), slice={[0:1], [0:10]}", 40 + 40),
    ],
)
def test_slices_move_what_they_read_and_write(body, number):
    counts = of(BIG + f"  ROOT %f = {body}", UPDATES)
    assert (counts.kernels, counts.bytes) == (1, number)


def test_calls_and_asynchronous_operations():
    branch = (
        "\n%graph (g: f32[10]) -> f32[10] {\n  %g = f32[10]{0} parameter(0)\n  ROOT %m = f32[10]{0} negate(%g)\n}\n"
    )
    start = "((f32[10]{0}), f32[10]{0}, s32[])"
    body = f"""{P}  %c = f32[10]{{0}} call(%p), to_apply=%graph
  %s = {start} async-start(%c), calls=%graph
  %d = f32[10]{{0}} async-done(%s)
  %cs = (f32[10]{{0}}, f32[10]{{0}}, u32[]) copy-start(%d)
  ROOT %cd = f32[10]{{0}} copy-done(%cs)"""
    counts = of(body, branch)
    assert (counts.kernels, counts.bytes) == (3, 3 * 80)


def test_library_calls():
    body = """  %a = f32[8,4]{1,0} parameter(0)
  %b = f32[4,2]{1,0} parameter(1)
  %room = f32[1000]{0} custom-call(), custom_call_target="AllocateBuffer"
  %g = (f32[8,2]{1,0}, s8[4096]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", """
    body += 'backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}\n'
    body += '  ROOT %t = f32[4,2]{1,0} custom-call(%b), custom_call_target="__cublas$triangularSolve"'
    counts = of(body)
    assert (counts.kernels, counts.product_flops) == (2, 2 * 8 * 2 * 4)
    assert counts.bytes == (128 + 32 + 64) + (32 + 32)


def test_products_and_sums_inside_fusions():
    inside = """
%plus (u: f32[], v: f32[]) -> f32[] {
  %u = f32[] parameter(0)
  %v = f32[] parameter(1)
  ROOT %uv = f32[] add(%u, %v)
}

%product (a: f32[8,4], b: f32[4,2]) -> f32[8] {
  %a = f32[8,4]{1,0} parameter(0)
  %b = f32[4,2]{1,0} parameter(1)
  %d = f32[8,2]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %zero = f32[] constant(0)
  ROOT %r = f32[8]{0} reduce(%d, %zero), dimensions={1}, to_apply=%plus
}
"""
    body = "  %x = f32[8,4]{1,0} parameter(0)\n  %y = f32[4,2]{1,0} parameter(1)\n"
    counts = of(body + "  ROOT %f = f32[8]{0} fusion(%x, %y), kind=kCustom, calls=%product", inside)
    assert (counts.kernels, counts.product_flops, counts.arithmetic) == (1, 2 * 16 * 4, 16)


def test_collectives():
    body = P + "  %s = f32[10]{0} all-reduce-start(%p), to_apply=%plus\n  %d = f32[10]{0} all-reduce-done(%s)\n"
    counts = of(body + "  ROOT %g = f32[20]{0} all-gather(%d), dimensions={0}")
    assert (counts.collectives, counts.collective_bytes, counts.kernels) == (2, 80, 2)
    assert counts.bytes == (40 + 40) + (40 + 80)


def test_time_is_the_launch_or_the_bytes():
    body = "  %p = f32[1000]{0} parameter(0)\n  %n = f32[1000]{0} negate(%p)\n  %o = f32[1000]{0} negate(%n)\n"
    counts = of(body + "  ROOT %s = f32[10]{0} slice(%o), slice={[0:10]}")
    assert counts.seconds == pytest.approx(2 * 8e-6 + LAUNCH)


FRAMES = """FileNames
1 "/home/me/rhel/train.py"
2 "/home/me/rhel/models/stack.py"
3 "/usr/lib/site-packages/jax/numpy.py"

FunctionNames
1 "step"
2 "Block.__call__.<locals>.inner"
3 "tanh"

FileLocations
1 {file_name_id=1 function_name_id=1 line=3}
2 {file_name_id=2 function_name_id=2 line=7}
3 {file_name_id=3 function_name_id=3 line=9}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}
"""


def test_counts_by_function():
    ops = [
        'negate(%p), metadata={op_name="jit(f)/transpose(jvp())/neg" stack_frame_id=3}',
        'tanh(%n0), metadata={op_name="jit(f)/tanh" stack_frame_id=1}',
        "exponential(%n1)",
    ]
    body = P + "\n".join(f"  {'ROOT ' * (i == 2)}%n{i} = f32[10]{{0}} {op}" for i, op in enumerate(ops))
    total, rows = counted(entry(body, head=FRAMES), "/home/me/rhel")
    assert {name: counts.kernels for name, counts in rows.items()} == {
        "models/stack.py Block.__call__.inner, backward: neg [negate]": 1,
        "train.py step: tanh [tanh]": 1,
        "?: no name [exponential]": 1,
    }
    assert total == sum(rows.values(), Counts())
