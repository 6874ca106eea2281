"""The tree search in plain Python over a toy model: slow, literal, and independent of the device's machinery.

Steps are found by regular expressions over the whole path after every token, keys by a Python threefry, numbers in
float64. Where a float32 result could fall on the other side of a decision, the case is marked `ambiguous`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence

MARGIN = 2e-6


def threefry(key: tuple[int, int], block: tuple[int, int]) -> tuple[int, int]:
    """Threefry-2x32, 20 rounds (Salmon et al. 2011)."""
    word = 0xFFFFFFFF
    schedule = (*key, key[0] ^ key[1] ^ 0x1BD11BDA)
    rotations = ((13, 15, 26, 6), (17, 29, 16, 24))
    a, b = (block[0] + schedule[0]) & word, (block[1] + schedule[1]) & word
    for group in range(5):
        for r in rotations[group % 2]:
            a = (a + b) & word
            b = ((b << r) | (b >> (32 - r))) & word
            b ^= a
        a = (a + schedule[(group + 1) % 3]) & word
        b = (b + schedule[(group + 2) % 3] + group + 1) & word
    return a, b


def fold_in(key: tuple[int, int], data: int) -> tuple[int, int]:
    return threefry(key, (0, data))


def uniform(key: tuple[int, int]) -> float:
    high, low = threefry(key, (0, 0))
    return ((high ^ low) >> 9) / 2**23


def delimiters(text: bytes, delimiter: bytes) -> list[tuple[int, int, int]]:
    """(start, end of the delimiter, end of its run) of every delimiter in the text."""
    one = re.escape(delimiter)
    sizes = range(1, len(delimiter) + 1)
    more = re.escape(next(delimiter[:n] for n in sizes if delimiter[:n] * (len(delimiter) // n) == delimiter))
    return [
        (m.start(), m.start() + len(delimiter), m.end())
        for m in re.finditer(b"%b(?:%b)*" % (one, more), text)
    ]


def newest_step(tokens: Sequence[bytes], delimiter: bytes) -> tuple[bool, list[int]]:
    """Whether the last token closed a step at a delimiter, and the counted tokens of the step that is open or closed."""
    starts = [sum(map(len, tokens[:i])) for i in range(len(tokens))]
    text = b"".join(tokens)
    content, newest = 0, None
    for start, end, run_end in delimiters(text, delimiter):
        if end > starts[-1]:  # completed by the last token
            own = [i for i, t in enumerate(tokens) if t and content <= starts[i] < start]
            if own:
                counted = [i for i in range(own[0], len(tokens)) if starts[i] < start]
                pure = starts[-1] >= start and len(text) == run_end
                if starts[-1] >= start and not pure:
                    counted.append(len(tokens) - 1)
                newest = counted
        content = run_end
    if newest is not None:
        return True, newest
    own = [i for i, t in enumerate(tokens) if t and starts[i] >= content]
    return False, list(range(own[0], len(tokens))) if own else []


@dataclasses.dataclass
class Node:
    parent: int
    rank: int
    tokens: list[int] = dataclasses.field(default_factory=list)
    status: str = "live"
    reason: str | None = None
    confidence: float | None = None
    path_confidence: float | None = None


@dataclasses.dataclass
class Branch:
    node: int
    key: tuple[int, int]
    tokens: list[int]
    steps: list[float]


@dataclasses.dataclass
class Settings:
    table: Sequence[Sequence[float]]  # [V][V] logits after each token
    vocabulary: Sequence[bytes]
    delimiter: bytes
    stops: Sequence[bytes]
    eos: int | None
    slots: int
    roots: int
    threshold: float
    prune: str | None  # path | last | relative | None
    expand: int
    num_answers: int
    min_live: int
    budget: int
    max_new_tokens: int
    temperature: float
    step: Callable[
        [list[float], list[float]], float
    ]  # entropies, log-probs of the counted tokens -> confidence
    path: Callable[[list[float]], float]
    exact: bool  # the confidences are exact in float32: nothing about them is ambiguous


class Search:
    """Grows one tree: `nodes`, `tokens`, `ambiguous`."""

    def __init__(self, settings: Settings, key: tuple[int, int], prompt: int):
        self.s = settings
        self.prompt = prompt
        self.nodes = [Node(-1, i) for i in range(settings.roots)]
        self.live = [Branch(i, fold_in(key, i), [], []) for i in range(settings.roots)]
        self.tokens = self.finished = 0
        self.ambiguous = False
        while self.live:
            self.iterate()

    def iterate(self) -> None:
        s = self.s
        closed: list[Branch] = []
        going: list[Branch] = []
        self.tokens += len(self.live)
        for branch in self.live:
            self.draw(branch)
            node = self.nodes[branch.node]
            token = branch.tokens[-1]
            pieces = [s.vocabulary[t] for t in branch.tokens]
            delimited, counted = newest_step(pieces, s.delimiter)
            reason = None
            if token == s.eos:
                reason = "eos"
            elif self.stopped(pieces):
                reason = "stop"
            elif len(branch.tokens) >= s.max_new_tokens:
                reason = "length"
            if counted and (delimited or reason):
                node.confidence = self.confidence(branch, counted)
                branch.steps.append(node.confidence)
            if reason:
                self.finished += 1
                self.end(branch, "finished", reason)
                continue
            going.append(branch)
            if delimited:
                closed.append(branch)
        going = self.pruned(going, closed)
        closed = [b for b in closed if b in going]
        spent, answered = self.tokens >= s.budget, self.finished >= s.num_answers
        if spent or answered or not going:
            for branch in going:
                if branch in closed:
                    self.end(branch, "closed", "delimiter")
                else:
                    self.end(branch, "expired", "answers" if answered else "budget")
            self.live = []
            return
        self.live = going + self.children(closed, s.slots - len(going))

    def draw(self, branch: Branch) -> None:
        s = self.s
        logits = s.table[branch.tokens[-1] if branch.tokens else self.prompt]
        top = max(logits)
        weights = [math.exp((x - top) / s.temperature) for x in logits]
        target = uniform(fold_in(branch.key, len(branch.tokens))) * sum(weights)
        total = 0.0
        chosen = None
        for i, w in enumerate(weights):
            total += w
            self.ambiguous |= abs(total - target) < MARGIN * len(weights)
            if chosen is None and total > target:
                chosen = i
        branch.tokens.append(len(weights) - 1 if chosen is None else chosen)
        self.nodes[branch.node].tokens.append(branch.tokens[-1])

    def stopped(self, pieces: list[bytes]) -> bool:
        before, text = len(b"".join(pieces[:-1])), b"".join(pieces)
        return any(text[:k].endswith(stop) for stop in self.s.stops for k in range(before + 1, len(text) + 1))

    def confidence(self, branch: Branch, counted: list[int]) -> float:
        entropies, logprobs = [], []
        for i in counted:
            logits = self.s.table[branch.tokens[i - 1] if i else self.prompt]
            total = math.log(sum(math.exp(x) for x in logits))
            entropies.append(-sum(math.exp(x - total) * (x - total) for x in logits))
            logprobs.append(logits[branch.tokens[i]] - total)
        return self.s.step(entropies, logprobs)

    def end(self, branch: Branch, status: str, reason: str) -> None:
        node = self.nodes[branch.node]
        node.status, node.reason = status, reason
        node.path_confidence = self.s.path(branch.steps) if branch.steps else None

    def score(self, branch: Branch, going: list[Branch]) -> float:
        if self.s.prune == "last":
            return branch.steps[-1]
        mine = self.s.path(branch.steps)
        if self.s.prune == "path":
            return mine
        return mine / max(self.s.path(b.steps) for b in going if b.steps)

    def pruned(self, going: list[Branch], closed: list[Branch]) -> list[Branch]:
        if self.s.prune is None:
            return going
        scores = {id(b): self.score(b, going) for b in closed}
        for value in scores.values():
            self.doubt(value, self.s.threshold)
        condemned = [b for b in closed if scores[id(b)] < self.s.threshold]
        condemned.sort(key=lambda b: (scores[id(b)], -b.node))
        spare = max(0, len(going) - self.s.min_live)
        if spare < len(condemned):
            self.doubt_order([scores[id(b)] for b in condemned])
        gone = condemned[:spare]
        for branch in gone:
            self.end(branch, "pruned", "threshold")
        return [b for b in going if b not in gone]

    def children(self, closed: list[Branch], free: int) -> list[Branch]:
        parents = {id(b): b.node for b in closed}
        keys = {id(b): b.key for b in closed}
        for branch in sorted(closed, key=lambda b: b.node):
            self.end(branch, "closed", "delimiter")
            branch.node = self.open(parents[id(branch)], 0)
            branch.key = fold_in(branch.key, 0)
        forks: list[Branch] = []
        order = sorted(closed, key=lambda b: (-self.s.path(b.steps), parents[id(b)]))
        if free and self.s.expand > 1:
            self.doubt_order([self.s.path(b.steps) for b in order])
        for branch in order:
            for rank in range(1, self.s.expand):
                if len(forks) < free:
                    node = self.open(parents[id(branch)], rank)
                    key = fold_in(keys[id(branch)], rank)
                    forks.append(Branch(node, key, list(branch.tokens), list(branch.steps)))
        return forks

    def open(self, parent: int, rank: int) -> int:
        self.nodes.append(Node(parent, rank))
        return len(self.nodes) - 1

    def doubt(self, a: float, b: float) -> None:
        self.ambiguous |= not self.s.exact and abs(a - b) < 1e-5

    def doubt_order(self, values: list[float]) -> None:
        for a, b in zip(sorted(values), sorted(values)[1:]):
            self.doubt(a, b)
