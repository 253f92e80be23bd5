"""Every published family answers as transformers does: tests/models/rows.

Each row is a small random model with a published config.json and its sizes shrunk; what
transformers answers is in tests/models/rows/expected, made by make_expected.py there.
"""
import sys

import numpy as np
import pytest
from safetensors import safe_open

from service import MODELS, Service, api, full, sampling

sys.path.insert(0, str(MODELS / "rows"))

from rows import EXPECTED, LENGTHS, LAYERS, POSITIONS, ROWS, STEPS  # noqa: E402

# Of the deviation of the logits: both sides compute in float32 and differ by their order of
# summation, a hundred times less.  Each thing that make_expected.py changes to see whether a row
# would notice it moves them by more than twenty times this.
TOLERANCE = 1e-3


@pytest.fixture(scope="module", params=ROWS)
def row(request):
    return ROWS[request.param]


@pytest.fixture(scope="module")
def folder(row, tmp_path_factory):
    return row.write(tmp_path_factory.mktemp("rows") / row.name)


@pytest.fixture(scope="module")
def expected(row):
    with safe_open(EXPECTED / f"{row.name}.safetensors", "np") as file:
        assert file.metadata()["fingerprint"] == row.fingerprint(), \
            "rows.py makes another model than the expected numbers are of: run make_expected.py"
        return {name: file.get_tensor(name) for name in file.keys()}


@pytest.fixture(scope="module", params=[1, 2], ids=lambda tp: f"tp{tp}")
def service(request, folder):
    with Service(folder, workers=request.param, dtype="float32",
                 options=["--enable-trace"]) as service:
        yield service


def test_the_service_tells_the_shape_of_the_model(service, row):
    model = service.model()
    published = row.published
    assert model.name == row.name
    assert model.architecture == published["architectures"][0]
    assert (model.layers, model.hidden_size, model.vocab_size) == (LAYERS, row.hidden, row.vocab)
    assert (model.query_heads, model.kv_heads) == (row.heads, row.kv_heads)
    assert (model.head_dim, model.max_context) == (row.head_dim, POSITIONS)
    ends = row.config()["eos_token_id"]
    assert list(model.eos_ids) == (ends if isinstance(ends, list) else [ends])


@pytest.mark.parametrize("length", LENGTHS)
def test_tokens_and_logits_agree_with_transformers(service, expected, length):
    ids = expected[f"n{length}.prompt"].tolist()
    answer = service.generate(
        tokens=api.TokenIds(ids=ids), compression=full(), sampling=sampling(max_tokens=STEPS),
        trace=api.Trace(prompt_logits=True, step_logits=True))
    rows = np.array([answer.trace.prompt_logits,
                     *(row.values for row in answer.trace.step_logits)], np.float32)
    wanted = expected[f"n{length}.logits"]
    error = np.abs(rows - wanted).max() / wanted.std()
    print(f"largest difference {error:.2g}")
    assert error <= TOLERANCE
    assert answer.ids == expected[f"n{length}.tokens"].tolist()


def test_the_expected_numbers_are_of_these_rows_and_no_others():
    for folder, ending in ((EXPECTED, ".safetensors"), (EXPECTED.parent / "configs", ".json")):
        assert sorted(path.name.removesuffix(ending) for path in folder.iterdir()) == sorted(ROWS)
