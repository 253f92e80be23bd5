"""Every score against cases that were worked out by hand."""
import pytest

pytest.importorskip("rouge", reason="tests/evals/requirements.txt is not installed")

import metrics  # noqa: E402


@pytest.mark.parametrize("prediction,answer,wanted", [
    ("the cat sat", "A cat sat.", 1.0),  # articles and punctuation do not count
    ("cat", "cat sat", 2 * 1 * 0.5 / 1.5),
    ("cat cat", "cat sat", 0.5),  # a word counts as often as both have it
    ("dog", "cat", 0.0),
    ("", "cat", 0.0),
    ("The", "cat", 0.0),
    ("St. John's", "st johns", 1.0),
])
def test_f1_of_bags_of_words(prediction, answer, wanted):
    assert metrics.qa_f1(prediction, answer) == pytest.approx(wanted)


def test_rouge_l_is_f_of_the_longest_common_subsequence():
    # "a b c d" and "a x c": LCS "a c": precision 2/4, recall 2/3
    assert metrics.rouge_l("a b c d", "a x c") == pytest.approx(
        2 * 0.5 * (2 / 3) / (0.5 + 2 / 3), abs=1e-6)
    assert metrics.rouge_l("", "a") == 0 and metrics.rouge_l("...", "a") == 0


@pytest.mark.parametrize("prediction,answer,classes,wanted", [
    ("Type: Date", "Date", ["Date", "City"], 1.0),
    ("Date or City", "Date", ["Date", "City"], 0.5),
    ("Other animal", "Other animal", ["animal", "Other animal"], 1.0),  # a part of the right one
    ("City", "Date", ["Date", "City"], 0.0),
    ("a b c d", "d", ["a", "b", "c", "d"], 0.25),
])
def test_classification(prediction, answer, classes, wanted):
    assert metrics.classification(prediction, answer, classes) == wanted


def test_numbers_count_by_their_share():
    assert metrics.count("There are 5, or 6.", "5") == 0.5
    assert metrics.count("none", "5") == 0
    assert metrics.retrieval("Paragraph 12", "Paragraph 12") == 1
    assert metrics.retrieval("12 or 12 or 1", "Paragraph 12") == pytest.approx(2 / 3)


def test_code_is_compared_by_its_first_line_of_code():
    assert metrics.code_similarity("```python\n# note\nreturn x\nmore", "return x") == 1
    assert metrics.code_similarity("// c\n", "return x") == 0
    # ratio = 2 * (length of the common subsequence) / (both lengths): 2 * 3 / 8
    assert metrics.code_similarity("abcd", "abce") == 0.75


def test_ruler_and_needle():
    assert metrics.contains_all("It is ABC and 12.", ["abc", "13"]) == 0.5
    assert metrics.word_share(
    "eat a big sandwich",
    "eat a sandwich in a park") == pytest.approx(
        3 / 5)


def test_first_lines_and_the_best_of_the_references():
    assert metrics.longbench("triviaqa", "\nParis\nQuestion: what", ["London", "Paris"]) == 1
    assert metrics.longbench("hotpotqa", "Paris\nmore", ["Paris"]) == pytest.approx(2 / 3)
    assert metrics.longbench("trec", "Date\nCity", ["Date"], ["Date", "City"]) == 1
    assert metrics.longbench("qasper", "x", []) == 0


def test_every_task_of_longbench_has_a_score():
    assert len(metrics.LONGBENCH) == 16
