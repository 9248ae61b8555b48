# SPDX-License-Identifier: Apache-2.0
"""Metrics of generated text against references: BLEU and chrF, and ROUGE.

sacreBLEU computes BLEU and chrF, and rouge-score computes ROUGE.

BLEU: Papineni et al. 2002, as Post 2018 standardized it (arXiv:1804.08771). chrF: Popovic 2015.
ROUGE: Lin 2004.
"""

from collections.abc import Sequence

#: Metrics that ``metric_for_best_model`` may name.
GENERATION_METRICS = ("bleu", "chrf", "rouge1", "rouge2", "rougeL", "exact_match")
ROUGE = ("rouge1", "rouge2", "rougeL")


def generation_metrics(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Compare generated texts with one reference each.

    Args:
        predictions: Texts that the model generated.
        references: Expected texts, one for each prediction.

    Returns:
        ``bleu`` and ``chrf`` of the whole corpus, 0 to 100; ``rouge1``, ``rouge2`` and ``rougeL``,
        the mean F-measure of the rows, 0 to 1, without stemming; ``exact_match``, the share of rows
        that are equal apart from white space around them; ``length_ratio``, the number of
        characters in the predictions divided by that in the references.
    """
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu import corpus_bleu, corpus_chrf

    said = [text.strip() for text in predictions]
    meant = [text.strip() for text in references]
    pairs = list(zip(said, meant, strict=True))
    scorer = RougeScorer(list(ROUGE))
    scores = [scorer.score(reference, prediction) for prediction, reference in pairs]
    rouge = {name: sum(row[name].fmeasure for row in scores) / len(scores) for name in ROUGE}
    return {
        "bleu": corpus_bleu(said, [meant]).score,
        "chrf": corpus_chrf(said, [meant]).score,
        **rouge,
        "exact_match": sum(prediction == reference for prediction, reference in pairs) / len(pairs),
        "length_ratio": sum(map(len, said)) / max(sum(map(len, meant)), 1),
    }
