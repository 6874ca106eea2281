"""The embedded tasks: writers and checkers agree, checkers catch every kind of mistake, splits are disjoint."""

import itertools
import random
import re

import jax
import pytest

from caspo_jax.errors import UserError
from caspo_jax.models import load_caspo_json, load_pretrained
from caspo_jax.sampling import SampleConfig, generate
from caspo_jax.steps import VerifyItem
from caspo_jax.tasks import SPLITS, TASKS, extract_answer, get_task
from caspo_jax.tasks import graph as graph_task
from caspo_jax.tasks.arithmetic import evaluate, split_by_tens
from caspo_jax.tasks.graph_writing import write_step
from caspo_jax.types import Question


@pytest.mark.parametrize("name", TASKS)
def test_written_solutions_check_and_give_the_gold_answer(name):
    task = get_task(name)
    rng = random.Random(5)
    for problem in itertools.islice(task.problems("train", 3), 200):
        assert task.parse(problem.text) == problem
        steps = task.solve(problem, rng, dict(task.mix))
        assert all(task.check(problem, steps[:i], step) for i, step in enumerate(steps))
        assert extract_answer("\n\n".join(steps)) == str(problem.answer)


def test_answers_of_any_length():
    assert [extract_answer(f"answer: {n}") for n in ("007", "000", "9" * 6000)] == ["7", "0", "9" * 6000]


@pytest.mark.parametrize("name", TASKS)
def test_slips_are_wrong_by_one_or_ten_and_the_steps_after_them_follow(name):
    task = get_task(name)
    rng = random.Random(6)
    slips = dict.fromkeys(task.mix, 0.2)
    wrong = steps_in_all = 0
    for problem in itertools.islice(task.problems("train", 4), 200):
        steps = task.solve(problem, rng, dict(task.basics), slips)
        verdicts = [task.check(problem, steps[:i], step) for i, step in enumerate(steps)]
        for i in (i for i, right in enumerate(verdicts) if not right):
            start, stated = re.fullmatch(r"(.*?)(\d+)", steps[i]).groups()
            mended = [
                d for d in (-10, -1, 1, 10) if task.check(problem, steps[:i], f"{start}{int(stated) + d}")
            ]
            assert len(mended) == 1, (problem.text, steps[: i + 1])
        assert verdicts[-1]
        wrong, steps_in_all = wrong + verdicts.count(False), steps_in_all + len(steps) - 1
    assert 0.16 < wrong / steps_in_all < 0.24


def test_verdicts_stay_local_where_a_wrong_value_leads_below_zero():
    problem = graph_task.parse_problem("a = 47; b = 12; c: a - b; d: c - b; e: d * 3. e?")
    prefix = ["c = 5", "put d: c - b, c = 5, b = 12, 5 - 12, so d = -7"]
    work = "find e: d * 3, d = -7, -7 * 3 = -30 + 9, so e = -21"
    steps = [prefix[1], work, "e = -21", "answer: -21"]
    prefixes = [prefix[:1], prefix, prefix, [*prefix, "e = -21"]]
    assert all(map(graph_task.check_step, [problem] * 4, prefixes, steps))
    wrong = [step.replace("-7", "7").replace("-21", "21") for step in steps]
    assert not any(map(graph_task.check_step, [problem] * 4, prefixes, wrong))
    assert graph_task.claim(problem, prefix, "answer: -21") == ("e", -21)

    chain = get_task("chain")
    problem = chain.parse("start 9; minus 8; minus 5; add 2. end?")
    prefix = ["9 - 8 = 3", "3 - 5 = -2", "now 0"]
    assert [chain.check(problem, prefix[:i], step) for i, step in enumerate(prefix)] == [False, True, True]
    assert not chain.check(problem, prefix[:1], "now 2")
    assert chain.check(problem, ["9 - 8 = 3", "now -2"], "-2 + 2 = 0 + 0 = 0")
    assert [extract_answer(f"answer: {n}") for n in ("-7", "-007", "-0")] == ["-7", "-7", "0"]


@pytest.mark.parametrize("name", TASKS)
def test_every_changed_digit_is_caught(name):
    """One digit changed anywhere in a correct step makes it wrong: no operation absorbs an error."""
    task = get_task(name)
    rng = random.Random(7)
    changed = 0
    for problem in itertools.islice(task.problems("tune", 1), 60):
        steps = task.solve(problem, rng, dict(task.mix))
        for i, step in enumerate(steps):
            for place in (m.start() for m in re.finditer(r"\d", step)):
                digit = str((int(step[place]) + rng.randint(1, 9)) % 10)
                wrong = step[:place] + digit + step[place + 1 :]
                assert not task.check(problem, steps[:i], wrong), (problem.text, steps[:i], wrong)
                changed += 1
    assert changed > 500


def test_graph_steps_may_come_in_any_order_that_respects_the_graph():
    problem = graph_task.parse_problem("a = 47; b = 12; c: a + b; d: a - 11; e: c + d. e?")
    assert problem is not None
    assert problem.answer == 95
    for order in (["c = 59", "d: a - 11, so d = 36"], ["d = 36", "put c: a + b, a = 47, b = 12, so c = 59"]):
        assert graph_task.check_step(problem, order[:1], order[1])
        assert graph_task.check_step(
            problem, order, "find e: c + d, c = 59, d = 36, 59 + 36 = 80 + 15, so e = 95"
        )
    assert not graph_task.check_step(problem, ["c = 59"], "e = 95")  # d is not established yet


