"""Each operation of the engine beside PyTorch's, on the same sizes, with the same number of threads, in turn on the same machine.

    cargo xtask bench kernels [--only TEXT] [--rounds 5] [--markdown FILE]

Prints one line for each case: microseconds of both and their ratio, medians over the rounds; then how many are above 1.2, the aim, and which. Where PyTorch has no
operation of this kind, its side is what one writes there: a comment says what. PyTorch is that of the virtual environment of `bench vs-metatrain`.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import time

from environment import become

become()

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

AIM = 1.2
# As long as an answer of the other side takes.
LONG_ENOUGH = 0.06
THREADS = len(os.sched_getaffinity(0))


def between(shape, low, high, dtype):
    return torch.rand(shape, dtype=dtype) * (high - low) + low


def indices(shape, bound):
    return torch.randint(bound, tuple(shape))


def segments(count, size):
    return torch.arange(count).repeat_interleave(size)


def cases_of(dtype):
    """Pairs of a name and a function that makes the tensors and returns the call to be timed."""
    prefix = "f32" if dtype == torch.float32 else "f64"
    cases = {}

    def numbers(*shape):
        return between(shape, -1.0, 1.0, dtype)

    def forward(name, make, call):
        def prepare():
            tensors = make()
            return lambda: call(*tensors)

        cases[f"{prefix}/{name}"] = prepare

    def both(name, make, tracked, call):
        forward(name, make, call)

        def prepare():
            tensors = make()
            inputs = [tensors[place].requires_grad_() for place in range(tracked)]
            return lambda: torch.autograd.grad(call(*tensors).sum(), inputs)

        cases[f"{prefix}/{name} and gradients"] = prepare

    forward("add 1", lambda: (numbers(1), numbers(1)), torch.add)

    def chain():
        a = numbers(1).requires_grad_()

        def run():
            value = a
            for _ in range(100):
                value = value * a
            return torch.autograd.grad(value.sum(), a)

        return run

    cases[f"{prefix}/chain of 100 on 1 and gradients"] = chain
    other = torch.float64 if dtype == torch.float32 else torch.float32
    for count in [10_000, 1_000_000]:
        one = lambda low=-1.0, high=1.0, count=count: (lambda: (between((count,), low, high, dtype),))
        two = lambda count=count: (lambda: (numbers(count), numbers(count)))
        truths = lambda count=count: (lambda: (numbers(count) > 0, numbers(count) > -0.3))

        def unary(name, call, low=-1.0, high=1.0, count=count):
            forward(f"{name} {count}", one(low, high), call)

        def binary(name, call, count=count):
            forward(f"{name} {count}", two(), call)

        binary("add", torch.add)
        binary("multiply", torch.mul)
        binary("divide", torch.div)
        unary("add-scalar", lambda a: a + 0.3)
        unary("multiply-scalar", lambda a: a * 0.3)
        unary("power-scalar 2", lambda a: a**2.0, 0.5, 1.5)
        unary("power-scalar 1.5", lambda a: a**1.5, 0.5, 1.5)
        binary("maximum", torch.maximum)
        unary("clamp", lambda a: a.clamp(-0.5, 0.5))
        unary("negative", torch.neg)
        unary("reciprocal", torch.reciprocal, 0.5, 1.5)
        unary("absolute", torch.abs)
        unary("sign", torch.sign)
        unary("exp", torch.exp)
        unary("log", torch.log, 0.5, 1.5)
        unary("sqrt", torch.sqrt, 0.5, 1.5)
        unary("sin", torch.sin, -3.0, 3.0)
        unary("cos", torch.cos, -3.0, 3.0)
        unary("tanh", torch.tanh, -3.0, 3.0)
        unary("erf", torch.erf, -3.0, 3.0)
        unary("sigmoid", torch.sigmoid, -3.0, 3.0)
        both(f"silu {count}", one(-3.0, 3.0), 1, F.silu)
        binary("less", torch.lt)
        binary("equal", torch.eq)
        unary("is-finite", torch.isfinite)
        forward(f"logical-and {count}", truths(), torch.logical_and)
        forward(f"logical-not {count}", truths(), lambda a, _: torch.logical_not(a))
        forward(
            f"where {count}",
            lambda count=count: (numbers(count) > 0, numbers(count), between((count,), 1.0, 2.0, dtype)),
            torch.where,
        )
        unary("sum", torch.sum)
        forward(f"all {count}", lambda count=count: (numbers(count) > -2,), torch.all)
        unary("cast to int64", lambda a: a.to(torch.int64))
        unary("cast to the other float", lambda a: a.to(other))
        forward(f"full {count}", tuple, lambda count=count: torch.full((count,), 1.5, dtype=dtype))
        forward(f"arange {count}", tuple, lambda count=count: torch.arange(count))
        forward(f"random normal {count}", tuple, lambda count=count: torch.randn(count, dtype=dtype))
        forward(f"random uniform {count}", tuple, lambda count=count: torch.rand(count, dtype=dtype))
    both("add row 4096x128", lambda: (numbers(4096, 128), numbers(128)), 2, torch.add)
    both("multiply column 4096x128", lambda: (numbers(4096, 128), numbers(4096, 1)), 2, torch.mul)
    rows = lambda: (numbers(4096, 256),)
    forward("sum last 4096x256", rows, lambda a: a.sum(1))
    forward("sum first 4096x256", rows, lambda a: a.sum(0))
    forward("sum middle 64x64x256", lambda: (numbers(64, 64, 256),), lambda a: a.sum(1))
    forward("mean last 4096x256", rows, lambda a: a.mean(1))
    # With the place of each, as the gradient needs it.
    forward("maximum last 4096x256", rows, lambda a: a.max(1))
    forward("maximum first 4096x256", rows, lambda a: a.max(0))

    both("matmul 64", lambda: (numbers(64, 64), numbers(64, 64)), 2, torch.matmul)
    both("matmul 512", lambda: (numbers(512, 512), numbers(512, 512)), 2, torch.matmul)
    forward("matmul 1024", lambda: (numbers(1024, 1024), numbers(1024, 1024)), torch.matmul)
    both("matmul 2048x128x128", lambda: (numbers(2048, 128), numbers(128, 128)), 2, torch.matmul)
    both("matmul batched 256x32x64x32", lambda: (numbers(256, 32, 64), numbers(256, 64, 32)), 2, torch.matmul)
    forward("matmul batched 4096x8x8x8", lambda: (numbers(4096, 8, 8), numbers(4096, 8, 8)), torch.matmul)
    forward(
        "solve 256",
        lambda: (numbers(256, 256) + 256 * torch.eye(256, dtype=dtype), numbers(256, 1)),
        torch.linalg.solve,
    )

    both("softmax 256x8x32x32", lambda: (numbers(256, 8, 32, 32),), 1, lambda a: F.softmax(a, 3))
    wide = lambda: (numbers(4096, 128),)
    both("layer-norm 4096x128", wide, 1, lambda a: F.layer_norm(a, (128,), eps=1e-5))
    both("rms-norm 4096x128", wide, 1, lambda a: F.rms_norm(a, (128,), eps=1e-5))
    both("linear 4096x128x512", lambda: (numbers(4096, 128), numbers(512, 128), numbers(512)), 3, F.linear)
    both("linear 72x128x512", lambda: (numbers(72, 128), numbers(512, 128), numbers(512)), 1, F.linear)

    def gated(a):
        values, gates = a.chunk(2, dim=1)
        return values * torch.sigmoid(gates)

    both("gated-linear-unit 4096x512", lambda: (numbers(4096, 512),), 1, gated)
    for count, size in [(144, 9), (128, 32)]:
        # All segments have one size here, which is the best case for an operation that pads.
        def attention(q, k, v, bias, count=count, size=size):
            heads = lambda a: a.view(count, size, 8, 16).transpose(1, 2)
            out = F.scaled_dot_product_attention(heads(q), heads(k), heads(v), bias.view(count, 1, 1, size), scale=0.25)
            return out.transpose(1, 2).reshape(count * size, 128)

        make = lambda rows=count * size: (numbers(rows, 128), numbers(rows, 128), numbers(rows, 128), numbers(rows))
        both(f"attention {count}x{size}, 8 heads of 16", make, 3, attention)

    table = lambda: (numbers(20_000, 64), indices([100_000], 20_000))
    both("select 100000x64", table, 1, lambda a, at: a.index_select(0, at))
    both("select last 4096x256", lambda: (numbers(4096, 256), indices([64], 256)), 1, lambda a, at: a.index_select(1, at))
    zeros = lambda *shape: torch.zeros(shape, dtype=dtype)
    forward(
        "index-add 100000x64",
        lambda: (numbers(100_000, 64), indices([100_000], 20_000)),
        lambda a, at: zeros(20_000, 64).index_add_(0, at, a),
    )
    grid = lambda: (numbers(4096, 256), indices([4096, 256], 256))
    forward("gather 4096x256", grid, lambda a, at: a.gather(1, at))
    forward("scatter-add 4096x256", grid, lambda a, at: zeros(4096, 256).scatter_add_(1, at, a))
    # The products of all rows, and a sum over them.
    forward(
        "outer-sum 1024x8, 7 by 16",
        lambda: (numbers(8192, 7), numbers(8192, 16), segments(1024, 8)),
        lambda l, r, of: zeros(1024, 7, 16).index_add_(0, of, l[:, :, None] * r[:, None, :]),
    )
    # A product for each segment, as with the layers of a dictionary by species.
    by_species = lambda rows, blocks, of: torch.cat([rows[of == s] @ blocks[s] for s in range(4)])
    forward(
        "contract-left 4x256, 512 to 32",
        lambda: (numbers(1024, 512), numbers(4, 512, 32), segments(4, 256)),
        by_species,
    )
    forward(
        "contract-right 4x256, 32 to 512",
        lambda: (numbers(1024, 32), numbers(4, 512, 32), segments(4, 256)),
        lambda rows, blocks, of: by_species(rows, blocks.transpose(1, 2), of),
    )

    # A sum, because a permutation alone is another view of the same numbers on both sides.
    forward("permute 2048x1024 and add", lambda: (numbers(2048, 1024),), lambda a: (a.t() + 0.5).contiguous())
    forward("permute 256x64x64 and add", lambda: (numbers(256, 64, 64),), lambda a: (a.transpose(1, 2) + 0.5).contiguous())
    forward("reshape 4096x256", rows, lambda a: a.reshape(256, 4096))
    forward("broadcast-to 4096x256 and add", lambda: (numbers(4096, 1),), lambda a: (a.expand(4096, 256) + 0.5).contiguous())
    pair = lambda: (numbers(4096, 128), numbers(4096, 128))
    both("concatenate last 4096x(128, 128)", pair, 2, lambda a, b: torch.cat([a, b], 1))
    forward("concatenate first (4096, 4096)x128", pair, lambda a, b: torch.cat([a, b], 0))
    # A copy, as ours is: PyTorch's own slice is a view, whose readers pay.
    both("slice last 4096x256", rows, 1, lambda a: a[:, 64:192].contiguous())

    # The polynomials written out; sphericart, which is compiled, is no part of PyTorch.
    forward("solid-harmonics 100000, degree 4", lambda: (numbers(100_000, 3),), solid_harmonics)

    def piecewise(x, coefficients):
        place = (x / 5.0 * 64).long().clamp(0, 63)
        t = (x / 5.0 * 64 - place)[:, None]
        c = coefficients[place]
        return ((c[:, 3] * t + c[:, 2]) * t + c[:, 1]) * t + c[:, 0]

    forward(
        "piecewise-polynomial 100000, 16 cubics on 64 intervals",
        lambda: (between((100_000,), 0.0, 5.0, dtype), numbers(64, 4, 16)),
        piecewise,
    )

    def adam():
        parameters = [torch.nn.Parameter(numbers(128, 512)) for _ in range(20)]
        for parameter in parameters:
            parameter.grad = numbers(128, 512)
        return torch.optim.Adam(parameters, fused=True).step

    cases[f"{prefix}/adam 20 of 128x512"] = adam
    # The weights first: they are what is differentiated by.
    both(
        "network 4096x128",
        lambda: (numbers(128, 128), numbers(128, 128), numbers(4096, 128)),
        2,
        lambda v, w, a: F.linear(F.silu(F.linear(a, v)), w),
    )
    return cases


def solid_harmonics(r):
    """All solid harmonics up to degree 4 without their constant factors: what a straightforward program in PyTorch would do."""
    x, y, z = r[:, 0], r[:, 1], r[:, 2]
    x2, y2, z2 = x * x, y * y, z * z
    r2 = x2 + y2 + z2
    d2 = x2 - y2
    xy, yz, xz = x * y, y * z, x * z
    seven, five = 7 * z2 - r2, 5 * z2 - r2
    return torch.stack(
        [
            torch.ones_like(x), y, z, x, xy, yz, 3 * z2 - r2, xz, d2,
            y * (3 * x2 - y2), xy * z, y * five, z * (5 * z2 - 3 * r2), x * five, z * d2, x * (x2 - 3 * y2),
            xy * d2, yz * (3 * x2 - y2), xy * seven, yz * (7 * z2 - 3 * r2), 35 * z2 * z2 - 30 * z2 * r2 + 3 * r2 * r2,
            xz * (7 * z2 - 3 * r2), d2 * seven, xz * (x2 - 3 * y2), x2 * (x2 - 3 * y2) - y2 * (3 * x2 - y2),
        ],
        1,
    )  # fmt: skip


def seconds(call):
    """The seconds of one call, from as many as fit the time."""
    call()
    start, calls = time.perf_counter(), 0
    while time.perf_counter() - start < LONG_ENOUGH:
        call()
        calls += 1
    return (time.perf_counter() - start) / calls


class Engine:
    """The other side, which answers names with seconds."""

    def __init__(self, program):
        self.program = program
        self.process = subprocess.Popen([program], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def names(self):
        return subprocess.run([self.program, "--list"], text=True, check=True, capture_output=True).stdout.splitlines()

    def seconds(self, name):
        print(name, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        return float(answer) if answer else sys.exit(f"the engine ended at `{name}`")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", type=pathlib.Path, required=True, help="the other side; `cargo xtask bench` gives it")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose name contains it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--markdown", type=pathlib.Path, help="a file to write the table to, too")
    arguments = parser.parse_args()

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    peers = cases_of(torch.float32) | cases_of(torch.float64)
    engine = Engine(arguments.engine)
    names = engine.names()
    if set(names) != set(peers):
        sys.exit(f"the two sides have other cases: {sorted(set(names) ^ set(peers))}")
    print(f"PyTorch {torch.__version__}, {THREADS} threads each, medians over {arguments.rounds} rounds, microseconds")
    rows = []
    for name in (name for name in names if arguments.only in name):
        call = peers[name]()
        times = {"kilnbox": [], "torch": []}
        for _ in range(arguments.rounds):
            times["kilnbox"].append(engine.seconds(name))
            times["torch"].append(seconds(call))
        ours, theirs = (1e6 * statistics.median(times[side]) for side in ["kilnbox", "torch"])
        rows.append((name, ours, theirs, ours / theirs))
        print(f"ratio kernel {name}: {ours:.1f} over {theirs:.1f} = {ours / theirs:.2f}", flush=True)
    above = [row for row in rows if row[3] > AIM]
    print(f"{len(rows)} cases, {len(above)} above {AIM}: {', '.join(f'{name} ({ratio:.2f})' for name, _, _, ratio in above) or 'none'}")
    if arguments.markdown:
        lines = [f"| {name} | {ours:.1f} | {theirs:.1f} | {ratio:.2f} |" for name, ours, theirs, ratio in rows]
        arguments.markdown.write_text("\n".join(["| operation | Kilnbox, us | PyTorch, us | ratio |", "|---|---|---|---|", *lines, ""]))


if __name__ == "__main__":
    main()
