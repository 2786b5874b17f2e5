"""Lists the shapes of published models, so that a run can be planned before its weights are on the machine.

The numbers are those of the models' public config.json; parameters are counted from them. A test compares the counts with what
transformers makes of the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestration.memory.model_size import Matrix, ModelSize

SAME_SHAPE = ("-Instruct", "-Base")  # endings of names of models that others were trained to, or from


@dataclass(frozen=True, slots=True)
class Shape:
    """Holds the numbers of a decoder with grouped queries, an MLP of three matrices and RMS norms.

    biases: of queries, keys and values (Qwen2). head_norms: norms of queries and keys (Qwen3). tied: the head is the embedding.
    """

    layers: int
    hidden: int
    inner: int
    heads: int
    key_heads: int
    vocabulary: int
    head_width: int = 128
    tied: bool = False
    biases: bool = False
    head_norms: bool = False

    def size(self) -> ModelSize:
        """Returns what memory follows from."""
        matrices = self._matrices()
        q, k = self.heads * self.head_width, self.key_heads * self.head_width
        a_layer = (
            2 * self.hidden + ((q + 2 * k) if self.biases else 0) + (2 * self.head_width if self.head_norms else 0)
        )
        linear = sum(rows * columns * count for _, rows, columns, count in matrices)
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return ModelSize(
            parameters=linear + self.layers * a_layer + embeddings + self.hidden,
            layers=self.layers,
            hidden=self.hidden,
            inner=self.inner,
            key_width=k,
            vocabulary=self.vocabulary,
            query_width=q,
            head_width=self.head_width,
            tied=self.tied,
            head_norms=self.head_norms,
            matrices=matrices,
        )

    def _matrices(self) -> tuple[Matrix, ...]:
        h, i, n = self.hidden, self.inner, self.layers
        q, k = self.heads * self.head_width, self.key_heads * self.head_width
        return (
            ("q_proj", q, h, n),
            ("k_proj", k, h, n),
            ("v_proj", k, h, n),
            ("o_proj", h, q, n),
            ("gate_proj", i, h, n),
            ("up_proj", i, h, n),
            ("down_proj", h, i, n),
        )


def _qwen2(layers: int, hidden: int, inner: int, heads: int, keys: int, words: int = 152_064, **more: bool) -> Shape:
    return Shape(layers, hidden, inner, heads, keys, words, hidden // heads, biases=True, **more)


def _qwen3(layers: int, hidden: int, inner: int, heads: int, tied: bool = False) -> Shape:
    return Shape(layers, hidden, inner, heads, 8, 151_936, tied=tied, head_norms=True)


SMALL = 151_936  # tokens of the smaller Qwen2.5
SHAPES: dict[str, Shape] = {
    "Qwen/Qwen2.5-0.5B": _qwen2(24, 896, 4864, 14, 2, SMALL, tied=True),
    "Qwen/Qwen2.5-1.5B": _qwen2(28, 1536, 8960, 12, 2, SMALL, tied=True),
    "Qwen/Qwen2.5-3B": _qwen2(36, 2048, 11_008, 16, 2, SMALL, tied=True),
    "Qwen/Qwen2.5-7B": _qwen2(28, 3584, 18_944, 28, 4),
    "Qwen/Qwen2.5-14B": _qwen2(48, 5120, 13_824, 40, 8),
    "Qwen/Qwen2.5-32B": _qwen2(64, 5120, 27_648, 40, 8),
    "Qwen/Qwen2.5-Math-1.5B": _qwen2(28, 1536, 8960, 12, 2, SMALL, tied=True),
    "Qwen/Qwen2.5-Math-7B": _qwen2(28, 3584, 18_944, 28, 4),
    "Qwen/Qwen3-0.6B": _qwen3(28, 1024, 3072, 16, tied=True),
    "Qwen/Qwen3-1.7B": _qwen3(28, 2048, 6144, 16, tied=True),
    "Qwen/Qwen3-4B": _qwen3(36, 2560, 9728, 32, tied=True),
    "Qwen/Qwen3-8B": _qwen3(36, 4096, 12_288, 32),
    "Qwen/Qwen3-14B": _qwen3(40, 5120, 17_408, 40),
    "Qwen/Qwen3-32B": _qwen3(64, 5120, 25_600, 64),
    "meta-llama/Llama-3.2-1B": Shape(16, 2048, 8192, 32, 8, 128_256, 64, tied=True),
    "meta-llama/Llama-3.2-3B": Shape(28, 3072, 8192, 24, 8, 128_256, tied=True),
    "meta-llama/Llama-3.1-8B": Shape(32, 4096, 14_336, 32, 8, 128_256),
}


def published_size(model: str) -> ModelSize | None:
    """Returns the size of a model by its name on the hub; None for one that is not listed."""
    for ending in SAME_SHAPE:
        model = model.removesuffix(ending)
    shape = SHAPES.get(model)
    return None if shape is None else shape.size()
