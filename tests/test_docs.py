"""What the documents show is what runs."""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from caspo_jax.errors import UserError

ROOT = Path(__file__).parent.parent
EXTENDING = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(
    r"^## ([^\n]+)\n(?:(?!^## ).)*?```python\n(.*?)```", EXTENDING, flags=re.DOTALL | re.MULTILINE
)


@pytest.fixture(autouse=True)
def registries():
    """What an example registers is forgotten after it."""
    from caspo_jax.confidence import PATH_CONFIDENCES, STEP_CONFIDENCES, path, step
    from caspo_jax.evaluation.benchmarks import registry
    from caspo_jax.sampling import config, policy

    tables: tuple[dict, ...] = (path._VALUES, PATH_CONFIDENCES, step._FORMULAS, STEP_CONFIDENCES)
    tables += (policy.PRUNE_SCORES, registry._REGISTRY)
    before = [dict(table) for table in tables]
    rules = list(config.PRUNE_RULES)
    yield
    for table, kept in zip(tables, before):
        table.clear()
        table.update(kept)
    config.PRUNE_RULES[:] = rules


def test_each_kind_of_extension_has_an_example_under_40_lines():
    assert [title for title, _ in EXAMPLES] == [
        "A model",
        "A task",
        "A benchmark",
        "A verifier",
        "A confidence",
        "A CaT policy",
        "A reading of the words, a confidence of a step",
        "A training loop of your own",
    ]
    for title, code in EXAMPLES:
        assert code.count("\n") < 40, title


@pytest.mark.parametrize(("title", "code"), EXAMPLES, ids=[title for title, _ in EXAMPLES])
def test_the_example_runs(title, code, capsys):
    scope: dict = {"__name__": title}
    exec(compile(code, f"docs/extending.md: {title}", "exec"), scope)
    assert capsys.readouterr().err == ""


def test_a_registered_rule_prunes_as_it_says():
    """In a search over a table: with `patient` no branch is pruned before its second step."""
    code = dict(EXAMPLES)
    scope: dict = {}
    exec(code["A model"], scope)
    exec(code["A CaT policy"], scope)
    import jax

    import caspo_jax as cj
    from caspo_jax.sampling import (
        Knobs,
        NamedStepConfidence,
        Policy,
        Sampler,
        init_state,
        policy,
        question_keys,
    )
    from caspo_jax.sampling.state import PRUNED

    def depths(rule: str, threshold: float) -> list[int]:
        config = cj.CatConfig(
            num_branches=4, threshold=threshold, prune=rule, sample=cj.SampleConfig(max_new_tokens=32)
        )
        made = Policy(
            scope["decode"],
            lambda cache, *_: cache,
            Sampler.of(config.sample),
            NamedStepConfidence("entropy"),
            prune=policy.PRUNE_SCORES[rule],
        )
        names = [str(i) for i in range(16)]
        state = init_state(
            (),
            jnp.tile(scope["table"][2], (16, 1)),
            question_keys(jax.random.key(1), names),
            jnp.ones(16, jnp.int32),
            scope["build_automaton"](scope["vocabulary"], "\n\n", eos_ids=[3]),
            Knobs.of(config),
            num_slots=4,
            roots=4,
            capacity=32,
        )
        state = cj.cat_decode(scope["table"], state, made)
        parents, status = np.asarray(state.nodes.parent), np.asarray(state.nodes.status)
        found = []
        for question in range(16):
            for node in np.flatnonzero(status[question] == PRUNED):
                depth = 1
                while parents[question][node] >= 0:
                    node, depth = parents[question][node], depth + 1
                found.append(depth)
        return found

    assert 1 in depths("last", 0.5)
    patient = depths("patient", 0.5)
    assert patient
    assert min(patient) == 2


def test_names_are_registered_once_and_fields_must_exist():
    from caspo_jax.confidence import register_path_confidence, register_step_confidence
    from caspo_jax.sampling import register_prune_rule

    for register in (
        lambda: register_step_confidence("entropy", ("entropy",), lambda *_: None),
        lambda: register_path_confidence("min", lambda *_: None),
        lambda: register_prune_rule("last", lambda *_: None),
    ):
        with pytest.raises(UserError, match="exists already"):
            register()
    with pytest.raises(UserError, match="mood"):
        register_step_confidence("mine", ("mood",), lambda *_: None)


def test_files_that_the_documents_name_exist():
    folders = (ROOT, ROOT / "docs", ROOT / "experiments", ROOT / "tpu_scripts")
    documents = [document for folder in folders for document in folder.glob("*.md")]
    assert len(documents) > 5
    for document in documents:
        text = document.read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
            file, _, anchor = target.partition("#")
            path = document.parent / file if file else document
            assert path.exists(), (document, target)
            if anchor:
                heads = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
                anchors = {re.sub(r"[^\w\- ]", "", head).lower().replace(" ", "-") for head in heads}
                assert anchor in anchors, (document, target)


def test_the_citation_file_names_this_version_and_licence():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    version = re.search(r'^version = "([^"]+)"', project, flags=re.MULTILINE).group(1)
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {version}\n" in citation
    assert "license: Apache-2.0\n" in citation
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "Apache License\n" in (ROOT / "LICENSE").read_text(encoding="utf-8")
