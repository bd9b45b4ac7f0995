// The kernels of panels.h; compiled once per instruction set (vectors.h).
#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "ops/cpu/panels.h"
#include "ops/cpu/vectors.h"

namespace tabes::cpu::TABES_ISA {
namespace {

using c10::BFloat16;

// to [n][m] = from [m][n], rows `from_stride` and `to_stride` apart. The floats may be pairs of
// BFloat16: they are only moved.
void transpose(const float* from, int64_t from_stride, int64_t m, int64_t n, float* to,
               int64_t to_stride) {
  constexpr int64_t step = Vec<float>::size();
  for (int64_t i = 0; i < m; i += step) {
    for (int64_t j = 0; j < n; j += step) {
      const float* in = from + i * from_stride + j;
      float* out = to + j * to_stride + i;
      if (i + step <= m && j + step <= n) {
        at::vec::transpose_mxn<float, step, step>(in, from_stride, out, to_stride);
        continue;
      }
      for (int64_t a = 0; a < std::min(step, m - i); ++a) {
        for (int64_t b = 0; b < std::min(step, n - j); ++b) {
          std::memcpy(out + b * to_stride + a, in + a * from_stride + b, sizeof(float));
        }
      }
    }
  }
}

const float* words(const BFloat16* p) {
  return reinterpret_cast<const float*>(p);
}
float* words(BFloat16* p) {
  return reinterpret_cast<float*>(p);
}

template <typename T>
void from_columns(const T* rows, int64_t stride, int64_t columns, int64_t depth, T* panel) {
  if constexpr (std::is_same_v<T, float>) {
    for (int64_t k = 0; k < depth; ++k) {
      std::memcpy(panel + k * columns, rows + k * stride, columns * sizeof(float));
    }
  } else {
    for (int64_t k = 0; k < depth; k += 2) {
      const T* even = rows + k * stride;
      T* out = panel + k * columns;
      if (k + 1 == depth) {
        for (int64_t j = 0; j < columns; ++j) out[2 * j] = even[j], out[2 * j + 1] = 0;
      } else {
        const T* odd = even + stride;
        for (int64_t j = 0; j < columns; ++j) out[2 * j] = even[j], out[2 * j + 1] = odd[j];
      }
    }
  }
}

template <typename T>
void from_rows(const T* rows, int64_t stride, int64_t columns, int64_t depth, T* panel) {
  if constexpr (std::is_same_v<T, float>) {
    transpose(rows, stride, columns, depth, panel, columns);
  } else if (depth % 2 == 0 && stride % 2 == 0) {
    transpose(words(rows), stride / 2, columns, depth / 2, words(panel), columns);
  } else {
    const int64_t even = depth + depth % 2;
    std::vector<T> aligned(columns * even, T(0));
    for (int64_t j = 0; j < columns; ++j) {
      std::memcpy(aligned.data() + j * even, rows + j * stride, depth * sizeof(T));
    }
    transpose(words(aligned.data()), even / 2, columns, even / 2, words(panel), columns);
  }
}

template <typename T>
void from_panel(const T* panel_in, int64_t columns, int64_t depth, T* panel) {
  if constexpr (std::is_same_v<T, float>) {
    transpose(panel_in, depth, columns, depth, panel, columns);
  } else {
    // First as rows [depth][columns] again, the last column alone if their number is odd.
    std::array<T, kPanelWidth * kPanelWidth> rows;
    const int64_t pairs = (columns + 1) / 2;
    transpose(words(panel_in), depth, pairs, depth, words(rows.data()), pairs);
    from_columns(rows.data(), 2 * pairs, columns, depth, panel);
  }
}

Vec<float> activated(const Vec<float>& x, Activation activation) {
  const Vec<float> half(0.5F), one(1.0F);
  switch (activation) {
    case Activation::gelu:
      return x * half * (one + (x * Vec<float>(0.70710678F)).erf());
    case Activation::gelu_tanh: {
      const Vec<float> inner = x * (one + Vec<float>(0.044715F) * x * x);
      return x * half * (one + (Vec<float>(0.79788456F) * inner).tanh());
    }
    case Activation::none:
      break;
  }
  return x;
}

template <typename T>
void finish(const float* sums, int64_t rows, int64_t columns, const T* bias, Activation activation,
            const T* residual, T* y, int64_t stride) {
  constexpr bool is_float = std::is_same_v<T, float>;
  std::array<float, kPanelWidth> offset, other, result;
  offset.fill(0);
  if (bias) at::vec::convert(bias, offset.data(), columns);
  for (int64_t r = 0; r < rows; ++r, sums += kPanelWidth, y += stride) {
    const float* added = nullptr;
    if (residual) {
      if constexpr (is_float) {
        added = residual;
      } else {
        at::vec::convert(residual, other.data(), columns);
        added = other.data();
      }
      residual += stride;
    }
    float* out = result.data();
    if constexpr (is_float) out = y;
    for_pieces<float>(columns, [&](int64_t j, int64_t c) {
      Vec<float> v = activated(load(sums + j, c) + load(offset.data() + j, c), activation);
      if (added) v = v + load(added + j, c);
      store<float>(v, out + j, c);
    });
    if constexpr (!is_float) at::vec::convert(out, y, columns);
  }
}

}  // namespace

template <typename T>
const PanelKernels<T>& panels() {
  static const PanelKernels<T> kernels{from_rows<T>, from_columns<T>, from_panel<T>, finish<T>};
  return kernels;
}

template const PanelKernels<float>& panels<float>();
template const PanelKernels<BFloat16>& panels<BFloat16>();

}  // namespace tabes::cpu::TABES_ISA
