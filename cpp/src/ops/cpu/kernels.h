// Row kernels for the CPU, compiled once per instruction set and chosen when the library loads.
//
// Everything here works on raw pointers: T is the stored type (float, double, BFloat16) and
// Accumulate<T> the type the arithmetic is done in. Callers split the rows among threads.
#pragma once

#include <c10/util/BFloat16.h>

#include <cstdint>
#include <type_traits>

namespace tabes::cpu {

template <typename T>
using Accumulate = std::conditional_t<std::is_same_v<T, double>, double, float>;

enum class Gate { silu, gelu };

// What one row of logits says; entropy in nats.
template <typename A>
struct RowStatistics {
  A lse, entropy, max_prob, margin;
  int64_t argmax;
};

template <typename T>
struct Kernels {
  using A = Accumulate<T>;

  // y = x / rms(x) * weight over rows of `n`; x rows lie `stride` apart, y rows n apart.
  void (*rms_norm)(const T* x, int64_t stride, const A* weight, T* y, int64_t rows, int64_t n,
                   A eps);
  // dx of the above for dy of rows n apart; x as there, dx rows n apart.
  void (*rms_norm_backward)(const T* dy, const T* x, int64_t stride, const A* weight, T* dx,
                            int64_t rows, int64_t n, A eps);
  // Rotates, in place, `heads` consecutive heads of 2 * half elements at the start of each row
  // (row stride `stride`), by the negative angle if `inverse`; cos and sin hold `half` values for
  // each position.
  void (*rope)(T* x, int64_t stride, int64_t heads, int64_t half, const A* cos, const A* sin,
               const int64_t* positions, int64_t rows, bool inverse);
  // y[r, j] = act(x[r, j]) * x[r, n + j] for rows of 2n.
  void (*gated)(const T* x, T* y, int64_t rows, int64_t n, Gate gate);
  // dx [rows, 2n] of the above for dy [rows, n].
  void (*gated_backward)(const T* dy, const T* x, T* dx, int64_t rows, int64_t n, Gate gate);
  void (*statistics)(const T* logits, int64_t rows, int64_t n, RowStatistics<A>* out);
  // out[j] = exp((x[j] - shift) * inverse_temperature); returns the sum.
  A (*exp_row)(const T* x, A shift, A inverse_temperature, A* out, int64_t n);
  // One row, in place: the derivative of weight * entropy by each logit.
  void (*entropy_adjoint)(T* x, int64_t argmax, A max_prob, A entropy, A weight, int64_t n);
};

// The best kernels this processor can run.
template <typename T>
const Kernels<T>& kernels();

// "avx512", "avx2" or "default": what kernels() chose.
const char* instruction_set();

}  // namespace tabes::cpu
