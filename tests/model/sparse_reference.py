"""A sparse memory written from its equations, for one session, with loops over dense weightings and matrices."""

import math
from dataclasses import dataclass, field


@dataclass
class Reference:
    """N slots of W numbers. Links are made and followed where `links` is more than 0."""

    slots: int
    words: int
    heads: int
    reads: int  # S, slots that a head reads
    links: int = 0  # Q, entries of a row of a sparse matrix
    smooth: bool = True
    time: int = 0
    memory: list = field(default_factory=list)  # [N][W]
    last_access: list = field(default_factory=list)  # [N]
    read_weights: list = field(default_factory=list)  # [R][N]
    precedence: list = field(default_factory=list)  # [N]
    link: list = field(default_factory=list)  # N_t, [N][N]
    after: list = field(default_factory=list)  # where P_t has entries: of each slot a set of slots

    def __post_init__(self) -> None:
        n = range(self.slots)
        self.memory = self.memory or [[0.0] * self.words for _ in n]
        self.last_access = self.last_access or [0] * self.slots
        self.read_weights = self.read_weights or [[0.0] * self.slots for _ in range(self.heads)]
        self.precedence = self.precedence or [0.0] * self.slots
        self.link = self.link or [[0.0] * self.slots for _ in n]
        self.after = self.after or [set() for _ in n]

    def step(self, keys, strengths, write_vector, allocation_gate, write_gate, read_modes=()):
        """The read vectors [R][W]."""
        n = range(self.slots)
        self.time += 1

        # w^W = α (γ w^R_{t-1} + (1 - γ) I^U)
        oldest = min(n, key=lambda i: (self.last_access[i], i))
        gamma = 1 - allocation_gate
        read_before = [sum(head[i] for head in self.read_weights) / self.heads for i in n]
        write = [write_gate * (gamma * read_before[i] + (1 - gamma) * (i == oldest)) for i in n]
        # M_t = (1 - R_t) M_{t-1} + w^W a^T
        self.memory = [
            [(i != oldest) * self.memory[i][w] + write[i] * write_vector[w] for w in range(self.words)] for i in n
        ]
        if self.links:
            self._link(write)
        self.read_weights = [
            self._read(head, keys[head], strengths[head], read_modes[head] if self.links else ())
            for head in range(self.heads)
        ]
        for i in n:
            if write[i] + sum(head[i] for head in self.read_weights) > 0.005:
                self.last_access[i] = self.time
        return [[sum(head[i] * self.memory[i][w] for i in n) for w in range(self.words)] for head in self.read_weights]

    def _link(self, write):
        n, p = range(self.slots), self.precedence
        link = [[(1 - write[i]) * self.link[i][j] + write[i] * p[j] if i != j else 0.0 for j in n] for i in n]
        self.link = [_sparse(row, self.links) for row in link]
        for j in n:
            if p[j] > 0:
                may = self.after[j] | {i for i in n if write[i] > 0}
                column = _sparse([self.link[i][j] if i in may else 0.0 for i in n], self.links)
                self.after[j] = {i for i in n if column[i] > 0}
        kept = 1 - sum(write)
        self.precedence = _sparse([kept * p[i] + write[i] for i in n], self.links)

    def _read(self, head, key, strength, modes):
        n = range(self.slots)
        similarity = [self._cosine(key, self.memory[i]) for i in n]
        found = sorted(n, key=lambda i: (-similarity[i], i))[: self.reads]
        exponentials = {i: math.exp(strength * similarity[i]) for i in found}
        content = [exponentials.get(i, 0.0) / sum(exponentials.values()) for i in n]
        if not self.links:
            return content
        before = self.read_weights[head]
        backward = [sum(self.link[i][j] * before[i] for i in n) for j in n]
        forward = [sum(self.link[i][j] * before[j] for j in n if i in self.after[j]) for i in n]
        weights = [modes[0] * backward[i] + modes[1] * forward[i] + modes[2] * content[i] for i in n]
        return _sparse(weights, self.reads)

    def _cosine(self, one, other):
        return sum(a * b for a, b in zip(one, other, strict=True)) / (self._norm(one) * self._norm(other) + 1e-6)

    def _norm(self, word):
        return math.sqrt(sum(each * each for each in word) + (1e-6 if self.smooth else 0.0))


def _sparse(weights, count):
    """All but the largest of them 0."""
    kept = sorted(range(len(weights)), key=lambda i: (-weights[i], i))[:count]
    return [weight if i in kept else 0.0 for i, weight in enumerate(weights)]
