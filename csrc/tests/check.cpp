// The kernels under the sanitizers: every walk, type, activation, mask, and a team of threads, against
// a plain double loop. Sanitizers find wrong addresses, undefined arithmetic and races; the loop
// finds wrong numbers, so that the program cannot pass by doing nothing.

#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "../kernels.hpp"

using namespace evenly;

namespace {

struct Case {
    const char* name;
    Partition p;
    bool masked;
};

const Case kCases[] = {
    {"planes", {1, 3, 5, 700, 5, 700}, true},
    {"planes shared by a team", {1, 2, 1, 9001, 1, 9001}, true},
    {"planes of groups", {2, 1, 2, 4 * 77, 8, 77}, true},
    {"short planes as columns", {1, 16, 24, 49, 24, 49}, true},
    {"medium planes as columns", {1, 9, 8, 196, 8, 196}, true},
    {"planes of half lines", {1, 8, 5, 784, 5, 784}, true},
    {"blocks wider than a tile", {1, 9, 40, 49, 40, 49}, true},
    {"columns", {1, 999, 70, 1, 70, 1}, true},
    {"narrow columns, folded", {1, 1001, 3, 1, 3, 1}, true},
    {"wide columns", {1, 5, 2500, 1, 2500, 1}, true},
    {"columns of instances", {4, 99, 7, 1, 7, 1}, true},
    {"columns of groups", {3, 35, 4, 3, 12, 1}, true},
    {"rows", {20, 1, 1, 65, 65, 1}, false},
    {"long rows", {3, 1, 1, 2500, 2500, 1}, false},
};

// The tests' own element access, through float alone for the half types.
double get(const std::vector<char>& memory, DType dtype, i64 k) {
    if (dtype == DType::float64) return reinterpret_cast<const double*>(memory.data())[k];
    if (dtype == DType::float32) return reinterpret_cast<const float*>(memory.data())[k];
    const std::uint16_t h = reinterpret_cast<const std::uint16_t*>(memory.data())[k];
    if (dtype == DType::bfloat16) {
        const std::uint32_t u = static_cast<std::uint32_t>(h) << 16;
        float value;
        std::memcpy(&value, &u, 4);
        return value;
    }
    const int exponent = (h >> 10) & 31, fraction = h & 1023;
    const double magnitude =
        exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
    return h & 0x8000 ? -magnitude : magnitude;
}

// Multiples of 1/8 in [-4, 4): exact in every type.
void put(std::vector<char>& memory, DType dtype, i64 k, int eighths) {
    const double value = eighths / 8.0;
    if (dtype == DType::float64) reinterpret_cast<double*>(memory.data())[k] = value;
    if (dtype == DType::float32) reinterpret_cast<float*>(memory.data())[k] = static_cast<float>(value);
    if (dtype == DType::bfloat16) {
        const float single = static_cast<float>(value);
        std::uint32_t u;
        std::memcpy(&u, &single, 4);
        reinterpret_cast<std::uint16_t*>(memory.data())[k] = static_cast<std::uint16_t>(u >> 16);
    }
    if (dtype == DType::float16) {
        int exponent = 0;
        const double fraction = std::frexp(std::fabs(value), &exponent);
        const int bits = value == 0 ? 0 : ((exponent + 14) << 10) + static_cast<int>(fraction * 2048) - 1024;
        reinterpret_cast<std::uint16_t*>(memory.data())[k] =
            static_cast<std::uint16_t>(bits | (value < 0 ? 0x8000 : 0));
    }
}

int failures = 0;

void expect(bool near, const char* what, const Case& c, DType dtype, Kind kind, int threads) {
    if (near) return;
    ++failures;
    std::printf("wrong %s: %s, type %d, activation %d, %d threads\n", what, c.name, static_cast<int>(dtype),
                static_cast<int>(kind), threads);
}

double relu(double z) { return z > 0 ? z : 0; }

// Forward and backward of one case; y and dx are compared where the activation is none or ReLU.
template <class A>
void check(const Case& c, DType dtype, Kind kind, bool with_residual, bool with_mask, int threads) {
    const Partition& p = c.p;
    const i64 n = p.numel(), size = dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2;
    const i64 span = p.channels * p.stride, positions = n / p.channels;
    std::mt19937 random(7);
    std::vector<char> x(n * size), residual(n * size), dy(n * size), y(n * size), dx(n * size),
        dresidual(n * size);
    std::vector<A> weight(p.channels), bias(p.channels), mask(positions), mean(p.sets()), m2(p.sets()),
        rstd(p.sets());
    std::vector<A> count(p.sets()), sum_g(p.sets()), sum_gx(p.sets()), dweight(p.channels), dbias(p.channels);
    std::vector<std::uint8_t> bits((n + 7) / 8, 0xa5);
    const auto draw = [&] { return static_cast<int>(random() % 64) - 32; };
    for (i64 k = 0; k < n; ++k)
        put(x, dtype, k, draw()), put(residual, dtype, k, draw()), put(dy, dtype, k, draw());
    for (A& w : weight) w = static_cast<A>(draw() / 8.0);
    for (A& b : bias) b = static_cast<A>(draw() / 8.0 + 0.01);
    for (A& m : mask) m = static_cast<A>(random() % 3);
    mask[0] = 1;
    const bool signs = with_residual && kind == Kind::relu;
    const A* weights = with_mask ? mask.data() : nullptr;
    const void* added = with_residual ? residual.data() : nullptr;
    forward(Forward{p,
                    dtype,
                    kind,
                    0.5,
                    x.data(),
                    added,
                    weight.data(),
                    bias.data(),
                    weights,
                    false,
                    with_mask,
                    false,
                    y.data(),
                    signs ? bits.data() : nullptr,
                    mean.data(),
                    m2.data(),
                    rstd.data(),
                    with_mask ? count.data() : nullptr,
                    1e-3,
                    true,
                    true,
                    true,
                    threads},
            nullptr);
    backward(Backward{p,
                      dtype,
                      kind,
                      0.5,
                      dy.data(),
                      x.data(),
                      signs ? nullptr : added,
                      signs ? bits.data() : nullptr,
                      weight.data(),
                      bias.data(),
                      weights,
                      false,
                      with_mask,
                      false,
                      mean.data(),
                      rstd.data(),
                      with_mask ? count.data() : nullptr,
                      static_cast<double>(p.count()),
                      sum_g.data(),
                      sum_gx.data(),
                      dweight.data(),
                      dbias.data(),
                      dx.data(),
                      with_residual ? dresidual.data() : nullptr,
                      true,
                      true,
                      true,
                      true,
                      threads});

    std::vector<double> w(p.sets(), 0), mu(p.sets(), 0), var(p.sets(), 0), g_sum(p.sets(), 0),
        gx_sum(p.sets(), 0);
    const auto set_of = [&](i64 k) { return k / (p.batch * p.row()) * p.group + k / p.inner % p.group; };
    const auto mask_of = [&](i64 k) {
        return with_mask ? double(mask[k / span * p.stride + k % p.stride]) : 1.0;
    };
    for (i64 k = 0; k < n; ++k) w[set_of(k)] += mask_of(k), mu[set_of(k)] += mask_of(k) * get(x, dtype, k);
    for (i64 s = 0; s < p.sets(); ++s) mu[s] /= w[s] > 0 ? w[s] : 1;
    for (i64 k = 0; k < n; ++k) var[set_of(k)] += mask_of(k) * std::pow(get(x, dtype, k) - mu[set_of(k)], 2);
    for (i64 s = 0; s < p.sets(); ++s) var[s] /= w[s] > 0 ? w[s] : 1;
    const auto xhat = [&](i64 k) {
        return (get(x, dtype, k) - mu[set_of(k)]) / std::sqrt(var[set_of(k)] + 1e-3);
    };
    const auto z = [&](i64 k) {
        const i64 channel = k / p.stride % p.channels;
        return xhat(k) * weight[channel] + bias[channel] + (with_residual ? get(residual, dtype, k) : 0);
    };
    const auto g = [&](i64 k) { return kind == Kind::relu && z(k) <= 0 ? 0.0 : get(dy, dtype, k); };
    const auto wg = [&](i64 k) { return g(k) * weight[k / p.stride % p.channels]; };
    for (i64 k = 0; k < n; ++k) g_sum[set_of(k)] += wg(k), gx_sum[set_of(k)] += wg(k) * xhat(k);
    const double tolerance = size == 8 ? 1e-9 : size == 4 ? 2e-3 : 0.3;
    for (i64 k = 0; kind <= Kind::relu && k < n; ++k) {
        const i64 s = set_of(k);
        const double truth = kind == Kind::relu ? relu(z(k)) : z(k);
        expect(std::fabs(get(y, dtype, k) - truth) < tolerance, "y", c, dtype, kind, threads);
        if (std::fabs(z(k)) < 1e-5) continue;  // the slope jumps here
        const double shared = mask_of(k) * (g_sum[s] + xhat(k) * gx_sum[s]) / (w[s] > 0 ? w[s] : 1);
        const double input = (wg(k) - shared) / std::sqrt(var[s] + 1e-3);
        const double scale = 1 + std::fabs(input);
        expect(std::fabs(get(dx, dtype, k) - input) < tolerance * scale, "dx", c, dtype, kind, threads);
    }
}

}  // namespace

int main() {
    for (const Case& c : kCases) {
        for (int threads : {1, 3}) {
            for (int kind = 0; kind < 7; ++kind)
                for (bool residual : {false, true})
                    check<double>(c, DType::float64, static_cast<Kind>(kind), residual, false, threads);
            for (DType dtype : {DType::float32, DType::bfloat16, DType::float16})
                for (bool residual : {false, true})
                    check<float>(c, dtype, Kind::relu, residual, false, threads);
            if (c.masked) check<float>(c, DType::float32, Kind::relu, true, true, threads);
        }
    }
    std::printf(failures ? "%d numbers are wrong\n" : "all numbers agree\n", failures);
    return failures != 0;
}
