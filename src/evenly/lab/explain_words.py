"""What the worked example says, in English and in Chinese; every number comes from the run."""

from __future__ import annotations

from typing import Any

EN = {
    "title": "One epoch by hand",
    "neuron": "neuron", "batch": "batch", "before": "before the norm: z of neuron 1", "after": "after it: xhat",
    "mean": "mean of z", "std": "std of z", "weight": "weight (γ)", "bias": "bias (β)",
    "running_mean": "running mean", "running_var": "running var", "now": "{} after",
    "first": "first hidden layer", "second": "second hidden layer", "last": "output layer",
    "answer": "answer", "target": "target", "loss": "loss", "gradients": "gradients", "sum": "sum",
    "average": "average",
    "of": "of {}", "epochs": "epochs", "right": "right of 30", "company": "company", "evaluation": "evaluation",
    "training": "training", "alone": "alone", "four": "four samples of batch {}",
    "thirty": "four of each, thirty in all",
    "refused": "refused: one value has no spread",
    "why": (
        "Why",
        "What enters a neuron changes place and spread from batch to batch, and with every step of the layers before. "
        "Batch norm measures both over the batch and divides them out, so that what follows always sees "
        "the same range.",
    ),
    "network": (
        "The network",
        "Three layers: two hidden ones of two neurons, each followed by batch norm and ReLU, and one output. "
        "Thirty samples of two whole numbers come in six batches of 5; the network is to answer 1 where the first "
        "number is the larger, else 0. Plain gradient descent, learning rate {rate}, mean squared error, momentum "
        "{momentum}, ε = {eps:g}. In this project's code γ is called weight and β bias, as in PyTorch.",
    ),
    "formulas": (
        "z    = W·x + b                          the layer's linear map: pre-activations",
        "mean = sum(z) / 5                       over the batch, one per neuron",
        "std  = sqrt(sum((z - mean)²) / 5)       likewise; the biased form",
        "xhat = (z - mean) / sqrt(std² + ε)      normalised",
        "out  = max(0, γ·xhat + β)               scale, shift, ReLU",
    ),
    "variances": (
        "Two variances",
        "To normalise, the batch's own variance counts, the biased one: the sum of squares over 5. "
        "To predict later samples the running variance is to estimate that of all data, and so takes the unbiased one: "
        "the sum of squares over 4.",
    ),
    "batch_first": (
        "Whole numbers, to be checked in the head. Neuron 1: mean {mean:g}, deviations -5 -3 -1 3 6, squares 80 in "
        "all, 80 / 5 = 16, so std 4. Running mean: {kept:g} · 0 + {momentum} · {mean:g} = {running:g}. "
        "Running variance, unbiased, 80 / 4 = 20: {kept:g} · 1 + {momentum} · 20 = {var:g}."
    ),
    "batch_next": (
        "W, γ and β have moved by one step; b of the hidden layers has not, nor will it. "
        "Running mean of neuron 1: {kept:g} · {old} + {momentum} · {mean} = {running}."
    ),
    "batch_title": "Batch {}",
    "backward": (
        "The backward step by hand",
        "Batch 1, neuron 1. g is the gradient that comes down from the layers above, with 0 where ReLU gave 0. "
        "The two averages that are taken out of g are what would only move or stretch all five samples together, which "
        "the norm undoes anyway. The dz add up to zero, and that sum is the gradient of b.",
    ),
    "averages": (
        "Six means and their running average",
        "Each step keeps {kept:g} of the old and takes {momentum} of the new; var is the unbiased one. "
        "After six steps {kept:g}⁶ = {left:.4f} of the initial 0 is still in the running mean: it needs some dozens of "
        "batches to settle.",
    ),
    "redundant": (
        "The redundant bias",
        "b moves every z of a neuron and their mean alike, so xhat does not feel it: its gradient is zero. "
        "Of the four parameters of a layer only three learn, W, γ and β, and β does the work of b.",
    ),
    "predicted": (
        "One sample, predicted",
        "In evaluation mode the running statistics stand in for those of a batch, so that one sample is enough.",
    ),
    "in_company": (
        "The same sample in company",
        "With the last four samples of each batch: in evaluation mode the answer is the same to the last printed "
        "digit; in training mode it depends on the company. The target is {target:g}. The evaluation answer is off "
        'because the running mean is young; with average="debiased", which removes the initial values, it is '
        "{debiased}.",
    ),
    "later": (
        "Training on until the answer is right",
        "The same six batches again and again. The running mean catches up within some {settled} epochs; from epoch "
        "{epoch} on the answer for the sample is nearer to 1 than to 0, and right.",
    ),
    "torch": ("Check it in twelve lines of torch", "The samples are written in hexadecimal: a is 10."),
    "prints": "It prints, to four digits:",
    "exercises": ("Five exercises", "Pencil and paper; the answers stand below."),
    "answers": ("Answers", ""),
    "questions": (
        "Find mean and standard deviation of neuron 2 in batch 1.",
        "Add 100 to every z of neuron 1 in batch 1. Which of mean, std, xhat, out change?",
        "What is the running mean of neuron 2 after batch 2, from the numbers listed?",
        "With momentum 0.5, what would the running mean of neuron 1 be after two batches?",
        "Multiply both W and b of neuron 1 by 10. What becomes of xhat, and of W's gradient?",
    ),
    "solutions": (
        "{mean2:g} and {std2:g}.",
        "The mean only, by 100: {mean1:g} becomes {moved:g}. That is why b is redundant.",
        "{kept:g} · {old2} + {momentum} · {new2} = {after2}.",
        "0.5 · (0.5 · {mean1:g}) + 0.5 · {next1} = {half}.",
        "xhat stays, but for ε. The gradient is a tenth: a step moves a large W less.",
    ),
}  # fmt: skip

