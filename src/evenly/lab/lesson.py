"""The lesson: what is said of batch normalization, in its order, and the claim of the lab that measures each.

Needs nothing but the standard library. The report of the default run and the articles are made of it.
"""

from __future__ import annotations

from typing import NamedTuple


class Statement(NamedTuple):
    """One statement of the lesson.

    Args:
        key: its name.
        experiment: of the lab, that measures it.
        claim: the one claim of that experiment, word for word, that stands for it.
        chart: the experiment's chart that shows it.
    """

    key: str
    experiment: str
    claim: str
    chart: str


class Part(NamedTuple):
    """A part of the lesson: its name, and its statements."""

    key: str
    statements: tuple[Statement, ...]


LESSON = (
    Part("problem", (
        Statement("drift", "distributions",
                  "What enters the activations of layer 3 drifts less with batch normalization", "distributions_drift"),
        Statement("small_rates", "learning_rate", "A plain relu network does not train at rates of 1 and more",
                  "learning_rate_relu"),
        Statement("careful_start", "initialization",
                  "With initial weights of 0.001 to 0.01 the plain network does not train", "initialization"),
        Statement("few_layers", "depth", "Without a norm, networks of 12 layers and more do not train", "depth"),
    )),
    Part("method", (
        Statement("mean", "explain", "In each batch every normalised neuron has mean 0", "explain_standardized"),
        Statement("deviation", "explain",
                  "Its standard deviation is std / sqrt(std² + ε): nearly 1, and never a division by zero",
                  "explain_epsilon"),
        Statement("rescale", "explain", "A weight γ of the batch's deviation and a bias β of its mean undo the norm",
                  "explain_learned"),
        Statement("why_rescale", "affine",
                  "Without γ and β every layer's sigmoids work where they are almost a straight line",
                  "affine"),
        Statement("steady", "paper", "The input of the last sigmoid wanders less with batch normalization",
                  "paper_input_batch"),
        Statement("three", "bias", "The bias before a batch norm gets no gradient but rounding", "bias"),
        Statement("placement", "placement",
                  "Before the activation is at least as good as after it, to one point (relu)", "placement_relu"),
    )),
    Part("prediction", (
        Statement("six_means", "explain", "The running mean is 0.9 of the old and 0.1 of the batch's", "explain"),
        Statement("one_sample", "explain", "One sample alone is predicted as inside any batch", "explain_alone"),
        Statement("running", "inference",
                  "After training, the running average (momentum 0.1) is as good as exact statistics, to one point",
                  "inference"),
    )),
    Part("gains", (
        Statement("speed", "convergence",
                  "A sigmoid network reaches 90% in at most half the steps with batch normalization",
                  "convergence_sigmoid"),
        Statement("rates", "learning_rate",
                  "With batch normalization the sigmoid network trains over a decade more of rates, or further",
                  "learning_rate_sigmoid"),
        Statement("initialization", "initialization",
                  "The normalised network trains at more initial scales than the plain one", "initialization"),
        Statement("depth", "depth", "With batch normalization a network of 12 layers trains", "depth"),
    )),
    Part("weak", (
        Statement("small_batch", "batch_size",
                  "With batches of one sample, batch norm ends ten points or more behind group norm", "batch_size"),
        Statement("recurrent", "sequence", "In a recurrent network layer norm beats batch norm by a point or more",
                  "sequence"),
        Statement("sync", "sync", "With 2 samples per process, sharing the statistics gains half a point or more",
                  "sync"),
    )),
    Part("successors", (
        Statement("company", "company",
                  "In a batch of 4 batch norm's answer for a sample in training depends on the company", "company"),
        Statement("layer", "company", "Layer norm's answer for a sample does not depend on the company", "company"),
        Statement("instance", "company", "Instance norm's answer for a sample does not depend on the company",
                  "company"),
        Statement("group", "company", "Group norm's answer for a sample does not depend on the company", "company"),
    )),
    Part("keras", (
        Statement("keras", "inference",
                  "Early in training a slow average (momentum 0.01, Keras's 0.99) loses accuracy against exact "
                  "statistics", "inference"),
    )),
)  # fmt: skip
STATEMENTS = tuple(statement for part in LESSON for statement in part.statements)
