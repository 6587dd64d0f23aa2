// The steps as the kernels offer them, for every instruction set: plain addresses and sizes.
#pragma once

#include <cstdint>

#include "partition.hpp"

namespace evenly {

enum class DType { float32, float64, bfloat16, float16 };
enum class Kind { identity, relu, relu6, leaky_relu, elu, silu, gelu };

// "A" below is the type of statistics: double for float64, else float.
// Addresses that may be null say so; all tensors are dense, in the partition's memory order.

// Steps 1 (measure) and 2 (apply), one or both:
//   y = activation(weight * (x - mean) * rstd + bias + residual)
struct Forward {
    Partition partition;
    DType dtype;
    Kind kind;
    double arg;            // of the activation
    const void* x;         // T[numel]
    const void* residual;  // T[numel] or null
    const void* weight;    // A[channels] or null
    const void* bias;      // A[channels] or null
    const void* mask;      // A[positions], or A[numel] with mask_elements, or null
    bool mask_elements;
    bool weighs;         // the mask enters the statistics
    bool zeroes;         // the output is 0 where the mask is
    void* y;             // T[numel]
    std::uint8_t* bits;  // one bit an element, set where the slope is 1; or null
    void* mean;          // A[sets]: written by step 1, read by step 2
    void* m2;            // A[sets]: written by step 1
    void* rstd;          // A[sets]: written by step 1, read by step 2
    void* count;         // A[sets]: written by step 1 where the mask weighs, else null
    double eps;
    bool centered;  // false: the mean stays 0 (RMS norm)
    bool measure, apply;
    int threads;
};

// Steps 3 (sum) and 4 (input), one or both:
//   g = dy * activation'(z),  dx = rstd * (weight * g - m * (sum g + xhat * sum gx) / count)
struct Backward {
    Partition partition;
    DType dtype;
    Kind kind;
    double arg;
    const void* dy;            // T[numel]
    const void* x;             // T[numel]
    const void* residual;      // T[numel] or null: where the slope needs it
    const std::uint8_t* bits;  // or null: in place of the residual
    const void* weight;        // A[channels] or null
    const void* bias;          // A[channels] or null
    const void* mask;          // as in Forward
    bool mask_elements;
    bool weighs, zeroes;
    const void* mean;    // A[sets]
    const void* rstd;    // A[sets]
    const void* counts;  // A[sets] or null: then `count`
    double count;
    void* sum_g;      // A[sets]: sum of weight * g; written by step 3, read by step 4
    void* sum_gx;     // A[sets]: sum of weight * g * xhat
    void* dweight;    // A[channels]: written by step 3
    void* dbias;      // A[channels]
    void* dx;         // T[numel] or null
    void* dresidual;  // T[numel] or null
    bool centered;
    bool measured;  // gradients flow through the statistics
    bool sum, input;
    int threads;
};

// Buffers that a batch enters; the rule is evenly/backends/running.py.
struct Running {
    void* mean;     // A[channels]
    void* var;      // A[channels]
    i64* batches;   // or null
    i64* skipped;   // or null
    double factor;  // weight of this batch
    bool unbiased, skip_nonfinite;
};

// One compiled copy of the steps.
struct Steps {
    const char* isa;
    void (*forward)(const Forward&);
    void (*backward)(const Backward&);
};

// The copies this machine can run, the best last; `steps` is the one in use (but for short calls,
// which have the best of 256 bits unless one was asked for by name).
const Steps* steps();
int available(const Steps** out);  // at most 4
bool use(const char* isa);         // false where unknown or not runnable here

void forward(const Forward&, const Running*);
void backward(const Backward&);

// What a team of `wanted` threads shrinks to for `bytes` of input.
int threads_for(i64 bytes, int wanted);

struct Caches {
    i64 l2, last;  // bytes: of one core, of all
};
const Caches& caches();

// Memory for one call, kept by the calling thread; valid until its next call.
char* scratch(i64 bytes);

// Memory for what the two halves of a call pass on, while the scratch is in use; kept by the calling thread.
char* between(i64 bytes);

// After fork the OpenMP team is gone, and waiting for it would never end.
void note_fork();

}  // namespace evenly
