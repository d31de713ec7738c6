"""Writes oracle.json: what PyTorch computes for each operation of the contract, with first and second derivatives.

Needs torch and scipy (PyPI), any recent version; everything is in float64. Run it again after adding a case:

    python3 make_oracle.py
"""

import json
import math
import pathlib

import numpy
import scipy.special
import torch

torch.set_default_dtype(torch.float64)
generator = torch.Generator().manual_seed(20261124)
cases = []


def normal(*shape):
    return torch.randn(shape, generator=generator)


def positive(*shape):
    return 0.3 + 2.0 * torch.rand(shape, generator=generator)


def stored(tensor):
    values = tensor.detach().reshape(-1).tolist()
    return {"shape": list(tensor.shape), "values": values}


def case(name, function, *inputs, **arguments):
    """`function` of `inputs`, and two sets of derivatives: `gradients` are those of <output, cotangent>, `second` are
    those of the sum of <gradients[k], directions[k]>."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    output = function(*leaves)
    entry = {"name": name, "arguments": arguments, "inputs": [stored(x) for x in inputs], "output": stored(output)}
    if output.is_floating_point():
        cotangent = normal(*output.shape)
        directions = [normal(*leaf.shape) for leaf in leaves]
        gradients = [torch.zeros_like(leaf) for leaf in leaves]
        second = [torch.zeros_like(leaf) for leaf in leaves]
        if output.requires_grad:
            found = torch.autograd.grad((output * cotangent).sum(), leaves, create_graph=True, allow_unused=True)
            gradients = [zero if g is None else zero + g for g, zero in zip(found, gradients)]
            total = sum((g * d).sum() for g, d in zip(gradients, directions))
            if total.requires_grad:
                found = torch.autograd.grad(total, leaves, allow_unused=True)
                second = [zero if g is None else zero + g for g, zero in zip(found, second)]
        entry["cotangent"] = stored(cotangent)
        entry["directions"] = [stored(d) for d in directions]
        entry["gradients"] = [stored(g) for g in gradients]
        entry["second"] = [stored(s) for s in second]
    cases.append(entry)


# --- elementwise
for name, function in [("add", torch.add), ("subtract", torch.sub), ("multiply", torch.mul)]:
    case(f"elementwise.{name}", function, normal(2, 3), normal(2, 3))
    case(f"elementwise.{name}", function, normal(2, 1, 3), normal(4, 1))
    case(f"elementwise.{name}", function, normal(), normal(3, 2))
case("elementwise.divide", torch.div, normal(2, 3), positive(2, 3))
case("elementwise.divide", torch.div, normal(3), positive(2, 1))
case("elementwise.maximum", torch.maximum, normal(3, 2), normal(3, 2))
case("elementwise.minimum", torch.minimum, normal(3, 2), normal(2))
case("elementwise.add-scalar", lambda a: a + 1.7, normal(2, 3), scalar=1.7)
case("elementwise.multiply-scalar", lambda a: a * -0.6, normal(2, 3), scalar=-0.6)
for exponent in [0.0, 0.5, 1.0, 2.0, 3.0, -1.5]:
    case("elementwise.power-scalar", lambda a: torch.pow(a, exponent), positive(5), exponent=exponent)
case("elementwise.power-scalar", lambda a: torch.pow(a, 3.0), normal(5), exponent=3.0)
case("elementwise.clamp", lambda a: torch.clamp(a, -0.5, 0.8), normal(8), low=-0.5, high=0.8)
for name, function, sample in [
    ("negative", torch.neg, normal),
    ("reciprocal", torch.reciprocal, positive),
    ("absolute", torch.abs, normal),
    ("sign", torch.sign, normal),
    ("exp", torch.exp, normal),
    ("log", torch.log, positive),
    ("sqrt", torch.sqrt, positive),
    ("sin", torch.sin, normal),
    ("cos", torch.cos, normal),
    ("tanh", torch.tanh, normal),
    ("erf", torch.erf, normal),
    ("sigmoid", torch.sigmoid, normal),
    ("silu", torch.nn.functional.silu, normal),
]:
    case(f"elementwise.{name}", function, sample(3, 2))
    case(f"elementwise.{name}", function, sample())
ties = torch.tensor([0.5, -0.5, 1.0])
for name, function in [("equal", torch.eq), ("less", torch.lt), ("less-equal", torch.le)]:
    case(f"elementwise.{name}", function, ties, torch.tensor([[0.5], [1.0]]))
case("elementwise.is-finite", torch.isfinite, torch.tensor([1e308, -1.0, 0.0]))
mask = torch.tensor([True, False, True])
other = torch.tensor([[False], [True]])
case("elementwise.logical-and", lambda: mask & other, mask=stored(mask), other=stored(other))
case("elementwise.logical-or", lambda: mask | other, mask=stored(mask), other=stored(other))
case("elementwise.logical-not", lambda: ~mask, mask=stored(mask))
case("elementwise.where", lambda a, b: torch.where(mask, a, b), normal(2, 3), normal(2, 1), mask=stored(mask))

# --- shape
case("shape.reshape", lambda a: a.reshape(3, 2, 2), normal(4, 3), shape=[3, 2, 2])
case("shape.permute", lambda a: a.permute(2, 0, 1), normal(2, 3, 4), axes=[2, 0, 1])
case("shape.broadcast-to", lambda a: a.broadcast_to(2, 3, 4), normal(3, 1), shape=[2, 3, 4])
case("shape.concatenate", lambda a, b, c: torch.cat([a, b, c], 1), normal(2, 1, 2), normal(2, 3, 2), normal(2, 2, 2), axis=1)
case("shape.slice", lambda a: a[:, 1:3], normal(3, 4, 2), axis=1, start=1, end=3)

# --- reduce
case("reduce.sum", lambda a: a.sum(), normal(2, 3), axes=[], keep=False)
case("reduce.sum", lambda a: a.sum(0), normal(4, 3), axes=[0], keep=False)
case("reduce.sum", lambda a: a.sum((0, 2), keepdim=True), normal(2, 3, 4), axes=[0, 2], keep=True)
case("reduce.sum", lambda a: a.sum(1), normal(2, 3, 4), axes=[1], keep=False)
case("reduce.mean", lambda a: a.mean(), normal(2, 3), axes=[], keep=False)
case("reduce.mean", lambda a: a.mean((1, 2)), normal(2, 3, 4), axes=[1, 2], keep=False)
case("reduce.maximum", lambda a: a.max(1).values, normal(3, 5), axis=1, keep=False)
case("reduce.minimum", lambda a: a.min(0, keepdim=True).values, normal(3, 2, 2), axis=0, keep=True)
case("reduce.all", lambda: mask.all(), mask=stored(mask))
case("reduce.any", lambda: mask.any(), mask=stored(mask))

# --- index
rows = torch.tensor([2, 0, 2, 1, 2])
case("index.select", lambda a: a.index_select(0, rows), normal(3, 2), axis=0, indices=stored(rows))
case("index.select", lambda a: a.index_select(1, rows), normal(2, 3, 2), axis=1, indices=stored(rows))
case("index.index-add", lambda a: torch.zeros(4, 2).index_add(0, rows, a), normal(5, 2), axis=0, indices=stored(rows), size=4)
case("index.index-add", lambda a: torch.zeros(2, 4, 2).index_add(1, rows, a), normal(2, 5, 2), axis=1, indices=stored(rows), size=4)
places = torch.tensor([[0, 2, 2, 1], [1, 1, 0, 2]])
case("index.gather", lambda a: a.gather(1, places), normal(2, 3), axis=1, indices=stored(places))
case("index.gather", lambda a: a.gather(0, places), normal(3, 4), axis=0, indices=stored(places))
case("index.scatter-add", lambda a: torch.zeros(2, 3).scatter_add(1, places, a), normal(2, 4), axis=1, indices=stored(places), size=3)

# --- linalg
case("linalg.matmul", torch.matmul, normal(3, 4), normal(4, 2))
case("linalg.matmul", torch.matmul, normal(2, 1, 3, 2), normal(3, 2, 4))
case("linalg.matmul", torch.matmul, normal(5, 2, 3), normal(3, 1))
case("linalg.solve", torch.linalg.solve, normal(4, 4), normal(4, 2))

# --- neural
case("neural.softmax", lambda a: torch.softmax(a, 1), normal(3, 4), axis=1)
case("neural.softmax", lambda a: torch.softmax(a, 0), normal(3, 2, 2), axis=0)
for width in [3, 20]:
    case("neural.layer-norm", lambda a: torch.nn.functional.layer_norm(a, [width], eps=1e-5), normal(4, width), epsilon=1e-5)
    case("neural.rms-norm", lambda a: torch.nn.functional.rms_norm(a, [width], eps=1e-5), normal(4, width), epsilon=1e-5)

case("neural.linear", lambda a, w, b: a @ w + b, normal(2, 3, 4), normal(4, 2), normal(2))
case("neural.linear", lambda a, w: a @ w, normal(3, 4), normal(4, 5))
case("neural.gated-linear-unit", lambda a: torch.nn.functional.glu(a, -1), normal(3, 10))
neighbourhoods = torch.tensor([1, 0, 1, 3, 0, 1, 1])


def attention(queries, keys, values, bias, heads=2, scale=0.7):
    """One padded sequence for all rows, in which those of other segments are masked."""
    split = lambda x: x.reshape(len(x), heads, -1).transpose(0, 1)
    scores = scale * split(queries) @ split(keys).transpose(1, 2) + bias
    scores = scores.masked_fill(neighbourhoods[:, None] != neighbourhoods[None, :], -math.inf)
    return (torch.softmax(scores, 2) @ split(values)).transpose(0, 1).reshape(len(queries), -1)


rows_of_attention = [normal(7, 6), normal(7, 6), normal(7, 6), normal(7)]
case("neural.attention", attention, *rows_of_attention, segments=stored(neighbourhoods), count=4, heads=2, scale=0.7)

# --- segment
segments = torch.tensor([2, 0, 2, 3, 0, 2])


def outer_sum(left, right):
    return torch.zeros(4, left.shape[1], right.shape[1]).index_add(0, segments, left[:, :, None] * right[:, None, :])


case("segment.outer-sum", outer_sum, normal(6, 2), normal(6, 3), segments=stored(segments), count=4)
case("segment.contract-left", lambda left, blocks: torch.einsum("pi,pij->pj", left, blocks[segments]), normal(6, 2), normal(4, 2, 3), segments=stored(segments))
case("segment.contract-right", lambda right, blocks: torch.einsum("pj,pij->pi", right, blocks[segments]), normal(6, 3), normal(4, 2, 3), segments=stored(segments))


# --- spherical
def solid_harmonics(vectors, max_degree):
    """From the associated Legendre polynomials, with torch doing the derivatives."""
    x, y, z = vectors[:, 0], vectors[:, 1], vectors[:, 2]
    radius = torch.sqrt(x * x + y * y + z * z)
    u = z / radius
    columns = []
    for degree in range(max_degree + 1):
        legendre = numpy.polynomial.legendre.Legendre.basis(degree)
        for m in range(-degree, degree + 1):
            k = abs(m)
            polynomial = legendre.deriv(k).convert(kind=numpy.polynomial.Polynomial) if k else legendre.convert(kind=numpy.polynomial.Polynomial)
            value = sum(c * u**power for power, c in enumerate(polynomial.coef)) * torch.ones_like(u)
            planar = torch.complex(x / radius, y / radius) ** k
            factor = math.sqrt((2 * degree + 1) / (4 * math.pi) * math.factorial(degree - k) / math.factorial(degree + k))
            part = planar.real if m >= 0 else planar.imag
            columns.append(radius**degree * value * part * factor * (math.sqrt(2) if m else 1.0))
    return torch.stack(columns, 1)


# The formula itself against another library, on the real combinations of complex harmonics.
check = normal(5, 3)
directions = (check / check.norm(dim=1, keepdim=True)).numpy()
polar, azimuth = numpy.arccos(directions[:, 2]), numpy.arctan2(directions[:, 1], directions[:, 0])
ours = solid_harmonics(torch.tensor(directions), 6).numpy()
for degree in range(7):
    for m in range(0, degree + 1):
        # The Condon-Shortley sign is divided out.
        expected = scipy.special.sph_harm_y(degree, m, polar, azimuth) * (-1) ** m
        scale = math.sqrt(2) if m else 1.0
        assert numpy.allclose(ours[:, degree**2 + degree + m], scale * expected.real)
        if m:
            assert numpy.allclose(ours[:, degree**2 + degree - m], scale * expected.imag)

for degree in [0, 1, 2, 6]:
    case("spherical.solid-harmonics", lambda v: solid_harmonics(v, degree), normal(3, 3), degree=degree)

table = normal(4, 6, 3)


def piecewise_polynomial(x):
    lower, upper = -0.5, 3.5
    width = (upper - lower) / 4
    interval = ((x.detach() - lower) / width).floor().long()
    inside = (interval >= 0) & (interval < 4)
    interval = interval.clamp(0, 3)
    t = 2 * (x - lower - interval * width) / width - 1
    powers = torch.stack([t**power for power in range(6)], 1)
    return torch.where(inside[:, None], torch.einsum("pd,pdf->pf", powers, table[interval]), 0.0)


case("spherical.piecewise-polynomial", piecewise_polynomial, torch.tensor([-1.0, -0.3, 0.7, 1.4, 2.9, 3.3, 4.0]), coefficients=stored(table), lower=-0.5, upper=3.5)

# --- tensor
case("tensor.cast", lambda a: a.to(torch.float64), normal(3), dtype="float64")

lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in cases)
pathlib.Path(__file__).with_name("oracle.json").write_text(f"[\n{lines}\n]\n")
print(f"{len(cases)} cases")
