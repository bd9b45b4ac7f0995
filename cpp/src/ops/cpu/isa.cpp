// The row kernels; compiled once per instruction set (vectors.h).
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "ops/cpu/kernels.h"
#include "ops/cpu/vectors.h"

namespace tabes::cpu::TABES_ISA {
namespace {

// Rows are worked on in A. Where T is A the rows are used where they lie; else they pass through
// a buffer, which stays in the first-level cache for every width a model has.
template <typename T>
class Staged {
 public:
  using A = Accumulate<T>;

  explicit Staged(int64_t n) {
    if constexpr (!std::is_same_v<T, A>) buffer_.resize(n);
  }
  const A* in(const T* source, int64_t n) {
    if constexpr (std::is_same_v<T, A>) {
      return source;
    } else {
      at::vec::convert(source, buffer_.data(), n);
      return buffer_.data();
    }
  }
  A* out(T* destination) {
    if constexpr (std::is_same_v<T, A>) {
      return destination;
    } else {
      return buffer_.data();
    }
  }
  void finish(T* destination, int64_t n) {
    if constexpr (!std::is_same_v<T, A>) at::vec::convert(buffer_.data(), destination, n);
  }

 private:
  std::vector<A> buffer_;
};

template <typename T>
void rms_norm(const T* x, int64_t stride, const Accumulate<T>* weight, T* y, int64_t rows,
              int64_t n, Accumulate<T> eps) {
  using A = Accumulate<T>;
  Staged<T> source(n), result(n);
  for (int64_t r = 0; r < rows; ++r) {
    const A* in = source.in(x + r * stride, n);
    Vec<A> total(0);
    for_pieces<A>(n, [&](int64_t i, int64_t c) {
      // Lanes past the end are zero in a partial load, so they add nothing.
      const Vec<A> v = c == Vec<A>::size() ? Vec<A>::loadu(in + i)
                                           : Vec<A>::set(Vec<A>(0), Vec<A>::loadu(in + i, c), c);
      total = at::vec::fmadd(v, v, total);
    });
    const A scale = A(1) / std::sqrt(reduce_add<A>(total) / static_cast<A>(n) + eps);
    A* out = result.out(y + r * n);
    for_pieces<A>(n, [&](int64_t i, int64_t c) {
      store<A>(load(in + i, c) * Vec<A>(scale) * load(weight + i, c), out + i, c);
    });
    result.finish(y + r * n, n);
  }
}

// With s = 1 / rms: dx = s (w dy) - x s^3 / n * sum(x w dy).
template <typename T>
void rms_norm_backward(const T* dy, const T* x, int64_t stride, const Accumulate<T>* weight, T* dx,
                       int64_t rows, int64_t n, Accumulate<T> eps) {
  using A = Accumulate<T>;
  Staged<T> source(n), gradient(n), result(n);
  for (int64_t r = 0; r < rows; ++r) {
    const A* in = source.in(x + r * stride, n);
    const A* g = gradient.in(dy + r * n, n);
    Vec<A> squares(0), products(0);
    for_pieces<A>(n, [&](int64_t i, int64_t c) {
      // Lanes past the end are zero in the first factor, so they add nothing.
      const Vec<A> v = c == Vec<A>::size() ? Vec<A>::loadu(in + i)
                                           : Vec<A>::set(Vec<A>(0), Vec<A>::loadu(in + i, c), c);
      Vec<A> gw = load(g + i, c) * load(weight + i, c);
      if (c < Vec<A>::size()) gw = Vec<A>::set(Vec<A>(0), gw, c);
      squares = at::vec::fmadd(v, v, squares);
      products = at::vec::fmadd(v, gw, products);
    });
    const A scale = A(1) / std::sqrt(reduce_add<A>(squares) / static_cast<A>(n) + eps);
    const A back = scale * scale * scale * reduce_add<A>(products) / static_cast<A>(n);
    A* out = result.out(dx + r * n);
    for_pieces<A>(n, [&](int64_t i, int64_t c) {
      const Vec<A> gw = load(g + i, c) * load(weight + i, c);
      store<A>(gw * Vec<A>(scale) - load(in + i, c) * Vec<A>(back), out + i, c);
    });
    result.finish(dx + r * n, n);
  }
}

template <typename T>
void rope(T* x, int64_t stride, int64_t heads, int64_t half, const Accumulate<T>* cos,
          const Accumulate<T>* sin, const int64_t* positions, int64_t rows, bool inverse) {
  using A = Accumulate<T>;
  Staged<T> stage(2 * half);
  const Vec<A> sign(inverse ? A(-1) : A(1));
  for (int64_t r = 0; r < rows; ++r) {
    const A* c_row = cos + positions[r] * half;
    const A* s_row = sin + positions[r] * half;
    for (int64_t h = 0; h < heads; ++h) {
      T* head = x + r * stride + h * 2 * half;
      const A* in = stage.in(head, 2 * half);
      A* out = stage.out(head);
      for_pieces<A>(half, [&](int64_t i, int64_t n) {
        const Vec<A> c = load(c_row + i, n), s = load(s_row + i, n) * sign;
        const Vec<A> a = load(in + i, n), b = load(in + half + i, n);
        store<A>(a * c - b * s, out + i, n);
        store<A>(b * c + a * s, out + half + i, n);
      });
      stage.finish(head, 2 * half);
    }
  }
}

template <typename A>
inline Vec<A> activate(const Vec<A>& x, Gate gate) {
  if (gate == Gate::silu) return x / (Vec<A>(1) + x.neg().exp_u20());
  return x * Vec<A>(A(0.5)) * (Vec<A>(1) + (x * Vec<A>(A(M_SQRT1_2))).erf());
}

template <typename T>
void gated(const T* x, T* y, int64_t rows, int64_t n, Gate gate) {
  using A = Accumulate<T>;
  Staged<T> first(n), second(n), result(n);
  for (int64_t r = 0; r < rows; ++r) {
    const A* g = first.in(x + r * 2 * n, n);
    const A* u = second.in(x + r * 2 * n + n, n);
    A* out = result.out(y + r * n);
    for_pieces<A>(n, [&](int64_t i, int64_t c) {
      store<A>(activate<A>(load(g + i, c), gate) * load(u + i, c), out + i, c);
    });
    result.finish(y + r * n, n);
  }
}

template <typename T>
void gated_backward(const T* dy, const T* x, T* dx, int64_t rows, int64_t n, Gate gate) {
  using A = Accumulate<T>;
  constexpr A kInverseSqrt2Pi = A(0.3989422804014327);
  Staged<T> first(n), second(n), gradient(n), d_first(n), d_second(n);
  for (int64_t r = 0; r < rows; ++r) {
    const A* g = first.in(x + r * 2 * n, n);
    const A* u = second.in(x + r * 2 * n + n, n);
    const A* d = gradient.in(dy + r * n, n);
    A* dg = d_first.out(dx + r * 2 * n);
    A* du = d_second.out(dx + r * 2 * n + n);
    for_pieces<A>(n, [&](int64_t i, int64_t c) {
      const Vec<A> v = load(g + i, c), one(1);
      Vec<A> share, slope;  // act(v) = v * share; slope = act'(v)
      if (gate == Gate::silu) {
        share = one / (one + v.neg().exp_u20());
        slope = share * (one + v * (one - share));
      } else {
        share = Vec<A>(A(0.5)) * (one + (v * Vec<A>(A(M_SQRT1_2))).erf());
        slope = share + v * Vec<A>(kInverseSqrt2Pi) * (v * v * Vec<A>(A(-0.5))).exp_u20();
      }
      const Vec<A> down = load(d + i, c);
      store<A>(down * load(u + i, c) * slope, dg + i, c);
      store<A>(down * v * share, du + i, c);
    });
    d_first.finish(dx + r * 2 * n, n);
    d_second.finish(dx + r * 2 * n + n, n);
  }
}

// Below this, exp is zero to the last bit that counts, while x * exp(x) stays finite: -inf logits
// (forbidden tokens) then add nothing to either sum.
template <typename A>
constexpr A kLowest = std::is_same_v<A, double> ? A(-700) : A(-87);

// A block is read from memory once and twice more from the first-level cache: for its two largest
// values, then for the sums relative to the running maximum (the online softmax of Milakov and
// Gimelshein, arXiv 1805.02867, extended to the entropy's sum of (x - max) exp(x - max)).
template <typename T>
void statistics(const T* logits, int64_t rows, int64_t n, RowStatistics<Accumulate<T>>* out) {
  using A = Accumulate<T>;
  constexpr int64_t kBlock = 2048;
  constexpr A kNone = -std::numeric_limits<A>::infinity();
  constexpr A kNan = std::numeric_limits<A>::quiet_NaN();
  Staged<T> stage(std::min(kBlock, n));
  for (int64_t r = 0; r < rows; ++r) {
    A top = kNone, second = kNone, sum = 0, weighted = 0;
    int64_t argmax = 0;
    for (int64_t start = 0; start < n; start += kBlock) {
      const int64_t size = std::min(kBlock, n - start);
      const A* x = stage.in(logits + r * n + start, size);
      Vec<A> first_v(kNone), second_v(kNone);
      for_pieces<A>(size, [&](int64_t i, int64_t c) {
        const Vec<A> v = c == Vec<A>::size()
                             ? Vec<A>::loadu(x + i)
                             : Vec<A>::set(Vec<A>(kNone), Vec<A>::loadu(x + i, c), c);
        second_v = at::vec::maximum(second_v, at::vec::minimum(first_v, v));
        first_v = at::vec::maximum(first_v, v);
      });
      A lanes[2 * Vec<A>::size()];
      first_v.store(lanes);
      second_v.store(lanes + Vec<A>::size());
      A block_top = kNone;
      bool bad = false;
      for (A lane : lanes) {
        if (!(lane < -kNone)) bad = true;  // NaN, or +inf, which no softmax can share
        if (lane > block_top) {
          second = std::max(second, block_top);
          block_top = lane;
        } else {
          second = std::max(second, lane);
        }
      }
      if (bad) {
        top = kNan;
        break;
      }
      if (block_top > top) {
        argmax = start + (std::find(x, x + size, block_top) - x);
        const A shift = std::max(top - block_top, kLowest<A>);  // top is -inf in the first block
        const A scale = std::exp(shift);
        weighted = scale * (weighted + shift * sum);
        sum *= scale;
        second = std::max(second, top);
        top = block_top;
      } else {
        second = std::max(second, block_top);
      }
      if (top == kNone) continue;
      Vec<A> sum_v(0), weighted_v(0);
      for_pieces<A>(size, [&](int64_t i, int64_t c) {
        const Vec<A> d = at::vec::clamp_min(load(x + i, c) - Vec<A>(top), Vec<A>(kLowest<A>));
        Vec<A> e = d.exp_u20();
        if (c < Vec<A>::size()) e = Vec<A>::set(Vec<A>(0), e, c);
        sum_v = sum_v + e;
        weighted_v =
            at::vec::fmadd(c < Vec<A>::size() ? Vec<A>::set(Vec<A>(0), d, c) : d, e, weighted_v);
      });
      sum += reduce_add<A>(sum_v);
      weighted += reduce_add<A>(weighted_v);
    }
    RowStatistics<A>& s = out[r];
    const A log_sum = std::log(sum);
    s.lse = top + log_sum;
    s.entropy = top == kNone ? kNan : std::max(A(0), log_sum - weighted / sum);
    s.max_prob = A(1) / sum;
    s.margin = (A(1) - std::exp(second - top)) / sum;
    s.argmax = argmax;
    if (std::isnan(top)) s.lse = s.entropy = s.max_prob = s.margin = top;
  }
}

template <typename T>
Accumulate<T> exp_row(const T* x, Accumulate<T> shift, Accumulate<T> inverse_temperature,
                      Accumulate<T>* out, int64_t n) {
  using A = Accumulate<T>;
  constexpr int64_t kBlock = 2048;
  Staged<T> stage(std::min(kBlock, n));
  A total = 0;
  for (int64_t start = 0; start < n; start += kBlock) {
    const int64_t size = std::min(kBlock, n - start);
    const A* in = stage.in(x + start, size);
    Vec<A> sum_v(0);
    for_pieces<A>(size, [&](int64_t i, int64_t c) {
      const Vec<A> d = (load(in + i, c) - Vec<A>(shift)) * Vec<A>(inverse_temperature);
      // A forbidden token must have probability exactly zero, not merely a tiny one.
      Vec<A> e = Vec<A>::blendv(at::vec::clamp_min(d, Vec<A>(kLowest<A>)).exp_u20(), Vec<A>(0),
                                d < Vec<A>(kLowest<A>));
      if (c < Vec<A>::size()) e = Vec<A>::set(Vec<A>(0), e, c);
      store<A>(e, out + start + i, c);
      sum_v = sum_v + e;
    });
    total += reduce_add<A>(sum_v);
  }
  return total;
}

// H = -sum p log p, so dH/dx_j = -p_j (log p_j + H). log p_j is taken from the largest logit, whose
// log p is small where the row is almost certain: x_j - lse would lose most of its digits there.
template <typename T>
void entropy_adjoint(T* x, int64_t argmax, Accumulate<T> max_prob, Accumulate<T> entropy,
                     Accumulate<T> weight, int64_t n) {
  using A = Accumulate<T>;
  constexpr int64_t kBlock = 2048;
  Staged<T> source(std::min(kBlock, n)), result(std::min(kBlock, n));
  if (weight == 0) {  // of a row that does not count, whatever it holds
    std::fill(x, x + n, T(0));
    return;
  }
  const Vec<A> top(static_cast<A>(x[argmax])), log_top(std::log(max_prob));
  for (int64_t start = 0; start < n; start += kBlock) {
    const int64_t size = std::min(kBlock, n - start);
    const A* in = source.in(x + start, size);
    A* out = result.out(x + start);
    for_pieces<A>(size, [&](int64_t i, int64_t c) {
      const Vec<A> log_p = (load(in + i, c) - top) + log_top;
      const Vec<A> bounded = at::vec::clamp_min(log_p, Vec<A>(kLowest<A>));
      // The exact exponential: the terms of a row cancel, which would magnify its error.
      const Vec<A> d = bounded.exp() * (bounded + Vec<A>(entropy)) * Vec<A>(-weight);
      store<A>(Vec<A>::blendv(d, Vec<A>(0), log_p < Vec<A>(kLowest<A>)), out + i, c);
    });
    result.finish(x + start, size);
  }
}

}  // namespace

template <typename T>
const Kernels<T>& table() {
  static const Kernels<T> kernels{rms_norm<T>, rms_norm_backward<T>, rope<T>,
                                  gated<T>,    gated_backward<T>,    statistics<T>,
                                  exp_row<T>,  entropy_adjoint<T>};
  return kernels;
}

template const Kernels<float>& table<float>();
template const Kernels<double>& table<double>();
template const Kernels<c10::BFloat16>& table<c10::BFloat16>();

}  // namespace tabes::cpu::TABES_ISA
