"""metrics.py - the scores of LongBench, of RULER and of the needle test, from 0 to 1.

Each is score(prediction, answer, classes) for one reference answer; `best` takes the largest over
the references, as LongBench does.  The definitions are those of the published scripts, without their
slips: where a slip changes a score, it is named.
"""
import re
import string
from collections import Counter

ARTICLES = {"a", "an", "the"}
FIRST_LINE_TASKS = {"trec", "triviaqa", "samsum"}


def _words(text):
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return [w for w in kept.split() if w not in ARTICLES]


def qa_f1(prediction, answer, classes=()):
    """F1 of the bags of words: lower case, without punctuation and articles."""
    words, wanted = _words(prediction), _words(answer)
    common = sum((Counter(words) & Counter(wanted)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(words), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def rouge_l(prediction, answer, classes=()):
    """F of ROUGE-L as the package `rouge` computes it; 0 where it refuses, as for no words."""
    from rouge import Rouge

    try:
        return Rouge(metrics=["rouge-l"]).get_scores([prediction], [answer])[0]["rouge-l"]["f"]
    except (ValueError, RecursionError):
        return 0.0


def classification(prediction, answer, classes=()):
    """1 / (labels found) if the right one is among them.  A label that is a part of the right one
    does not count.  (The published script drops such labels while it walks over them, and skips some.)"""
    found = [c for c in classes if c in prediction]
    found = [c for c in found if c == answer or c not in answer]
    return 1 / len(found) if answer in found else 0.0


def _share_of_numbers(prediction, wanted):
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(wanted) / len(numbers) if numbers else 0.0


def count(prediction, answer, classes=()):
    """The share of the numbers in the prediction that are the right one."""
    return _share_of_numbers(prediction, str(answer))


def retrieval(prediction, answer, classes=()):
    """Likewise, of the number in "Paragraph N"."""
    return _share_of_numbers(prediction, re.search(r"Paragraph (\d+)", answer).group(1))


def code_similarity(prediction, answer, classes=()):
    """Similarity by edits of the first line that is neither comment nor fence."""
    from rapidfuzz import fuzz

    lines = [line for line in prediction.lstrip("\n").split("\n")
             if not any(mark in line for mark in ("`", "#", "//"))]
    return round(fuzz.ratio(lines[0] if lines else "", answer)) / 100


def contains_all(prediction, answers):
    """RULER: the share of the references that occur, whatever their case."""
    low = prediction.lower()
    return sum(a.lower() in low for a in answers) / len(answers)


def word_share(prediction, answer):
    """Needle, as FastKV reports it: the share of the answer's distinct words that occur."""
    wanted = set(answer.lower().split())
    return len(wanted & set(prediction.lower().split())) / len(wanted)


LONGBENCH = {
    **dict.fromkeys(("narrativeqa", "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "musique",
                     "triviaqa"), qa_f1),
    **dict.fromkeys(("gov_report", "qmsum", "multi_news", "samsum"), rouge_l),
    "trec": classification,
    "passage_count": count,
    "passage_retrieval_en": retrieval,
    **dict.fromkeys(("lcc", "repobench-p"), code_similarity),
}


def longbench(task, prediction, answers, classes=()):
    """The best score over the reference answers of one example."""
    if task in FIRST_LINE_TASKS:
        prediction = prediction.lstrip("\n").split("\n")[0]
    return max((LONGBENCH[task](prediction, a, classes or ()) for a in answers), default=0.0)
