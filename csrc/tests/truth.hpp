// The four steps as plain loops in double, and elements of any type as doubles.
#pragma once

#include <cmath>
#include <cstring>
#include <vector>

#include "../kernels.hpp"

namespace truth {

using namespace evenly;

struct Case {
    const char* name;
    Partition p;
    bool masked;
};

// What a call asks for besides its case.
struct Call {
    DType dtype;
    Kind kind;
    bool residual = false, weighs = false, zeroes = false, by_element = false, centered = true,
         measured = true;
    int threads = 1;
};

constexpr double kArg = 0.5, kEps = 1e-3;

inline i64 size_of(DType dtype) { return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2; }

inline double get(const std::vector<char>& memory, DType dtype, i64 k) {
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
inline void put(std::vector<char>& memory, DType dtype, i64 k, int eighths) {
    const double value = eighths / 8.0;
    if (dtype == DType::float64) reinterpret_cast<double*>(memory.data())[k] = value;
    if (dtype == DType::float32) reinterpret_cast<float*>(memory.data())[k] = static_cast<float>(value);
    std::uint16_t* halves = reinterpret_cast<std::uint16_t*>(memory.data());
    if (dtype == DType::bfloat16) {
        const float single = static_cast<float>(value);
        std::uint32_t u;
        std::memcpy(&u, &single, 4);
        halves[k] = static_cast<std::uint16_t>(u >> 16);
    }
    if (dtype == DType::float16) {
        int exponent = 0;
        const double fraction = std::frexp(std::fabs(value), &exponent);
        const int bits = value == 0 ? 0 : ((exponent + 14) << 10) + static_cast<int>(fraction * 2048) - 1024;
        halves[k] = static_cast<std::uint16_t>(bits | (value < 0 ? 0x8000 : 0));
    }
}

inline double activate(Kind kind, double z) {
    switch (kind) {
        case Kind::identity:
            return z;
        case Kind::relu:
            return z > 0 ? z : 0;
        case Kind::relu6:
            return z > 0 ? std::fmin(z, 6) : 0;
        case Kind::leaky_relu:
            return z > 0 ? z : kArg * z;
        case Kind::elu:
            return z > 0 ? z : kArg * std::expm1(z);
        case Kind::silu:
            return z / (1 + std::exp(-z));
        case Kind::gelu:
            return 0.5 * z * std::erfc(-z / std::sqrt(2.0));
    }
    return 0;
}

inline double slope(Kind kind, double z) {
    const double s = 1 / (1 + std::exp(-z));
    switch (kind) {
        case Kind::identity:
            return 1;
        case Kind::relu:
            return z > 0;
        case Kind::relu6:
            return z > 0 && z < 6;
        case Kind::leaky_relu:
            return z > 0 ? 1 : kArg;
        case Kind::elu:
            return z > 0 ? 1 : kArg * std::exp(z);
        case Kind::silu:
            return s * (1 + z * (1 - s));
        case Kind::gelu:
            return 0.5 * std::erfc(-z / std::sqrt(2.0)) + z * std::exp(-z * z / 2) * 0.3989422804014327;
    }
    return 0;
}

// Whether the slope jumps so near that rounding may choose the other side.
inline bool at_kink(Kind kind, double z) {
    const bool kinked = kind == Kind::relu || kind == Kind::relu6 || kind == Kind::leaky_relu;
    return kinked && (std::fabs(z) < 1e-4 || (kind == Kind::relu6 && std::fabs(z - 6) < 1e-4));
}

// The numbers a call is given, as doubles.
struct Given {
    std::vector<double> x, dy, residual, weight, bias, mask;
};

// A sum, and how large its terms are: rounding errors are a part of that.
struct Sum {
    double value = 0, size = 0;
    void add(double term) {
        value += term;
        size += std::fabs(term);
    }
};

struct Truth {
    std::vector<double> count, mean, m2, rstd, z, y, dx, g;
    std::vector<Sum> sum_g, sum_gx, dweight, dbias;

    Truth(const Partition& p, const Call& call, const Given& given)
        : count(p.sets()), mean(p.sets()), m2(p.sets()), rstd(p.sets()) {
        measure(p, call, given);
        apply(p, call, given);
        sum(p, call, given);
        input(p, call, given);
    }

    static i64 set_of(const Partition& p, i64 k) {
        return k / (p.batch * p.row()) * p.group + k / p.inner % p.group;
    }
    static i64 channel_of(const Partition& p, i64 k) { return k / p.stride % p.channels; }

  private:
    static double share(const Call& call, const Given& given, i64 k) {
        return call.weighs ? given.mask[k] : 1;
    }
    static bool is_zeroed(const Call& call, const Given& given, i64 k) {
        return call.zeroes && !(given.mask[k] > 0);
    }

    void measure(const Partition& p, const Call& call, const Given& given) {
        for (i64 k = 0; k < p.numel(); ++k) {
            count[set_of(p, k)] += share(call, given, k);
            mean[set_of(p, k)] += share(call, given, k) * given.x[k];
        }
        for (i64 s = 0; s < p.sets(); ++s) mean[s] = call.centered && count[s] > 0 ? mean[s] / count[s] : 0;
        for (i64 k = 0; k < p.numel(); ++k) {
            const double d = given.x[k] - mean[set_of(p, k)];
            m2[set_of(p, k)] += share(call, given, k) * d * d;
        }
        for (i64 s = 0; s < p.sets(); ++s)
            rstd[s] = 1 / std::sqrt(m2[s] / (count[s] > 0 ? count[s] : 1) + kEps);
    }

    double xhat(const Partition& p, const Given& given, i64 k) const {
        return (given.x[k] - mean[set_of(p, k)]) * rstd[set_of(p, k)];
    }

    void apply(const Partition& p, const Call& call, const Given& given) {
        z.resize(p.numel()), y.resize(p.numel());
        for (i64 k = 0; k < p.numel(); ++k) {
            const i64 c = channel_of(p, k);
            z[k] =
                xhat(p, given, k) * given.weight[c] + given.bias[c] + (call.residual ? given.residual[k] : 0);
            y[k] = is_zeroed(call, given, k) ? 0 : activate(call.kind, z[k]);
        }
    }

    void sum(const Partition& p, const Call& call, const Given& given) {
        sum_g.resize(p.sets()), sum_gx.resize(p.sets());
        dweight.resize(p.channels), dbias.resize(p.channels), g.resize(p.numel());
        for (i64 k = 0; k < p.numel(); ++k) {
            const i64 s = set_of(p, k), c = channel_of(p, k);
            const double hat = xhat(p, given, k), weight = given.weight[c];
            const bool doubtful = at_kink(call.kind, z[k]);
            g[k] = is_zeroed(call, given, k) ? 0 : given.dy[k] * slope(call.kind, z[k]);
            const double most = doubtful ? given.dy[k] : g[k];  // where the slope may be either
            sum_g[s].add(weight * g[k]), sum_gx[s].add(weight * g[k] * hat);
            dbias[c].add(g[k]), dweight[c].add(g[k] * hat);
            // The mean is rounded too, which xhat multiplies by rstd.
            sum_gx[s].size += std::fabs(weight * g[k]) * rstd[s],
                dweight[c].size += std::fabs(g[k]) * rstd[s];
            if (!doubtful) continue;
            sum_g[s].size += 1e9 * std::fabs(weight * most),
                sum_gx[s].size += 1e9 * std::fabs(weight * most * hat);
            dbias[c].size += 1e9 * std::fabs(most), dweight[c].size += 1e9 * std::fabs(most * hat);
        }
    }

    void input(const Partition& p, const Call& call, const Given& given) {
        dx.resize(p.numel());
        for (i64 k = 0; k < p.numel(); ++k) {
            const i64 s = set_of(p, k);
            const double hat = is_zeroed(call, given, k) ? 0 : xhat(p, given, k);
            const double centered = call.centered ? sum_g[s].value : 0;
            const double through = (centered + hat * sum_gx[s].value) / (count[s] > 0 ? count[s] : 1);
            dx[k] = rstd[s] * (given.weight[channel_of(p, k)] * g[k] -
                               (call.measured ? share(call, given, k) * through : 0));
        }
    }
};

}  // namespace truth