ZH = {
    "title": "手算一个轮次",
    "neuron": "神经元", "batch": "批次", "before": "归一化之前：神经元 1 的 z", "after": "之后：xhat",
    "mean": "z 的均值", "std": "z 的标准差", "weight": "缩放 γ (weight)", "bias": "平移 β (bias)",
    "running_mean": "滑动均值", "running_var": "滑动方差", "now": "更新后的{}",
    "first": "第一隐藏层", "second": "第二隐藏层", "last": "输出层",
    "answer": "输出", "target": "目标", "loss": "损失", "gradients": "梯度", "sum": "和", "average": "平均",
    "of": "{}", "epochs": "轮次", "right": "30 个中正确", "company": "同批样本", "evaluation": "评估模式",
    "training": "训练模式", "alone": "单独一个", "four": "批次 {} 的四个样本", "thirty": "每批四个，共三十个",
    "refused": "拒绝：一个值没有离散程度",
    "why": (
        "为什么",
        "进入一个神经元的数值，其位置和离散程度逐批变化，前面各层每更新一步也会变化。"
        "批归一化在批次上测出二者并将其除去，后面的层看到的范围便始终相同。",
    ),
    "network": (
        "网络",
        "三层：两个隐藏层各有两个神经元，其后接批归一化和 ReLU，最后是一个输出。"
        "三十个样本，每个是两个整数，分成六批，每批 5 个；第一个数较大时网络应输出 1，否则输出 0。"
        "普通梯度下降，学习率 {rate}，均方误差，momentum 为 {momentum}，ε = {eps:g}。"
        "与 PyTorch 一样，本项目的代码把 γ 叫做 weight，把 β 叫做 bias。",
    ),
    "formulas": (
        "z    = W·x + b                          该层的线性变换：激活之前的值",
        "mean = sum(z) / 5                       在批次上求均值，每个神经元一个",
        "std  = sqrt(sum((z - mean)²) / 5)       标准差，有偏形式",
        "xhat = (z - mean) / sqrt(std² + ε)      归一化",
        "out  = max(0, γ·xhat + β)               缩放、平移、ReLU",
    ),
    "variances": (
        "两种方差",
        "归一化时只关心本批次，用有偏方差：平方和除以 5。"
        "预测以后的样本时，滑动方差要估计全部数据的方差，因此用无偏方差：平方和除以 4。",
    ),
    "batch_first": (
        "都是整数，可以心算。神经元 1：均值 {mean:g}，偏差 -5 -3 -1 3 6，平方和 80，80 / 5 = 16，所以标准差为 4。"
        "滑动均值：{kept:g} · 0 + {momentum} · {mean:g} = {running:g}。"
        "滑动方差用无偏方差，80 / 4 = 20：{kept:g} · 1 + {momentum} · 20 = {var:g}。"
    ),
    "batch_next": (
        "W、γ 和 β 已更新一步；隐藏层的 b 没有变，以后也不会变。"
        "神经元 1 的滑动均值：{kept:g} · {old} + {momentum} · {mean} = {running}。"
    ),
    "batch_title": "批次 {}",
    "backward": (
        "手算反向传播",
        "批次 1，神经元 1。g 是从上面各层传下来的梯度，ReLU 输出 0 处为 0。"
        "从 g 中减去的两个平均，是只会让五个样本一起移动或伸缩的部分，反正会被归一化抵消。"
        "各个 dz 之和为零，而这个和正是 b 的梯度。",
    ),
    "averages": (
        "六个均值及其滑动平均",
        "每一步保留旧值的 {kept:g}，取新值的 {momentum}；方差为无偏方差。"
        "六步之后，滑动均值里仍含有初始值 0 的 {kept:g}⁶ = {left:.4f}：需要几十个批次才能稳定。",
    ),
    "redundant": (
        "多余的偏置",
        "b 使一个神经元的所有 z 和它们的均值同样移动，xhat 感觉不到它：它的梯度为零。"
        "每层的四种参数中只有三种在学习：W、γ 和 β，而 β 代替了 b。",
    ),
    "predicted": ("预测一个样本", "评估模式下用滑动统计量代替批次的统计量，因此一个样本就够了。"),
    "in_company": (
        "同一个样本与其他样本同批",
        "与每批的后四个样本同批：评估模式下，输出直到最后一位都相同；训练模式下则取决于同批的样本。"
        "目标是 {target:g}。评估的输出有偏差，因为滑动均值还不成熟；"
        '用 average="debiased" 去掉初始值的影响，则为 {debiased}。',
    ),
    "later": (
        "继续训练，直到输出正确",
        "同样的六个批次反复训练。滑动均值在大约 {settled} 个轮次内跟上；从第 {epoch} 个轮次起，"
        "该样本的输出离 1 比离 0 近，是正确的。",
    ),
    "torch": ("用十二行 torch 代码验证", "样本用十六进制书写：a 就是 10。"),
    "prints": "输出（四位小数）：",
    "exercises": ("五道练习", "用纸和笔；答案在下面。"),
    "answers": ("答案", ""),
    "questions": (
        "求批次 1 中神经元 2 的均值和标准差。",
        "把批次 1 中神经元 1 的每个 z 都加上 100。mean、std、xhat、out 中哪些会变？",
        "根据列出的数字，批次 2 之后神经元 2 的滑动均值是多少？",
        "如果 momentum 是 0.5，两个批次之后神经元 1 的滑动均值是多少？",
        "把神经元 1 的 W 和 b 都乘以 10。xhat 会怎样？W 的梯度会怎样？",
    ),
    "solutions": (
        "{mean2:g} 和 {std2:g}。",
        "只有均值变，增加 100：{mean1:g} 变为 {moved:g}。所以 b 是多余的。",
        "{kept:g} · {old2} + {momentum} · {new2} = {after2}。",
        "0.5 · (0.5 · {mean1:g}) + 0.5 · {next1} = {half}。",
        "除 ε 的影响外，xhat 不变。梯度变为十分之一：W 越大，一步的移动越小。",
    ),
}  # fmt: skip

WORDS: dict[str, dict[str, Any]] = {"en": EN, "zh": ZH}

# Twelve lines that a reader can paste; the tests run them.
TORCH = """\
import torch, torch.nn as nn
n = "323427a37965948669a73335453775422866a48a504353634764577677a6"
batches = torch.tensor([float(int(c, 16)) for c in n]).view(6, 5, 2).double()
parts = [(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.ReLU()) for _ in range(2)]
model = nn.Sequential(*parts[0], *parts[1], nn.Linear(2, 1)).double()
w = [1, 1, 1, -1, 5, -3, 1, 1, 0, 0, 1, 1, -1, 1, 0, 0, 1, 1, 0, 0, 0.5, 0.5, 0]
nn.utils.vector_to_parameters(torch.tensor(w).double(), model.parameters())
sgd = torch.optim.SGD(model.parameters(), lr=0.25)
for x in batches:
    loss = (model(x)[:, 0] - (x[:, 0] > x[:, 1]).double()).square().mean()
    sgd.zero_grad(), loss.backward(), sgd.step()
print(model[1].running_mean, model.eval()(torch.tensor([[6.0, 5.0]]).double()))"""