def test_graph_verdicts_are_local():
    problem = graph_task.parse_problem("a = 47; b = 12; c: a + b; e: c + a. e?")
    assert problem is not None
    wrong_before = ["c = 60"]
    assert graph_task.check_step(problem, wrong_before, "e = 107")  # follows from what the prefix states
    assert not graph_task.check_step(problem, wrong_before, "e = 106")
    assert graph_task.check_step(problem, ["c = 60", "e = 107"], "answer: 107")
    assert not graph_task.check_step(problem, ["c = 59", "e = 106"], "answer: 107")


@pytest.mark.parametrize(
    "step",
    [
        "c = 59 ",
        "put c: b + a, b = 12, a = 47, so c = 59",  # not the definition as given
        "put c: a + b, a = 12, b = 47, so c = 59",  # values of the wrong names
        "get c: a + b, so c = 58",
        "c: a + b, so c = 58",
        "c: a + b",
        "put c: a + b, a = 47, b = 11, so c = 59",
        "find c: a + b, a = 47, b = 12, 47 + 12 = 50 + 8, so c = 59",  # a false equality on the way
        "get c: a + b, so d = 59",
        "get d: a + b, so c = 59",
        "a = 47",  # given, nothing new
        "z = 3",
        "get c: a + b",
        "c = a + b = 59",
        "nonsense",
        "answer: 59",
    ],
)
def test_graph_wrong_steps(step):
    problem = graph_task.parse_problem("a = 47; b = 12; c: a + b; d: c - b. d?")
    assert problem is not None
    expected = step == "c = 59 "  # white space around a step does not matter
    assert graph_task.check_step(problem, [], step) is expected


def test_splits_are_disjoint_and_reproducible():
    task = get_task("graph")
    seen: dict[str, str] = {}
    for split in SPLITS:
        for seed in (0, 1):
            for question in task.questions(split, 150, seed):
                assert seen.setdefault(question.question, split) == split
    assert task.questions("test", 20, 4) == task.questions("test", 20, 4)
    assert task.questions("test", 20, 4) != task.questions("test", 20, 5)


def test_at_least_two_correct_continuations_at_half_of_the_prefixes():
    task = get_task("graph")
    rng = random.Random(1)
    counts = []
    for problem in itertools.islice(task.problems("test", 0), 100):
        steps = task.solve(problem, rng, dict(task.mix))
        for i in range(len(steps)):
            values = dict(problem.given) | dict(
                filter(None, (graph_task.stated_value(step) for step in steps[:i]))
            )
            ready = [d for d in problem.derived if d.name not in values and all(n in values for n in d.needs)]
            options = {write_step(d, values, p) for d in ready for p in task.mix}
            counts.append(sum(task.check(problem, steps[:i], option) for option in options))
    assert sum(c >= 2 for c in counts) / len(counts) > 0.5


def test_the_verifier_speaks_the_protocol():
    task = get_task("graph")
    question = Question(id="q", question="a = 47; b = 12; c: a + b. c?", gold="59")
    items = [
        VerifyItem(question, "", "c = 59", False),
        VerifyItem(question, "c = 59\n\n", "answer: 58", True),
        VerifyItem(Question(id="x", question="What is love?"), "", "c = 59", False),
    ]
    assert task.verifier().verify(items) == ["correct", "wrong", "unknown"]


def test_careful_working_adds_up():
    rng = random.Random(2)
    for _ in range(300):
        left, right = rng.randint(100, 500), rng.randint(2, 99)
        for operator in "+-":
            assert evaluate(split_by_tens(operator, left, right)) == (
                left + right if operator == "+" else left - right
            )
        assert evaluate(split_by_tens("*", left, right % 8 + 2)) == left * (right % 8 + 2)


def test_exercises_are_right():
    rng = random.Random(4)
    for name in TASKS:
        for _ in range(60):
            task = get_task(name)
            question, lines = task.drill(rng, tuple(rng.choice((task.basics, task.mix))))
            texts = ["".join(line) for line in lines]
            if question is None and name == "chain":
                assert all(len({evaluate(side) for side in text.split(" = ")}) == 1 for text in texts)
                continue
            if question is None:
                for text in texts:
                    definition, *recalled = re.findall(r"[a-z]: [a-z] [+*-] \w+|(?<=, )[a-z] = \d+", text)
                    own = graph_task.parse_problem("; ".join([*recalled, definition]) + f". {definition[0]}?")
                    assert own is not None
                    assert graph_task.check_step(own, [], text), text
                continue
            problem = graph_task.parse_problem(f"{question}a?")
            assert problem is not None
            given, definitions = dict(problem.given), {d.name: d for d in problem.derived}
            for text in texts:
                definition = definitions[re.findall(r"([a-z]): ", text)[0]]
                if ", so " in text:
                    assert graph_task.check_step(problem, [], text), (question, text)
                elif all(need in given for need in definition.needs):
                    steps = [write_step(definition, given, p) for p in task.mix]
                    assert any(step.startswith(f"{text}, so ") for step in steps), (question, text)
                else:
                    assert text.endswith(definition.symbols)


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match="graph, chain"):
        get_task("sudoku")
    with pytest.raises(UserError, match="pretrain"):
        get_task("graph").questions("holdout", 1, 0)


@pytest.mark.parametrize("name", TASKS)
def test_the_shipped_policy_answers_its_task(name):
    task = get_task(name)
    model, tokenizer = load_pretrained(task.policy_path)
    assert load_caspo_json(task.policy_path) == {"step_delimiter": "\n\n", "task": name}
    questions = task.questions("test", 32, seed=0)
    config = SampleConfig(max_new_tokens=96, temperature=0.7)
    traces = generate(model, tokenizer, questions, config, jax.random.key(0))
    assert sum(t.finish_reason == "eos" for t in traces) >= 30
    right = sum(extract_answer(t.text) == q.gold for t, q in zip(traces, questions, strict=True))
    assert 8 <= right < 32  # a fair subject: neither lost nor perfect
