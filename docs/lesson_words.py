"""The words of the two articles: what the lesson says, and what to see in each picture, in English and Chinese."""

from __future__ import annotations

from typing import NamedTuple


class Words(NamedTuple):
    """One statement in one language: the sentence, what to see in its picture, the claim, and what was measured."""

    sentence: str
    see: str
    claim: str = ""  # in English the claim and the measure are the lab's own words
    about: str = ""


EN: dict[str, Words] = {
    "drift": Words(
        "A network trains all its layers at once, so what enters a layer changes its distribution with every step of "
        "the layers before it.",
        "The distance that a layer's inputs travel during training grows with the number of layers below; with batch "
        "normalization it stays small.",
    ),
    "small_rates": Words(
        "Hence small learning rates: a larger step moves every layer's input so far that training breaks off.",
        "The orange line trains at two or three rates and falls to chance at the next.",
    ),
    "careful_start": Words(
        "Hence careful initialization: from weights a little too small no signal reaches the last layers.",
        "The orange line stays on the floor up to 0.01; the blue one is above the dotted line from the first scale on.",
    ),
    "few_layers": Words(
        "Hence few layers: what drifts in one is multiplied in the next.",
        "The orange line falls to chance between 3 and 6 layers.",
    ),
    "mean": Words(
        "Batch normalization subtracts the mean of the mini-batch, neuron by neuron.",
        "Right: the values of one neuron in six batches of five; left: the same after the norm, around 0 every time.",
    ),
    "deviation": Words(
        "It divides by the standard deviation of the mini-batch, with a small ε under the root so that it never "
        "divides by zero.",
        "Whatever the deviation before, it is 1 afterwards; only below √ε does ε take over.",
    ),
    "rescale": Words(
        "Then it rescales with a learned weight γ and a learned bias β, so that the layer can still take on any scale "
        "and place, its old one included.",
        "γ starts at 1 and β at 0; gradient descent moves both from the first batch on.",
    ),
    "why_rescale": Words(
        "Why γ and β exist: a sigmoid fed values around 0 works in its linear region, and layers that are straight "
        "lines add up to one straight line.",
        "The thick dark piece is all that the last layer's sigmoids use without γ and β: nearly straight. With them "
        "(blue) they reach into both bends.",
    ),
    "steady": Words(
        "So every layer's input keeps a similar distribution all through training.",
        "The band from the 15th to the 85th percentile of what enters one sigmoid opens within the first steps and "
        "stays between the dotted lines, where a sigmoid is steep.",
    ),
    "three": Words(
        "Three parameters are updated in place of four, w, γ and β: the bias b is redundant, since the mean takes it "
        "out again.",
        "The gradient of that bias beside the weight's: with the norm (blue) it is rounding, a million times smaller.",
    ),
    "placement": Words(
        "It may stand before or after the activation; the paper puts it before.",
        "Blue and purple end together, both above the network without a norm.",
    ),
    "six_means": Words(
        "30 samples in batches of 5 give six means; each is averaged into the running mean with momentum 0.1.",
        "Dots are the six means of each neuron, the lines their running average, which starts at 0.",
    ),
    "one_sample": Words(
        "At test time the running average stands in, so that one sample can be predicted.",
        "Blue: in evaluation the sample gets the same answer alone and in any company. Pink: in training it depends on "
        "the company.",
    ),
    "running": Words(
        "After training that running average is as good as statistics measured anew over the training data.",
        "All lines evaluate the same weights; at the right end they are one.",
    ),
    "speed": Words(
        "Gain one, speed: fewer steps to the same accuracy.",
        "Each row is an accuracy; blue gets there an order of magnitude before orange (logarithmic axis).",
    ),
    "rates": Words(
        "Gain two, larger learning rates.",
        "The blue line is above the dotted one over three decades and more; the orange one never gets there in the "
        "steps of this run, and in longer ones ([the story](story.md)) at a few large rates only.",
    ),
    "initialization": Words(
        "Gain three, less care about initialization.",
        "Count the dots above the dotted line: blue has nearly all scales, orange two.",
    ),
    "depth": Words(
        "Gain four, deeper networks.",
        "The blue line stays above the dotted one to 20 layers.",
    ),
    "small_batch": Words(
        "Weak spot one, small batches: statistics of few samples are noise, and of one sample in training they say "
        "nothing about evaluation.",
        "At the left edge, with one sample in a batch, batch norm drops to the bottom while group norm stays high.",
    ),
    "recurrent": Words(
        "Weak spot two, recurrent networks and sequences: every step has statistics of its own, and few sequences "
        "reach the last steps.",
        "Batch norm inside the recurrence (blue) stays behind; layer norm (green, dashed) climbs.",
    ),
    "sync": Words(
        "Weak spot three, many processes: each sees a part of the batch, and sharing statistics costs time.",
        "Two samples per process are too few; sharing them gives the accuracy at the right end.",
    ),
    "company": Words(
        "All three weak spots have one reason: a sample's answer depends on its company.",
        "Batch norm's line comes down only as batches grow.",
    ),
    "layer": Words(
        "Successor one, layer norm: mean and deviation over the neurons of one sample, made for sequences.",
        "Green lies on the floor at every batch size.",
    ),
    "instance": Words(
        "Successor two, instance norm: over the places of one channel of one picture, made for style transfer.",
        "Yellow lies on the floor, too.",
    ),
    "group": Words(
        "Successor three, group norm: over a few channels of one picture, made for small batches.",
        "Pink as well.",
    ),
    "keras": Words(
        "In Keras it is one call; its `momentum` is the weight of the old value, so 0.99 there is 0.01 in PyTorch.",
        "The lowest line is Keras's default: the running average needs about a hundred steps to arrive.",
    ),
}

