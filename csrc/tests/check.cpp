// Every walk, type, activation, mask, and a team of threads, against plain loops in double (truth.hpp).
// Built under the sanitizers, which find wrong addresses, undefined arithmetic and races; the loops find
// wrong numbers, so that the program cannot pass by doing nothing.

#include <cstdio>
#include <random>

#include "truth.hpp"

using namespace truth;

namespace {

const Case kCases[] = {
    {"planes", {1, 3, 5, 700, 5, 700}, true},
    {"planes shared by a team", {1, 2, 1, 4001, 1, 4001}, true},
    {"planes of groups", {2, 1, 2, 4 * 77, 8, 77}, true},
    {"short planes as columns", {1, 16, 24, 49, 24, 49}, true},
    {"medium planes as columns", {1, 9, 8, 196, 8, 196}, true},
    {"planes of half lines", {1, 8, 5, 784, 5, 784}, true},
    {"blocks wider than a tile", {1, 9, 40, 49, 40, 49}, true},
    {"columns", {1, 333, 70, 1, 70, 1}, true},
    {"narrow columns, folded", {1, 1001, 3, 1, 3, 1}, true},
    {"wide columns", {1, 5, 2500, 1, 2500, 1}, true},
    {"columns of instances", {4, 99, 7, 1, 7, 1}, true},
    {"columns of groups", {3, 35, 4, 3, 12, 1}, true},
    {"one element of each", {1, 1, 1, 1, 1, 1}, true},
    {"rows", {20, 1, 1, 65, 65, 1}, false},
    {"long rows", {3, 1, 1, 2500, 2500, 1}, false},
    {"rows of groups", {9, 1, 3, 4, 12, 1}, false},
    {"channels", {3, 37, 101, 1, 37, 101}, false},
    {"channels of many places", {2, 5, 1500, 1, 5, 1500}, false},
    {"one channel", {2, 1, 7, 1, 1, 7}, false},
    {"channels that no axis follows", {20, 65, 1, 1, 65, 1}, false},
    {"no channels", {4, 1, 1, 0, 0, 5}, true},
    {"no samples", {1, 0, 3, 16, 3, 16}, true},
};

int failures = 0;

// Memory of one call, and what it was given, as doubles.
template <class A>
struct Tensors {
    std::vector<char> x, residual, dy, y, dx, dresidual;
    std::vector<A> weight, bias, mask, mean, m2, rstd, count, sum_g, sum_gx, dweight, dbias;
    std::vector<std::uint8_t> bits;
    Given given;

