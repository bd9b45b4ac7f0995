"""The least time a pass can take: its parts one after another, each bound by the bytes it must move
or by its multiplications, whichever takes longer.

A part is what one kernel, or a group of kernels that are bound alike, does: the products of a layer
with their inputs and outputs, its attention, its element-wise work (every norm, rotation, gate and
residual sum one kernel), the vocabulary projection with its statistics. Weights are read once a
part, and nothing is kept in a cache between parts. The last layer's trim to the wanted rows (1.7 %
of a plain pass at L = 1024) is left out. d is the width, h the hidden width, V the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from model_shape import Shape


@dataclass(frozen=True)
class Ceilings:
    bytes_per_second: float
    flops: float


# What a copy and a product of bfloat16 matrices reach on one H100 SXM.
DOCUMENTED_H100 = Ceilings(3.0e12, 798e12)


@dataclass(frozen=True)
class Part:
    name: str
    bytes: float
    flops: float
    times: int = 1

    def seconds(self, ceilings: Ceilings) -> float:
        once = max(self.bytes / ceilings.bytes_per_second, self.flops / ceilings.flops)
        return self.times * once


@dataclass(frozen=True)
class Cost:
    parts: tuple[Part, ...]

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.parts + other.parts)

    @property
    def bytes(self) -> float:
        return sum(part.times * part.bytes for part in self.parts)

    @property
    def flops(self) -> float:
        return sum(part.times * part.flops for part in self.parts)

    def seconds(self, ceilings: Ceilings) -> float:
        return sum(part.seconds(ceilings) for part in self.parts)


@dataclass(frozen=True)
class Canvas:
    """B sequences of L rows, of which so many are masked, candidates and probes (each)."""

    batch: int
    length: int
    masked: int
    candidates: int
    probes: int

    @property
    def active(self) -> int:
        return self.candidates + self.probes


@dataclass(frozen=True)
class Model:
    """Costs of the passes of a model of this shape, numbers of so many bytes."""

    shape: Shape
    itemsize: int = 2

    def _part(self, name: str, numbers: float, flops: float, times: int = 1) -> Part:
        return Part(name, self.itemsize * numbers, flops, times)

    def _linears(self, name: str, rows: int) -> Part:
        """Four products: d to 3 d, d to d, d to 2 h, h to d. Their adjoints move the same."""
        d, h = self.shape.width, self.shape.hidden
        matrices = 4 * d * d + 3 * d * h
        numbers = matrices + rows * (8 * d + 3 * h)
        return self._part(name, numbers, 2 * rows * matrices, self.shape.layers)

    def forward(self, canvas: Canvas, rows: int, head_rows: int) -> Cost:
        """Of `rows` rows a sequence, attending to all L, and the statistics at `head_rows`."""
        s, layers = self.shape, self.shape.layers
        d, h, all_rows = s.width, s.hidden, canvas.batch * rows
        keys = canvas.batch * canvas.length
        scores = all_rows * canvas.length * d
        head = canvas.batch * head_rows
        return Cost(
            (
                self._linears("linears", all_rows),
                self._part("attention", 2 * (all_rows + keys) * d, 4 * scores, layers),
                # Two norms (2 d each), rotation (4 d), two residual sums (3 d each), gate (3 h).
                self._part("element-wise", all_rows * (14 * d + 3 * h), 0, layers),
                # Written by the product, read by the statistics.
                self._part(
                    "head",
                    d * s.vocabulary + head * (d + 2 * s.vocabulary),
                    2 * head * d * s.vocabulary,
                ),
            )
        )

    def adjoint(self, canvas: Canvas, active: int, probes: int, every_key: bool = False) -> Cost:
        """Back from the entropies of `probes` rows a sequence to the inputs of `active` ones.

        Attention needs dq at active queries, dk and dv at active keys: 6 A L + 4 A^2 products a
        column. `every_key`: as FlashAttention-2's backward, which computes dk and dv of all keys.
        """
        s, layers = self.shape, self.shape.layers
        d, h, rows, head = s.width, s.hidden, canvas.batch * active, canvas.batch * probes
        keys = canvas.batch * canvas.length
        wanted = keys if every_key else rows
        products = 6 * rows * canvas.length + 4 * rows * (canvas.length if every_key else active)
        return Cost(
            (
                # The logits become their derivatives in place.
                self._part(
                    "head adjoint",
                    d * s.vocabulary + head * (d + 3 * s.vocabulary),
                    2 * head * d * s.vocabulary,
                ),
                self._linears("linears adjoint", rows),
                # q, result, gradient and dq of the queries; keys and values; dk and dv.
                self._part(
                    "attention adjoint", (4 * rows + 2 * keys + 2 * wanted) * d,
                    products * d, layers,
                ),
                # Two norms (4 d each, residual sum included), rotation (4 d), gate (5 h).
                self._part("element-wise adjoint", rows * (12 * d + 5 * h), 0, layers),
            )
        )  # fmt: skip

    def draft(self, canvas: Canvas) -> Cost:
        """The mean embeddings of what the candidates are predicted to be."""
        n, d, v = canvas.batch * canvas.candidates, self.shape.width, self.shape.vocabulary
        return Cost((self._part("draft", d * v + n * (v + d), 2 * n * d * v),))

    def step(self, variant: str, canvas: Canvas) -> Cost:
        """A plain step, or one steered by BoE: with a frozen context, an exact one, one with the
        dense adjoint, or by autograd, which computes the same as dense."""
        plain = self.forward(canvas, canvas.length, canvas.masked)
        if variant == "plain":
            return plain
        computed = canvas.active if variant == "frozen" else canvas.length
        adjoined = canvas.length if variant in ("dense", "naive") else canvas.active
        return (
            plain
            + self.draft(canvas)
            + self.forward(canvas, computed, canvas.probes)
            + self.adjoint(canvas, adjoined, canvas.probes)
        )


def parts_table(cost: Cost, ceilings: Ceilings) -> Iterable[str]:
    """One line a part: what it moves and multiplies and what that takes."""
    for part in cost.parts:
        yield (
            f"    {part.name:<22} {part.times * part.bytes / 1e9:8.2f} GB "
            f"{part.times * part.flops / 1e12:8.3f} TFLOP {part.seconds(ceilings) * 1e3:8.3f} ms"
        )