ZH: dict[str, Words] = {
    "drift": Words(
        "网络同时训练所有的层，因此前面各层每更新一步，进入某一层的数据分布就会改变。",
        "训练中一层的输入漂移的距离随下面的层数增加；有批归一化时始终很小。",
        "有批归一化时，进入第 3 层激活函数的数据漂移更小", "漂移距离（以标准差计），无归一化与有归一化之比",
    ),
    "small_rates": Words(
        "所以学习率只能小：步子一大，每层的输入移动太远，训练就会中断。",
        "橙线只在两三个学习率下能训练，再大就跌到随机水平。",
        "无归一化的 ReLU 网络在学习率为 1 及以上时训练不起来", "这些学习率下最高的最终准确率",
    ),
    "careful_start": Words(
        "所以初始化必须小心：权重稍小一点，信号就到不了最后几层。",
        "0.01 以内橙线一直在底部；蓝线从第一个尺度起就在虚线之上。",
        "初始权重为 0.001 至 0.01 时，无归一化的网络训练不起来", "这些尺度下最高的最终准确率",
    ),
    "few_layers": Words(
        "所以层数只能少：一层的漂移到下一层会被放大。",
        "橙线在 3 层到 6 层之间跌到随机水平。",
        "没有归一化，12 层及以上的网络训练不起来", "这些深度下最高的最终准确率",
    ),
    "mean": Words(
        "批归一化逐个神经元减去小批次的均值。",
        "右边：一个神经元在六个批次中的五个值；左边：归一化之后，每次都在 0 附近。",
        "每个批次中，归一化后的每个神经元均值为 0", "其均值，六个批次，两个神经元",
    ),
    "deviation": Words(
        "再除以小批次的标准差，根号下加一个小的 ε，这样永远不会除以零。",
        "无论之前的标准差是多少，之后都是 1；只有小于 √ε 时 ε 才起作用。",
        "其标准差为 std / sqrt(std² + ε)：几乎是 1，且从不除以零", "与该值的差，六个批次，两个神经元",
    ),
    "rescale": Words(
        "然后用学习得到的缩放 γ 和平移 β 重新缩放，使该层仍可取任何尺度和位置，包括原来的。",
        "γ 从 1 开始，β 从 0 开始；梯度下降从第一个批次起就移动它们。",
        "令 γ 为批次的标准差、β 为其均值，归一化即被抵消", "输出与输入之差，六个批次",
    ),
    "why_rescale": Words(
        "为什么要有 γ 和 β：输入在 0 附近的 sigmoid 工作在线性区，而若干层直线叠加仍是一条直线。",
        "没有 γ 和 β 时，最后一层的 sigmoid 只用到粗的深色一段：几乎是直线。有了它们（蓝色）就能伸到两端的弯曲处。",
        "没有 γ 和 β，每一层的 sigmoid 都工作在近似直线的一段", "输出中可由直线解释的比例，取最低的一层",
    ),
    "steady": Words(
        "于是在整个训练中，每层的输入都保持相似的分布。",
        "进入一个 sigmoid 的数据的第 15 至 85 百分位，在最初几步内展开，之后一直在虚线之间，即 sigmoid 陡峭的地方。",
        "有批归一化时，最后一层 sigmoid 的输入游移更小", "训练中中位数的变动范围，无归一化与有归一化之比",
    ),
    "three": Words(
        "需要更新的参数是三个而不是四个：w、γ 和 β。偏置 b 是多余的，因为减去均值时又把它去掉了。",
        "该偏置的梯度与权重梯度之比：有归一化时（蓝色）只是舍入误差，小一百万倍。",
        "批归一化之前的偏置除舍入误差外没有梯度", "其最大梯度与权重的梯度之比",
    ),
    "placement": Words(
        "它可以放在激活函数之前或之后；论文放在之前。",
        "蓝线和紫线终点相同，都高于没有归一化的网络。",
        "放在激活函数之前至少与之后一样好，相差不到一个百分点（ReLU）", "最终准确率，之前减之后",
    ),
    "six_means": Words(
        "30 个样本，每批 5 个，得到六个均值；每个均值以 momentum 0.1 并入滑动均值。",
        "点是每个神经元的六个均值，线是从 0 开始的滑动平均。",
        "滑动均值取旧值的 0.9 和批次均值的 0.1", "与公式之差，六个批次，两个神经元",
    ),
    "one_sample": Words(
        "测试时用滑动平均代替，因此可以预测单个样本。",
        "蓝色：评估模式下，该样本单独或与任何样本同批，输出都相同。粉色：训练模式下取决于同批样本。",
        "单独一个样本的预测与在任何批次中相同", "预测之差，六个批次",
    ),
    "running": Words(
        "训练之后，滑动平均与在训练数据上重新测得的统计量一样好。",
        "所有的线评估的是同一组权重；在右端合而为一。",
        "训练之后，滑动平均（momentum 0.1）与精确统计量一样好，相差不到一个百分点", "准确率，滑动减精确",
    ),
    "speed": Words(
        "好处一，速度：达到同样的准确率所需步数更少。",
        "每一行是一个准确率；蓝色比橙色早一个数量级到达（对数坐标）。",
        "有批归一化时，sigmoid 网络最多用一半的步数达到 90%", "各取最好的学习率，所需步数，无归一化与有归一化之比",
    ),
    "rates": Words(
        "好处二，可用更大的学习率。",
        "蓝线在三个以上数量级的学习率上都高于虚线；在这次运行的步数内橙线从未达到，更长的运行中（[完整的故事](story.md)）"
        "也只在少数几个大的学习率上达到。",
        "有批归一化时，sigmoid 网络可训练的学习率范围至少多一个数量级", "达到 90% 的学习率的数量级之差",
    ),
    "initialization": Words(
        "好处三，不那么依赖初始化。",
        "数一数虚线之上的点：蓝色几乎包括所有尺度，橙色只有两个。",
        "有归一化的网络可训练的初始尺度更多", "达到 90% 的尺度个数之差",
    ),
    "depth": Words(
        "好处四，网络可以更深。", "蓝线直到 20 层都在虚线之上。",
        "有批归一化时，12 层的网络可以训练", "其最终准确率",
    ),
    "small_batch": Words(
        "弱点一，小批次：少量样本的统计量只是噪声；训练时只有一个样本，对评估就毫无意义。",
        "在左端，每批一个样本时，批归一化跌到底部，而组归一化仍然很高。",
        "每批一个样本时，批归一化比组归一化低十个百分点以上", "最终准确率，组归一化减批归一化",
    ),
    "recurrent": Words(
        "弱点二，循环网络和序列：每一步都有自己的统计量，而到达最后几步的序列很少。",
        "循环内部的批归一化（蓝色）落在后面；层归一化（绿色虚线）上升。",
        "在循环网络中，层归一化比批归一化高一个百分点以上", "最终准确率，层归一化减带掩码的批归一化",
    ),
    "sync": Words(
        "弱点三，多个进程：每个进程只看到批次的一部分，而共享统计量要花时间。",
        "每个进程两个样本太少；共享之后就是右端的准确率。",
        "每个进程 2 个样本时，共享统计量可提高半个百分点以上", "最终准确率，共享减不共享",
    ),
    "company": Words(
        "三个弱点原因相同：一个样本的输出取决于同批的样本。",
        "批归一化的线只随批次增大而下降。",
        "在 4 个样本的批次中，训练时批归一化对一个样本的输出取决于同批样本", "16 组同批样本中得分的最大差",
    ),
    "layer": Words(
        "后继一，层归一化：在一个样本的所有神经元上求均值和标准差，为序列而设计。",
        "绿线在任何批次大小下都贴着底部。",
        "层归一化对一个样本的输出与同批样本无关", "16 组同批样本中得分的最大差，批次 2 至 64，所有种子",
    ),
    "instance": Words(
        "后继二，实例归一化：在一幅图的一个通道的所有位置上，为风格迁移而设计。",
        "黄线也贴着底部。",
        "实例归一化对一个样本的输出与同批样本无关", "16 组同批样本中得分的最大差，批次 2 至 64，所有种子",
    ),
    "group": Words(
        "后继三，组归一化：在一幅图的几个通道上，为小批次而设计。",
        "粉线也一样。",
        "组归一化对一个样本的输出与同批样本无关", "16 组同批样本中得分的最大差，批次 2 至 64，所有种子",
    ),
    "keras": Words(
        "在 Keras 中只需一次调用；它的 `momentum` 是旧值的权重，所以那里的 0.99 就是 PyTorch 的 0.01。",
        "最低的线是 Keras 的默认值：滑动平均需要大约一百步才能到位。",
        "训练初期，慢的滑动平均（momentum 0.01，即 Keras 的 0.99）比精确统计量准确率低", "第 20 步的准确率，滑动减精确",
    ),
}  # fmt: skip