    Tensors(const Partition& p, const Call& call)
        : weight(p.channels),
          bias(p.channels),
          mean(p.sets()),
          m2(p.sets()),
          rstd(p.sets()),
          count(p.sets()),
          sum_g(p.sets()),
          sum_gx(p.sets()),
          dweight(p.channels),
          dbias(p.channels) {
        const i64 n = p.numel(), span = p.channels * p.stride;
        std::mt19937 random(7);
        const auto draw = [&] { return static_cast<int>(random() % 64) - 32; };
        for (auto* memory : {&x, &residual, &dy, &y, &dx, &dresidual})
            memory->resize(n * size_of(call.dtype));
        for (auto* memory : {&x, &residual, &dy})
            for (i64 k = 0; k < n; ++k) put(*memory, call.dtype, k, draw());
        for (A& w : weight) w = static_cast<A>(draw() / 8.0);
        for (A& b : bias) b = static_cast<A>(draw() / 8.0 + 0.01);
        mask.resize(call.by_element || p.channels == 0 ? n : n / p.channels);
        for (A& m : mask) m = static_cast<A>(random() % 3);
        if (n > 0) mask[0] = 1;
        bits.assign((n + 7) / 8, 0xa5);
        for (i64 k = 0; k < n; ++k) {
            given.x.push_back(get(x, call.dtype, k)), given.dy.push_back(get(dy, call.dtype, k));
            given.residual.push_back(get(residual, call.dtype, k));
            given.mask.push_back(mask[call.by_element ? k : k / span * p.stride + k % p.stride]);
        }
        given.weight.assign(weight.begin(), weight.end()), given.bias.assign(bias.begin(), bias.end());
    }
};

bool keeps_bits(const Call& call) {
    return call.residual &&
           (call.kind == Kind::relu || call.kind == Kind::relu6 || call.kind == Kind::leaky_relu);
}

template <class A>
void run_forward(const Partition& p, const Call& call, Tensors<A>& t) {
    Forward f{};
    f.partition = p, f.dtype = call.dtype, f.kind = call.kind, f.arg = kArg, f.eps = kEps;
    f.x = t.x.data(), f.y = t.y.data(), f.weight = t.weight.data(), f.bias = t.bias.data();
    f.residual = call.residual ? t.residual.data() : nullptr;
    f.mask = call.weighs || call.zeroes ? t.mask.data() : nullptr;
    f.mask_elements = call.by_element, f.weighs = call.weighs, f.zeroes = call.zeroes;
    f.bits = keeps_bits(call) ? t.bits.data() : nullptr;
    f.mean = t.mean.data(), f.m2 = t.m2.data(), f.rstd = t.rstd.data();
    f.count = call.weighs ? t.count.data() : nullptr;
    f.centered = call.centered, f.measure = f.apply = true, f.threads = call.threads;
    forward(f, nullptr);
}

template <class A>
void run_backward(const Partition& p, const Call& call, Tensors<A>& t) {
    Backward b{};
    b.partition = p, b.dtype = call.dtype, b.kind = call.kind, b.arg = kArg;
    b.x = t.x.data(), b.dy = t.dy.data(), b.weight = t.weight.data(), b.bias = t.bias.data();
    b.bits = keeps_bits(call) ? t.bits.data() : nullptr;
    b.residual = call.residual && !keeps_bits(call) ? t.residual.data() : nullptr;
    b.mask = call.weighs || call.zeroes ? t.mask.data() : nullptr;
    b.mask_elements = call.by_element, b.weighs = call.weighs, b.zeroes = call.zeroes;
    b.mean = t.mean.data(), b.rstd = t.rstd.data(), b.counts = call.weighs ? t.count.data() : nullptr;
    b.count = static_cast<double>(p.count());
    b.sum_g = t.sum_g.data(), b.sum_gx = t.sum_gx.data();
    b.dweight = t.dweight.data(), b.dbias = t.dbias.data(), b.dx = t.dx.data();
    b.dresidual = call.residual ? t.dresidual.data() : nullptr;
    b.centered = call.centered, b.measured = call.measured, b.sum = b.input = true, b.threads = call.threads;
    backward(b);
}

// Compares what was found with the truth, and says once what is wrong.
struct Judge {
    const Case& c;
    const Call& call;
    int before;               // failures of other cases
    double single, rounding;  // relative errors: of statistics and sums, and of an element's type

    Judge(const Case& the_case, const Call& the_call, int failures_before)
        : c(the_case), call(the_call), before(failures_before) {
        single = call.dtype == DType::float64 ? 1e-12 : 3e-6;
        rounding = call.dtype == DType::bfloat16 ? 1.0 / 256 : call.dtype == DType::float16 ? 1.0 / 2048 : 0;
    }

    void near(const char* what, i64 at, double found, double truth, double size) const {
        if (std::fabs(found - truth) <= size) return;
        if (++failures - before > 3) return;
        std::printf("wrong %s: %s, element %lld: %.9g, not %.9g (type %d, activation %d, %d threads%s%s%s)\n",
                    what, c.name, static_cast<long long>(at), found, truth, static_cast<int>(call.dtype),
                    static_cast<int>(call.kind), call.threads, call.residual ? ", residual" : "",
                    call.weighs ? ", weights" : "", call.zeroes ? ", zeroing" : "");
    }

    template <class A>
    void sums(const char* what, const std::vector<A>& found, const std::vector<Sum>& truth) const {
        for (std::size_t i = 0; i < found.size(); ++i)
            near(what, static_cast<i64>(i), found[i], truth[i].value, single * (1 + truth[i].size));
    }
    template <class A>
    void numbers(const char* what, const std::vector<A>& found, const std::vector<double>& truth) const {
        for (std::size_t i = 0; i < found.size(); ++i)
            near(what, static_cast<i64>(i), found[i], truth[i], single * (1 + std::fabs(truth[i])));
    }

    template <class A>
    void elements(const Tensors<A>& t, const Truth& truth) const {
        const Partition& p = c.p;
        for (i64 k = 0; k < p.numel(); ++k) {
            const i64 s = Truth::set_of(p, k);
            const double of_y = 8 * single * (1 + std::fabs(truth.z[k])) + rounding * std::fabs(truth.y[k]);
            near("y", k, get(t.y, call.dtype, k), truth.y[k], of_y);
            if (at_kink(call.kind, truth.z[k])) continue;
            if (keeps_bits(call))
                near("bit", k, t.bits[k / 8] >> k % 8 & 1, slope(call.kind, truth.z[k]) == 1, 0.5);
            const double shared = (truth.sum_g[s].size + 4 * truth.sum_gx[s].size) * truth.rstd[s];
            const double terms = truth.rstd[s] * (1 + std::fabs(truth.g[k]) * 4) + shared / (p.count() + 1);
            const double of_dx = 8 * single * terms + rounding * std::fabs(truth.dx[k]);
            near("dx", k, get(t.dx, call.dtype, k), truth.dx[k], of_dx);
            if (!call.residual) continue;
            const double of_g = 8 * single * (1 + std::fabs(truth.g[k])) + rounding * std::fabs(truth.g[k]);
            near("dresidual", k, get(t.dresidual, call.dtype, k), truth.g[k], of_g);
        }
    }
};

template <class A>
void check(const Case& c, const Call& call, int before) {
    Tensors<A> t(c.p, call);
    const Truth truth(c.p, call, t.given);
    run_forward(c.p, call, t);
    run_backward(c.p, call, t);
    const Judge judge(c, call, before);
    judge.numbers("mean", t.mean, truth.mean);
    judge.numbers("m2", t.m2, truth.m2);
    judge.numbers("rstd", t.rstd, truth.rstd);
    if (call.weighs) judge.numbers("count", t.count, truth.count);
    judge.sums("sum of g", t.sum_g, truth.sum_g);
    judge.sums("sum of gx", t.sum_gx, truth.sum_gx);
    judge.sums("dweight", t.dweight, truth.dweight);
    judge.sums("dbias", t.dbias, truth.dbias);
    judge.elements(t, truth);
}

void check_all(const Case& c, int threads) {
    const int before = failures;
    for (DType dtype : {DType::float64, DType::float32, DType::bfloat16, DType::float16}) {
        const auto run = [&](Call call) {
            call.dtype = dtype, call.threads = threads;
            dtype == DType::float64 ? check<double>(c, call, before) : check<float>(c, call, before);
        };
        for (int kind = 0; kind < 7; ++kind)
            for (bool residual : {false, true}) run({{}, static_cast<Kind>(kind), residual});
        Call call{{}, Kind::relu};
        call.centered = false, run(call);
        call.centered = true, call.measured = false, run(call);
        call.residual = true, run(call);
        if (!c.masked) continue;
        for (Kind kind : {Kind::relu, Kind::silu})
            for (int mask = 1; mask < 4; ++mask)
                for (bool by_element : {false, true})
                    run({{}, kind, by_element, mask != 2, mask >= 2, by_element, true, mask == 1});
    }
}

}  // namespace

int main() {
    const Steps* all;
    const int sets = available(&all);
    for (int i = 0; i < sets; ++i) {
        use(all[i].isa);
        for (const Case& c : kCases)
            for (int threads : {1, 3}) check_all(c, threads);
        std::printf("%s: %d numbers are wrong\n", all[i].isa, failures);
        if (failures) return 1;
    }
    return 0;
}