# The frame around the statements: titles of the parts, and the text that stands before the first of them.
FRAME: dict[str, dict[str, str]] = {
    "en": {
        "title": "Batch normalization, point by point",
        "other": "[中文](article.zh-CN.md)",
        "intro": (
            "Every statement of the lesson: in one sentence, in one picture of a real run, measured, with the command "
            "that repeats it.\n`{command}` runs them all, in this order.\n"
            "The numbers are those of the default run of {date}, {cells:,} cells; {machine}.\n"
            "A verdict follows from a rule that was fixed before the run: from a 95 % interval over n seeds, or, where "
            "a formula is checked, from the largest difference, which has no interval.\n"
            "n is small so that the run is short; [the story](story.md) has longer runs with more seeds, and the "
            "claims that fail."
        ),
        "problem": "The problem: every layer's input drifts", "method": "The method",
        "prediction": "Predicting one sample", "gains": "What is gained", "weak": "Where it is weak",
        "successors": "What came after", "keras": "In Keras",
        "again": "again", "measured": "Measured", "see": "See",
        "formula": "Over the m values of one neuron in the mini-batch:",
        "lines": "mean of the mini-batch|its variance|normalised|rescaled by what is learned",
        "example": "[One epoch by hand](explain.md) shows all numbers of the example.",
        "cost": "What sharing costs: {plain:.2f} ms for forward and backward of a layer of {case} alone, {sync:.2f} ms "
        "with statistics shared by {processes} processes on {cores} cores (`python benchmarks/sync.py`).",
        "family": "All of them are one formula over other elements of the tensor: [the family](family.md).",
        "arguments": "argument|default|in PyTorch|meaning",
        "rows": "axis|-1|dimension 1|the axis of the channels\n"
        "momentum|0.99|momentum=0.01|weight of the old value; PyTorch's is that of the new one\n"
        "epsilon|0.001|eps=1e-5|ε, added to the variance\n"
        "center|True|affine=True|whether β is learned\nscale|True|affine=True|whether γ is learned\n"
        'beta_initializer|"zeros"|bias = 0|where β starts\ngamma_initializer|"ones"|weight = 1|where γ starts',
        "evenly": "`evenly.keras.BatchNormalization` takes the same arguments; "
        "[Coming from Keras](guide/coming-from-keras.md) says what differs.",
        "holds": "holds", "does not hold": "does not hold", "cannot tell": "cannot tell",
        "checks": "an exact check, {} times", "seeds": "n = {}", "colon": ": ", "stop": ".",
    },
    "zh": {
        "title": "逐条讲解批归一化",
        "other": "[English](article.md)",
        "intro": (
            "课程中的每一个论断：一句话，一张真实运行的图，测量结果，以及重复它的命令。\n"
            "`{command}` 按此顺序运行全部论断。\n"
            "数字来自 {date} 的默认运行，共 {cells:,} 个单元。\n"
            "结论由运行之前定下的规则得出：依据 n 个种子的 95 % 区间；若检查的是公式，则依据最大的差，没有区间。\n"
            "n 较小，以便运行时间短；[完整的故事](story.md)（英文）有更长的运行、更多的种子，以及不成立的论断。"
        ),
        "problem": "问题：每层的输入都在漂移", "method": "方法", "prediction": "预测一个样本", "gains": "好处",
        "weak": "弱点", "successors": "后继方法", "keras": "在 Keras 中",
        "again": "重复", "measured": "测得", "see": "看图",
        "formula": "对小批次中一个神经元的 m 个值：",
        "lines": "小批次的均值|方差|归一化|用学到的 γ 和 β 缩放、平移",
        "example": "[手算一个轮次](explain.zh-CN.md)列出了这个例子的全部数字。",
        "cost": "共享的代价：{case} 的一层，前向和反向单独需要 {plain:.2f} ms；由 {processes} 个进程在 {cores} 个核上"
        "共享统计量时需要 {sync:.2f} ms（`python benchmarks/sync.py`）。",
        "family": "它们都是同一个公式用在张量的不同元素上：[归一化家族](family.md)（英文）。",
        "arguments": "参数|默认值|在 PyTorch 中|含义",
        "rows": "axis|-1|第 1 维|通道所在的轴\nmomentum|0.99|momentum=0.01|旧值的权重；PyTorch 的是新值的权重\n"
        "epsilon|0.001|eps=1e-5|ε，加在方差上\ncenter|True|affine=True|是否学习 β\nscale|True|affine=True|是否学习 γ\n"
        'beta_initializer|"zeros"|bias = 0|β 的初值\ngamma_initializer|"ones"|weight = 1|γ 的初值',
        "evenly": "`evenly.keras.BatchNormalization` 接受同样的参数；"
        "[从 Keras 转来](guide/coming-from-keras.md)（英文）说明有何不同。",
        "holds": "成立", "does not hold": "不成立", "cannot tell": "无法判断",
        "checks": "精确检查 {} 次", "seeds": "n = {}", "colon": "：", "stop": "。",
    },
}  # fmt: skip
